"""What the codes of attestation's findings mean, and what to do: for people, in the command and in the documents.

Decides nothing. `docs/attestation.md` holds the same table; a test keeps it and the code's own codes equal to this one.
"""

from __future__ import annotations

from typing import Final

_TAMPERED: Final = "the file was changed, or does not belong to the others; fetch the evidence again"
_ANOTHER_FILE: Final = "check that this is the file of that kind, whole; fetch the evidence again"

_LOOK: Final = "look at the node"

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
    "eventlog.no-bank": (
        "the log holds no digests of the bank asked for, or they are of a kind that nothing here makes",
        "read that bank with another program; no other than SHA-256 is judged",
    ),
    "eventlog.digests": ("an event's digests are not those of the table", _ANOTHER_FILE),
    "eventlog.pcr-index": ("an event names a PCR that does not exist", _ANOTHER_FILE),
    "eventlog.locality": ("the record of PCR 0's start value is misplaced, doubled or malformed", _TAMPERED),
    "eventlog.replay": (
        "the log does not lead to the PCR's value: an event was changed, added, removed or is of another boot",
        "fetch log and quote of the same boot; if the running system extends this PCR, name it in `runtime_pcrs`",
    ),
    "eventlog.data": ("an event's data is not what its digest was made of", _TAMPERED),
    "eventlog.separator": (
        "a PCR has no separator, two, or one that reports an error",
        "look at the firmware; then at who could write the log",
    ),
    "eventlog.secure-boot": ("the state of Secure Boot was measured twice, too late or malformed", _TAMPERED),
    "eventlog.after-exit": ("something was measured as firmware after the firmware was left", _TAMPERED),
    "eventlog.type": ("an event's digest is that of something else than its type says", _TAMPERED),
    "eventlog.signatures": ("a list of Secure Boot keys is malformed", _TAMPERED),
    "eventlog.sbat": ("the revocation level (SBAT) is malformed", _TAMPERED),
    "eventlog.debugger": ("a firmware debugger was on", "switch it off, or take the machine out of service"),
    "eventlog.changed": ("the log is not the one that the report names", _TAMPERED),
    # --- the boot, by the policy
    "boot.policy-empty": ("the `[boot]` section names no PCR, so no boot is good", "name PCRs in `pcrs`"),
    "boot.pcr-not-quoted": ("the policy names a PCR that the quote does not cover", "quote that PCR as well"),
    "boot.event-log-missing": (
        "the policy wants a firmware log and there is none",
        "give it with --event-log",
    ),
    "boot.event-log-withheld": ("the node was asked for its firmware log and did not send it", _LOOK),
    "boot.no-reference": (
        "nothing says which boot is good: no boot was accepted, or it is not known here",
        "accept the boot, or pin values: `ringfence attest learn` proposes them",
    ),
    "boot.not-compared": (
        "the accepted boot is with the controller, so this policy was judged without it",
        "use the policy of an exported bundle, which pins the accepted values",
    ),
    "boot.not-pinned": ("the policy pins no value for this PCR", "pin one, or take the PCR out of `pcrs`"),
    "boot.pcr": (
        "the PCR differs from the accepted boot",
        "was it you? accept the boot or announce the update; if not, investigate",
    ),
    "boot.unannounced": (
        "boot loader, kernel or initrd are new, or dbx or SBAT revoke more, and nobody announced them",
        "announce or accept them, or investigate",
    ),
    "boot.rolled-back": (
        "something that was superseded is back, or dbx or SBAT revoke less than in the accepted boot",
        "boot the newer version again, and find out who went back",
    ),
    "boot.secure-boot": (
        "Secure Boot is off, unproved or in set-up mode, against the policy",
        "switch it on in the firmware",
    ),
    "boot.dbx": (
        "the list of revoked boot code (dbx) is older than the policy wants",
        "install the dbx update",
    ),
    "boot.sbat": (
        "the revocation level of boot loaders (SBAT) is older than the policy wants",
        "update shim",
    ),
    "boot.signer": (
        "something was loaded that no allowed signer vouches for",
        "add the signer to `allowed_signers`, or remove it",
    ),
    "boot.stage": (
        "something was loaded that the policy does not list at this stage",
        "announce the update, or list its digest",
    ),
    "boot.cmdline": (
        "the kernel's command line breaks a rule",
        "mend it in the boot loader, or change the rule",
    ),
    "boot.firmware": (
        "the firmware is not one that the policy lists",
        "update the firmware, or list its version",
    ),
    # --- the IMA log
    "ima.log-missing": (
        "the policy has an `[ima]` section and there is no IMA log",
        "give it with --ima-log",
    ),
    "ima.no-log": (
        "the policy has an `[ima]` section and the node has no IMA log",
        "switch IMA on (`ima_policy=tcb`)",
    ),
    "ima.not-quoted": (
        "the quote does not cover PCR 10, so nothing speaks for the IMA log",
        "quote PCR 0 to 10",
    ),
    "ima.inactive": (
        "PCR 10 was never extended: the kernel measures nothing",
        "switch IMA on (`ima_policy=tcb`)",
    ),
    "ima.mismatch": (
        "no line leads to the quoted PCR 10: a line was changed, is missing, or of another boot",
        _TAMPERED,
    ),
    "ima.never-matches": ("the node's logs have not led to its quotes for many reports", _LOOK),
    "ima.catching-up": ("not all lines have come yet", "wait for the next reports"),
    "ima.offset": ("the lines do not begin where the agreed ones end", _TAMPERED),
    "ima.too-large": ("the log is larger than 64 MiB", "reboot, and measure less (IMA policy)"),
    "ima.truncated": ("the log ends in the middle of a line, or a size in it is wrong", _ANOTHER_FILE),
    "ima.line-too-large": ("a line is larger than 1 MiB", _ANOTHER_FILE),
    "ima.template-name": ("a line's template has an impossible name", _ANOTHER_FILE),
    "ima.unknown-template": (
        "a line has a template that the kernel does not have itself",
        "use one of its own, such as `ima-sig`",
    ),
    "ima.template-hash": ("a line's hash is not that of its data", _TAMPERED),
    "ima.fields": ("a line's fields do not fill it", _TAMPERED),
    "ima.digest": ("a line's file digest is malformed", _TAMPERED),
    "ima.name": ("a line's file name is empty, or has a NUL in it", _TAMPERED),
    "ima.wrong-pcr": ("a line is of another PCR than 10, so nothing proves it", "measure to PCR 10 only"),
    "ima.boot-aggregate": (
        "the first line is not the aggregate of the quoted PCR 0 to 9: the log is of another boot",
        'fetch log and quote of the same boot, quote PCR 0 to 9; kernels before 5.8 need `boot_aggregate = "optional"`',
    ),
    "ima.kexec": ("the kernel was replaced without a reboot (kexec)", "reboot through the firmware"),
    "ima.violation": (
        "a file was written while it was measured, so its digest says nothing",
        "find the file's writer; exclude it in the kernel's IMA policy",
    ),
    "ima.unknown-file": (
        "a file was read or run that the policy does not allow",
        "was it installed by you? learn the allow-list again; if not, investigate",
    ),
    "ima.other-path": ("an allowed content was run under another path", "find out who copied it"),
    "ima.signature": (
        "a file's signature does not verify",
        "install the file again, and find out who changed it",
    ),
    "ima.buffer": (
        "a key or other buffer was loaded that the policy does not allow",
        "list its digest, or find out who loaded it",
    ),
    "ima.package-updated": (
        "new files belong to packages that were upgraded",
        "nothing, if the upgrade was yours; learn the allow-list again",
    ),
    "ima.sha1-padded": (
        "the kernel extends the SHA-256 bank with SHA-1: no stronger than SHA-1",
        "use Linux 5.8 or newer",
    ),
    "ima.more": ("there are more findings than are kept", "mend those that are shown first"),
}
"""Code to what it means and what to do."""


def cure_of(code: str) -> str:
    """Return what to do about a finding; empty where nothing is known. What is only noted is mended the same way."""
    return CODES.get(code.removesuffix("-noted"), ("", ""))[1]
