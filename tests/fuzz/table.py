"""Every harness by name, with what its corpus began from."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract import bundle, corim, messages, references, wire
from contract.directive import Directive
from contract.eventlog import parse_event_log
from contract.grant import Access, Grant, Opening
from contract.imalog import read_lines
from contract.sealing import sign_directive
from tests.contract.forge import PCRS, Case, Forger
from tests.contract.imavectors import VECTORS, read_vector
from tests.contract.vectorfile import FOLDER as LOGS
from tests.contract.vectorfile import read
from tests.fuzz import documents, evidence

CORPUS = Path(__file__).resolve().parent / "corpus"
MAX_SEED_BYTES = 4096
Harness = Callable[[bytes], object]

HARNESSES: dict[str, Harness] = {
    "attest": evidence.attest,
    "signature": evidence.signature,
    "public": evidence.public,
    "audit-key": evidence.audit_key,
    "event-log": evidence.event_log,
    "event-data": evidence.event_data,
    "ima-log": evidence.ima_log,
    "frame": evidence.frame,
    "baseline": evidence.baseline,
    "policy": evidence.policy,
    "pcr-values": evidence.pcr_values,
    "offline": evidence.offline,
    "show": evidence.show,
    "certificate": documents.certificate,
    "device-identity": documents.device_identity,
    "envelope": documents.envelope,
    "grant": documents.grant,
    "root-metadata": documents.root_metadata,
    "targets-metadata": documents.targets_metadata,
    "repository": documents.repository,
    "corim": documents.corim_file,
    "references": documents.reference_toml,
    "stored-evidence": documents.stored_evidence,
    "result": documents.result_token,
    "boot-image": documents.boot_image,
}


def corpus(name: str) -> list[bytes]:
    """Return the committed inputs of a harness."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def seeds() -> dict[str, list[bytes]]:
    """Return what the corpus of each harness begins from: good input, made small."""
    good, secure = Case("good-rsa"), Case("secureboot-on")
    logs = [_small_log(good.read("eventlog.bin")), _small_log(secure.read("eventlog.bin"))]
    lines = _small_ima(good.read("ima.bin"))
    forger = Forger("ecc256")
    keys = [good.read("ak.tpm2b"), good.read("ek.tpm2b"), forger.ak_public, forger.ek_public]
    reference = references.ReferenceSet(
        site="s", hardware_class="h", os_release="12", valid_from=1.0, values={"kernel": ["ab" * 32]}
    )
    return {
        "attest": [good.read("quote.attest"), forger.attest()],
        "signature": [good.read("quote.sig"), forger.sign(forger.attest())],
        "public": keys,
        "audit-key": [*keys, good.read("ak.pem"), _pem(forger)],
        "event-log": [*logs, *_small(read(path).log for path in sorted(LOGS.glob("*.vec")))],
        "event-data": _event_data(secure.read("eventlog.bin")),
        "ima-log": [lines, *_small(read_vector(path).lines for path in VECTORS)],
        "frame": [wire.encode(message) for message in _messages(forger)],
        "baseline": [_BASELINE],
        "policy": [_POLICY],
        "pcr-values": [msgspec.json.encode({"sha256": {str(p): v.hex() for p, v in good.pcrs.items()}})],
        "offline": [
            b"\0" + good.read("quote.attest"),
            b"\1" + good.read("quote.sig"),
            *(first + log for log in logs for first in (b"\2", b"\6")),
            *(first + lines for first in (b"\3", b"\7")),
        ],
        "show": [*logs, lines],
        "certificate": [good.read("ek-cert.der"), good.read("ek-cert.der") + b"\xff" * 40],
        "device-identity": [forger.attest(kind=0x8017)],
        "envelope": [
            sign_directive(_DIRECTIVE, documents.SIGNER),
            msgspec.json.encode(_DIRECTIVE),
        ],
        "grant": [msgspec.json.encode(_GRANT), b"vx91n-tsxza-wcdqt-dfw4s"],
        "root-metadata": [documents.ROOT],
        "targets-metadata": [documents.TARGETS, documents.ROOT],
        "repository": [documents.ROOT, documents.TARGETS],
        "corim": [corim.encode_corim([reference])],
        "references": [references.reference_toml([reference]).encode()],
        "stored-evidence": [
            bundle.pack(_stored(good)),
            wire.encode(_stored(good)),
            b'{"boot":{},"ima":null}',
        ],
        "result": [documents.TOKEN, documents.PAYLOAD],
        "boot-image": [_image()],
    }


def _small(inputs: Iterable[bytes]) -> list[bytes]:
    """Return different inputs, small ones, and not many."""
    found = {raw for raw in inputs if 0 < len(raw) < MAX_SEED_BYTES // 2}
    return sorted(found, key=lambda raw: (len(raw), raw))[::4][:12]


def _small_log(log: bytes) -> bytes:
    """Return the log without its large events, until it is small; the first record stays."""
    out = bytearray(log[: 32 + struct.unpack_from("<I", log, 28)[0]])
    at = len(out)
    for event in parse_event_log(log).events:
        size = len(event.untrusted_data)
        end = log.index(struct.pack("<I", size) + event.untrusted_data, at) + 4 + size
        if size < 300 and len(out) + end - at <= MAX_SEED_BYTES:
            out += log[at:end]
        at = end
    return bytes(out)


def _event_data(log: bytes) -> list[bytes]:
    """Return the data of one event of each type, behind the byte that makes it one of that type."""
    found: dict[int, bytes] = {}
    for event in parse_event_log(log).events:
        if event.type in evidence.TYPES:
            place = evidence.TYPES.index(event.type)
            count = len(evidence.TYPES)
            first = place + count * min(event.pcr, (255 - place) // count)
            found.setdefault(event.type, bytes([first]) + event.untrusted_data[: MAX_SEED_BYTES - 1])
    return list(found.values())


def _small_ima(log: bytes) -> bytes:
    """Return the first lines of the log."""
    end = 0
    for record, _ in read_lines(log):
        if record.end > MAX_SEED_BYTES // 2:
            break
        end = record.end
    return log[:end]


def _pem(forger: Forger) -> bytes:
    return forger.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _messages(forger: Forger) -> list[object]:
    attest = forger.attest()
    return [
        messages.Report(body=b"body", quote=attest, signature=forger.sign(attest), pcrs=PCRS),
        messages.ReportBody(
            node="press-1",
            number=1,
            boot_id="b",
            at=1.0,
            uptime_s=2.0,
            agent_version="1",
            posture="normal",
            drifts=[messages.Drift(section="usb", key="k", wanted="w", found="f", since=1.0)],
            events=[messages.Event(seq=1, at=1.0, kind="a.b", severity="info", summary="s")],
        ),
        messages.Answer(number=1, nonce=b"n" * 32, tier="none"),
        messages.EnrolBegin(node="n", ek_public=b"e", ak_public=b"a", csr=b"c"),
    ]


def _stored(case: Case) -> bundle.Stored:
    return bundle.Stored(
        node="n",
        nonce=b"n" * 32,
        certificate_sha256=b"c" * 32,
        body=b"body",
        quote=case.read("quote.attest"),
        signature=case.read("quote.sig"),
        pcrs=case.pcrs,
        ak_public=case.read("ak.tpm2b"),
        ek_public=case.read("ek.tpm2b"),
    )


def _image() -> bytes:
    """Return a PE32+ image of one section."""
    headers = bytearray(512)
    headers[:2], headers[60:64] = b"MZ", struct.pack("<I", 64)
    headers[64:68] = b"PE\0\0"
    headers[68:88] = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x22)
    headers[88:90] = struct.pack("<H", 0x20B)
    headers[88 + 60 : 88 + 64] = struct.pack("<I", 512)
    headers[88 + 108 : 88 + 112] = struct.pack("<I", 16)
    section = 88 + 240
    headers[section : section + 24] = struct.pack("<8sIIII", b".text", 64, 512, 64, 512)
    return bytes(headers) + hashlib.sha512(b"text").digest()


_GRANT = Grant(
    id=7,
    who="A. Technician",
    company="Press Works",
    evidence="contract 4711",
    access=Access(
        openings=[
            Opening(direction="in", protocol="tcp", ports=[22, 443], peers=["198.51.100.7", "2001:db8::/64"])
        ],
        usb=[],
    ),
    starts=1.0,
    ends=3601.0,
    reason="drive replaced",
    requested_by="ops",
    approved_by=["boss"],
)
_DIRECTIVE = Directive(node="press-1", number=1, issued=1.8e9, expires=1.8e9 + 60, posture="normal")
_BASELINE = b"""[baseline]
name = "factory"
version = 3
summary = "an inference node"

[boot]
pcrs = [0, 4, 7, 8]
reference = "pinned"
secure_boot = "required"
cmdline_required = ["quiet"]
[boot.pinned]
0 = ["%s"]

[ima]
exclude = ["/tmp/", "/var/*/x"]
[ima.allow]
"/usr/bin/true" = ["sha256:%s"]
""" % (b"a" * 64, b"b" * 64)
_POLICY = _BASELINE[_BASELINE.index(b"[boot]") :]
