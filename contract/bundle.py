"""Stored evidence, and the bundle of files in which it leaves the controller.

A bundle holds one piece of evidence with all that re-verifying it takes, years later and without a controller: the
quote, what it was made over, the logs, the keys, the policy in force, and the result that was signed over it. The
files are those of `tpm2_quote` and of `ringfence attest verify`; nothing in them is a format of our own except
`body.msgpack`, which is opaque bytes under the quote's digest.

`binding.json` names what the qualifying data was made of, so that a bundle also proves the report it came with, and
`result.jwt` says by digest which files it is about. The key beside it proves that files and result belong together; who
signed is proved by a key that was had from elsewhere.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta, Struct

from contract import tpm
from contract.binding import IMA_PCR
from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.imapolicy import ImaPolicy
from contract.messages import Digest, Message, Name
from contract.tomltext import render
from contract.wire import decode, encode

MAX_STORED_BYTES: Final = 4 * 1024 * 1024
MAX_BLOB_BYTES: Final = 32 * 1024 * 1024
_LEVEL: Final = 1  # digests do not compress: higher levels cost time and gain nothing

AK, AK_PEM, EK = "ak.tpm2b", "ak.pem", "ek.tpm2b"
QUOTE, SIGNATURE, EXTRA, PCRS = "quote.attest", "quote.sig", "nonce.hex", "pcrs.json"
EVENT_LOG, IMA_LOG = "eventlog.bin", "ima.bin"
BODY, BINDING, POLICY, POLICY_TOML = "body.msgpack", "binding.json", "policy.json", "policy.toml"
RESULT, RESULT_KEY, README = "result.jwt", "result.key.pem", "README"

OPTIONAL: Final = frozenset({AK_PEM, EVENT_LOG, IMA_LOG, README})
NAMES: Final = OPTIONAL | {
    *(AK, EK, QUOTE, SIGNATURE, EXTRA, PCRS),
    *(BODY, BINDING, POLICY, POLICY_TOML, RESULT, RESULT_KEY),
}
"""The only names of files in a bundle."""


class Stored(Message, frozen=True, kw_only=True):
    """One piece of evidence as it came, without the logs and the policy, which other pieces share."""

    node: Name
    nonce: bytes
    certificate_sha256: bytes
    body: bytes
    quote: bytes
    signature: bytes
    pcrs: dict[int, Digest]
    ak_public: bytes
    ek_public: bytes
    event_log_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    ima_log_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """Of the lines that came with this report; empty when none did."""
    ima_offset: int = 0
    """Where in the log they begin, in bytes. Not 0: the lines before travelled with earlier reports."""
    reference: dict[int, Digest] = {}  # noqa: RUF012  (msgspec copies it)
    """PCR values of the accepted boot; empty when there was none yet."""


class Binding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`binding.json`: what the qualifying data was made of, and where the IMA lines begin. Hexadecimal."""

    node: Name
    nonce: str
    certificate_sha256: str
    event_log_sha256: str
    ima_offset: Annotated[int, Meta(ge=0)]
    reference: dict[str, str]


class Policies(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`policy.json`: the sections in force."""

    boot: BootPolicy | None = None
    ima: ImaPolicy | None = None


class _ReferencePcrs(Struct, frozen=True):
    """What is wanted here of a boot reference; the rest of it is passed over."""

    pcrs: dict[int, bytes]


class Bundle(Struct, frozen=True, kw_only=True):
    """All parts of a bundle."""

    stored: Stored
    event_log: bytes | None
    ima_log: bytes
    ima_offset: int
    """Where in the log `ima_log` begins: 0 where the lines of earlier reports are still there."""
    policy: bytes
    """`policy_document`."""
    token: str
    result_key: bytes
    """PEM."""


def compress(content: bytes) -> bytes:
    """Return it compressed, for the store."""
    return zlib.compress(content, _LEVEL)


def expand(packed: bytes, *, max_bytes: int = MAX_BLOB_BYTES) -> bytes:
    """Return what was compressed. Raises Rejected `evidence.damaged` for anything else, or more than `max_bytes`."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(packed, max_bytes)
    except zlib.error as error:
        raise Rejected("evidence.damaged", str(error)) from None
    if not inflater.eof or inflater.unused_data:
        raise Rejected("evidence.damaged", f"cut short, or more than {max_bytes} bytes")
    return content


def pack(stored: Stored) -> bytes:
    """Return evidence as the store keeps it."""
    return compress(encode(stored))


def unpack(packed: bytes) -> Stored:
    """Return evidence that was kept. Raises Rejected `evidence.damaged`."""
    content = expand(packed, max_bytes=MAX_STORED_BYTES)
    return decode(content, Stored, max_bytes=MAX_STORED_BYTES, code="evidence.damaged")


def reference_pcrs(encoded_reference: bytes | None) -> dict[int, bytes]:
    """Return the PCR values of an encoded boot reference. Raises Rejected `evidence.damaged`."""
    if encoded_reference is None:
        return {}
    return decode(encoded_reference, _ReferencePcrs, max_bytes=MAX_STORED_BYTES, code="evidence.damaged").pcrs


def policy_document(boot_section: bytes, ima_section: bytes) -> bytes:
    """Return `policy.json` of two sections in JSON, each empty where the baseline has none: the same bytes for the same."""
    return b'{"boot":' + (boot_section or b"null") + b',"ima":' + (ima_section or b"null") + b"}"


def read_policies(untrusted: bytes) -> Policies:
    """Parse `policy.json`. Without a `[boot]` section the strictest holds. Raises Rejected `bundle.file`."""
    try:
        found = msgspec.json.decode(untrusted, type=Policies)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bundle.file", f"{POLICY}: {error}") from None
    return found if found.boot is not None else Policies(boot=BootPolicy(), ima=found.ima)


def for_audit(policies: Policies, reference: Mapping[int, bytes]) -> Policies:
    """Return the policies with the accepted boot's values written into them, as no auditor has the controller's.

    PCRs that the running system extends are compared event by event by the controller and not here.
    """
    boot = policies.boot or BootPolicy()
    if boot.reference == "pinned" or not reference:
        return Policies(boot=boot, ima=policies.ima)
    pcrs = [pcr for pcr in boot.pcrs if pcr not in boot.runtime_pcrs]
    pinned = {str(pcr): [reference[pcr].hex()] for pcr in pcrs if pcr in reference}
    data = msgspec.to_builtins(boot)
    data |= {
        "reference": "pinned",
        "pinned": pinned,
        "pcrs": pcrs,
        "runtime_pcrs": boot.runtime_pcrs,
        "unannounced": "refuse",
    }
    return Policies(boot=msgspec.convert(data, BootPolicy), ima=policies.ima)


def policy_toml(policies: Policies) -> bytes:
    """Return `policy.toml`, as `ringfence attest verify --policy` takes it."""
    return render(msgspec.to_builtins(policies)).encode()


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """Return the files by name."""
    stored = bundle.stored
    policies = for_audit(read_policies(bundle.policy), stored.reference or stored.pcrs)
    binding = Binding(
        node=stored.node,
        nonce=stored.nonce.hex(),
        certificate_sha256=stored.certificate_sha256.hex(),
        event_log_sha256=stored.event_log_sha256.hex(),
        ima_offset=bundle.ima_offset,
        reference=_shown(stored.reference),
    )
    files = {
        AK: stored.ak_public,
        EK: stored.ek_public,
        QUOTE: stored.quote,
        SIGNATURE: stored.signature,
        EXTRA: extra_data(stored.quote).hex().encode() + b"\n",
        PCRS: msgspec.json.encode({"sha256": _shown(stored.pcrs)}) + b"\n",
        BODY: stored.body,
        BINDING: msgspec.json.encode(binding) + b"\n",
        POLICY: bundle.policy,
        POLICY_TOML: policy_toml(policies),
        RESULT: bundle.token.encode() + b"\n",
        RESULT_KEY: bundle.result_key,
        AK_PEM: _pem(stored.ak_public),
        EVENT_LOG: bundle.event_log or b"",
        IMA_LOG: bundle.ima_log,
    }
    files = {name: content for name, content in files.items() if content or name not in OPTIONAL}
    return files | {README: _readme(bundle, files, policies.ima is not None).encode()}


def extra_data(untrusted_attest: bytes) -> bytes:
    """Return extraData of a TPMS_ATTEST whatever else is wrong with it (Part 2, 10.12.8); b"" where there is none."""
    at = 6
    for last in (False, True):
        size = int.from_bytes(untrusted_attest[at : at + 2], "big")
        value = untrusted_attest[at + 2 : at + 2 + size]
        if last:
            return value
        at += 2 + size
    return b""


def sha256(content: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(content).digest()


def _shown(values: Mapping[int, bytes]) -> dict[str, str]:
    return {str(pcr): values[pcr].hex() for pcr in sorted(values)}


def _pem(public: bytes) -> bytes:
    """Return the AK in PEM, empty where it cannot be read: it is evidence too."""
    try:
        key = tpm.parse_public(public).key
    except Rejected:
        return b""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def command_of(names: frozenset[str], *, whole_ima_log: bool) -> str:
    """Return the line that verifies a bundle's files without anything else of it."""
    parts = [
        f"ringfence attest verify --ak {AK} --ek {EK} --quote {QUOTE} --signature {SIGNATURE}",
        f'--nonce "$(cat {EXTRA})" --pcrs {PCRS}',
    ]
    if EVENT_LOG in names:
        parts.append(f"--event-log {EVENT_LOG}")
    if whole_ima_log:
        parts.append(f"--ima-log {IMA_LOG}")
    return " ".join([*parts, f"--policy {POLICY_TOML}"])


def _readme(bundle: Bundle, files: Mapping[str, bytes], has_ima_policy: bool) -> str:
    stored = bundle.stored
    whole = IMA_LOG in files and bundle.ima_offset == 0
    lines = [
        f"Evidence of node {stored.node}, stored when it was appraised.",
        "",
        "Verify everything, and that the result agrees with it:",
        "    ringfence evidence verify .",
        "Verify the quote, the logs and the policy alone:",
        f"    {command_of(frozenset(files), whole_ima_log=whole)}",
        "Without our software (signature and nonce only):",
        f'    tpm2_checkquote -u {AK_PEM} -m {QUOTE} -s {SIGNATURE} -q "$(cat {EXTRA})"',
        "",
        f"{EXTRA} is the qualifying data (extraData): a digest over the nonce, the node, its certificate, {BODY} and",
        f"the firmware log, as {BINDING} names them. {RESULT} is the result (EAR, JWT, ES256), signed by the key in",
        f"{RESULT_KEY}: compare that file with the one had from the controller by another way.",
        f"{POLICY} holds the policy in force; {POLICY_TOML} is the same with the accepted boot's values pinned.",
    ]
    if not stored.reference:
        lines.append("No boot of this node was accepted when this was stored: the values pinned are its own.")
    if stored.event_log_sha256 and EVENT_LOG not in files:
        lines.append("PARTIAL: the firmware log of this boot is not stored any more.")
    if not whole and has_ima_policy:
        lines.append(
            f"PARTIAL: the IMA log is here from byte {bundle.ima_offset} only; what was before travelled with earlier"
            f" reports of this boot. So PCR {IMA_PCR} is shown and its lines are not re-verified."
        )
    return "\n".join(lines) + "\n"
