"""What the codes of attestation's findings mean, and what to do: for people, in the command and in the documents.

Decides nothing. `docs/attestation.md` holds the same table; a test keeps it and the code's own codes equal to this one.
"""

from __future__ import annotations

from typing import Final

_TAMPERED: Final = "the file was changed, or does not belong to the others; fetch the evidence again"
_ANOTHER_FILE: Final = "check that this is the file of that kind, whole; fetch the evidence again"

CODES: Final[dict[str, tuple[str, str]]] = {
    # --- the key
    "ak.attributes": (
        "the key may sign more than what its TPM made, so anyone who may use it can forge a quote",
        "enrol the node again with an attestation key that the agent made",
    ),
    "ak.scheme": (
        "the key's signing scheme is not RSASSA or ECDSA with SHA-256 or longer",
        "enrol the node again",
    ),
    "tpm.public": ("the bytes are no TPM2B_PUBLIC of a supported key", _ANOTHER_FILE),
    # --- the quote
    "quote.signature": ("this key did not sign these bytes", _TAMPERED),
    "quote.signature-scheme": (
        "signed by another scheme or hash than the key's own; SHA-1 never counts",
        _TAMPERED,
    ),
    "quote.signature-length": ("the signature's sizes do not fit the key", _ANOTHER_FILE),
    "quote.length": (
        "the structure is cut short, has bytes too many, or a size in it does not fit",
        _ANOTHER_FILE,
    ),
    "quote.magic": (
        "signed by the key, but not made by a TPM",
        "treat the key as stolen or misused: enrol again",
    ),
    "quote.type": ("the TPM signed something else than a quote", _ANOTHER_FILE),
    "quote.signer": (
        "the key that signed does not stand under this EK",
        "check that --ek and --ak are of one node",
    ),
    "quote.nonce": ("made over another nonce: an old quote, or one of somebody else", "ask for a new quote"),
    "quote.pcr-selection": (
        "no PCR, several selections, or other PCRs than asked for",
        "quote one selection of sha256",
    ),
    "quote.pcr-bank": ("the PCRs are of another bank; only SHA-256 is judged", "quote the sha256 bank"),
    "quote.pcr-values": (
        "the values shown are not those of exactly the quoted PCRs, 32 bytes each",
        _TAMPERED,
    ),
    "quote.pcr-digest": (
        "the values shown, or those the logs lead to, are not the ones the TPM signed",
        _TAMPERED,
    ),
    "quote.pcr-unset": (
        "PCR 0 or 4 was never extended: nothing was measured",
        "switch measured boot on in the firmware",
    ),
    "quote.safe": ("the TPM's yes-or-no is neither", _ANOTHER_FILE),
    "quote.counters": ("the TPM's counters went back: an old quote, or another TPM", "ask for a new quote"),
    "quote.clock-unsafe": (
        "the TPM lost power without shutting down; its clock may repeat up to 4 s",
        "nothing, if power was cut",
    ),
    "quote.firmware-version": (
        "the TPM's firmware is another than before",
        "check that the update was yours",
    ),
    # --- the firmware log
    "eventlog.empty": (
        "the log has no bytes",
        "check that the kernel shows a firmware log; with GRUB use `linuxefi`",
    ),
    "eventlog.too-large": ("the log is larger than 1 MiB", _ANOTHER_FILE),
    "eventlog.too-many": ("the log has more than 8,192 events", _ANOTHER_FILE),
    "eventlog.truncated": ("the log ends in the middle of an event, or a size in it is wrong", _ANOTHER_FILE),
    "eventlog.header": ("the first record does not hold what it must", _ANOTHER_FILE),
    "eventlog.algorithms": ("the table of hash algorithms is impossible", _ANOTHER_FILE),
    "eventlog.no-sha256": (
        "the log holds no SHA-256 digests",
        "switch the TPM's SHA-256 bank on in the firmware",
    ),
    "eventlog.no-bank": ("the log holds no digests of the bank asked for", "ask for a bank that it has"),
    "eventlog.digests": ("an event's digests are not those of the table", _ANOTHER_FILE),
    "eventlog.pcr-index": ("an event names a PCR that does not exist", _ANOTHER_FILE),
    "eventlog.locality": ("the record of PCR 0's start value is misplaced, doubled or malformed", _TAMPERED),
    "eventlog.replay": (
        "the log does not lead to the PCR's value: an event was changed, added, removed or is of another boot",
        "fetch log and quote of the same boot; if the running system extends this PCR, name it in `runtime_pcrs`",
    ),
    "eventlog.not-quoted": ("the policy names a PCR that the quote does not cover", "quote that PCR as well"),
    "eventlog.data": ("an event's data is not what its digest was made of", _TAMPERED),
    "eventlog.separator": (
        "a PCR has no separator, two, or one that reports an error",
        "look at the firmware; then at who could write the log",
    ),
    "eventlog.secure-boot": ("the state of Secure Boot was measured twice, too late or malformed", _TAMPERED),
    "eventlog.after-exit": ("something was measured as firmware after the firmware was left", _TAMPERED),
    "eventlog.debugger": ("a firmware debugger was on", "switch it off, or take the machine out of service"),
}
"""Code to what it means and what to do."""


def cure_of(code: str) -> str:
    """Return what to do about a finding; empty where nothing is known."""
    return CODES.get(code, ("", ""))[1]
