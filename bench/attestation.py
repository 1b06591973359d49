"""Attestations per second on one core, beside the bare signature check of the same key."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.figures import Figure, figure, per_second
from contract import messages, tpm, wire
from contract.binding import QUOTED_PCRS, qualifying_data
from contract.eventlog import parse_event_log
from contract.quote import AttestationKey, verify_quote
from controller.appraisal import Appraiser
from controller.records import SessionRecord
from tests.parts.simulator import replayed
from tests.parts.softtpm import SoftTpm, new_scalar

VECTORS = Path(__file__).resolve().parents[1] / "tests/vectors"
EVENTS = 150
_EV_IPL = 0x0D
_RSA_HEAD_BYTES = 6
_FIRST_BANK = 32 + 28
"""Offset of the table of banks: after the first record's head and the fixed part of its Spec ID event."""
_NODE = "bench-node"


def run(*, quick: bool) -> list[Figure]:
    """Measure P-256 and RSA-2048 quotes, and a whole first report with its log."""
    seconds = 0.5 if quick else 3.0
    return [*_ecc(seconds), *_rsa(seconds), *_first_report(seconds)]


def _ecc(seconds: float) -> list[Figure]:
    machine = SoftTpm(new_scalar(), new_scalar())
    pcrs = {pcr: bytes([pcr + 1]) * 32 for pcr in QUOTED_PCRS}
    data = hashlib.sha256(b"bench").digest()
    attest, signature = machine.quote(data, pcrs, clock_ms=1000)
    key = tpm.parse_public(machine.ak_public).key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = signature[6:38], signature[40:72]
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    algorithm = ec.ECDSA(hashes.SHA256())
    bare = per_second(lambda: key.verify(der, attest, algorithm), seconds=seconds)
    ours = _quote_rate((machine.ak_public, machine.ek_public), (attest, signature), data, pcrs, seconds)
    return [figure("quote verified, P-256", ours, "1/s on one core", "bare signature check, P-256", bare)]


def _rsa(seconds: float) -> list[Figure]:
    case = VECTORS / "good-rsa"
    attest, signature = (case / "quote.attest").read_bytes(), (case / "quote.sig").read_bytes()
    ak, ek = (case / "ak.tpm2b").read_bytes(), (case / "ek.tpm2b").read_bytes()
    data = bytes.fromhex((case / "nonce.hex").read_text().strip())
    numbers = [int(n) for n in (case / "selection.txt").read_text().strip().partition(":")[2].split(",")]
    pcrs = {pcr: value for pcr, value in _recorded_pcrs(case).items() if pcr in numbers}
    key = tpm.parse_public(ak).key
    assert isinstance(key, rsa.RSAPublicKey)
    scheme, algorithm = padding.PKCS1v15(), hashes.SHA256()
    raw = signature[_RSA_HEAD_BYTES:]
    bare = per_second(lambda: key.verify(raw, attest, scheme, algorithm), seconds=seconds)
    ours = _quote_rate((ak, ek), (attest, signature), data, pcrs, seconds)
    return [
        figure("quote verified, RSA-2048", ours, "1/s on one core", "bare signature check, RSA-2048", bare)
    ]


def _recorded_pcrs(case: Path) -> dict[int, bytes]:
    text = (case / "pcrs.txt").read_text().partition("sha256:")[2].partition("sha384:")[0]
    return {
        int(number): bytes.fromhex(value.strip().removeprefix("0x"))
        for number, _, value in (line.partition(":") for line in text.splitlines() if ":" in line)
    }


def _quote_rate(
    keys: tuple[bytes, bytes],
    signed: tuple[bytes, bytes],
    data: bytes,
    pcrs: dict[int, bytes],
    seconds: float,
) -> float:
    (ak, ek), (attest, signature) = keys, signed
    key, wanted = AttestationKey.from_public(ak, ek), frozenset(pcrs)

    def work() -> object:
        return verify_quote(
            key, attest, signature, qualifying_data=data, pcrs=pcrs, wanted_pcrs=wanted, previous=None
        )

    return per_second(work, seconds=seconds)


def log_of(events: int) -> bytes:
    """Return a recorded log with further boot-loader records at its end, so that it has so many."""
    log = (VECTORS / "secureboot-on/eventlog.bin").read_bytes()
    (banks,) = struct.unpack_from("<I", log, _FIRST_BANK - 4)
    algorithms = [struct.unpack_from("<H", log, _FIRST_BANK + 4 * n)[0] for n in range(banks)]
    for number in range(events - len(parse_event_log(log).events)):
        hashed = f"set variable_{number}=value".encode()
        text = b"grub_cmd: " + hashed + b"\0"
        log += struct.pack("<III", 8, _EV_IPL, banks)
        for algorithm in algorithms:
            log += struct.pack("<H", algorithm) + hashlib.new(tpm.HASH_NAMES[algorithm], hashed).digest()
        log += struct.pack("<I", len(text)) + text
    return log


def report_of(machine: SoftTpm, log: bytes, nonce: bytes, *, with_log: bool) -> tuple[messages.Report, bytes]:
    """Return a report of an imagined machine, and the fingerprint of the certificate it speaks over."""
    pcrs, fingerprint = replayed(log), hashlib.sha256(b"certificate").digest()
    body = wire.encode(
        messages.ReportBody(
            node=_NODE,
            number=1,
            boot_id="b",
            at=1.0,
            uptime_s=1.0,
            agent_version="0",
            posture="normal",
            event_log_sha256=hashlib.sha256(log).digest(),
        )
    )
    data = qualifying_data(
        nonce=nonce,
        node=_NODE,
        certificate_sha256=fingerprint,
        body=body,
        event_log_sha256=hashlib.sha256(log).digest(),
    )
    quote, signature = machine.quote(data, pcrs, clock_ms=1000)
    report = messages.Report(
        body=body, quote=quote, signature=signature, pcrs=pcrs, event_log=log if with_log else None
    )
    return report, fingerprint


def _first_report(seconds: float) -> list[Figure]:
    """Frame to evidence: decode, verify, parse and replay the log, judge the boot."""
    machine, log, nonce = SoftTpm(new_scalar(), new_scalar()), log_of(EVENTS), bytes(32)
    report, fingerprint = report_of(machine, log, nonce, with_log=True)
    frame = wire.encode(report)
    appraiser = Appraiser(
        SessionRecord(
            node=_NODE,
            site="bench",
            ek_public=machine.ek_public,
            ak_public=machine.ak_public,
            certificate_sha256=fingerprint,
            interval_s=60.0,
            counters=None,
            boot=None,
            reference=None,
            boot_section=b"",
            directive_number=0,
        ),
        fingerprint,
    )
    first = per_second(_appraising(appraiser, frame, nonce), seconds=seconds)
    key = tpm.parse_public(machine.ak_public).key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = report.signature[6:38], report.signature[40:72]
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    algorithm = ec.ECDSA(hashes.SHA256())
    bare = per_second(lambda: key.verify(der, report.quote, algorithm), seconds=seconds)
    return [
        figure(
            f"first report appraised: quote + {EVENTS}-event log, P-256",
            first,
            "1/s on one core",
            "bare signature check, P-256",
            bare,
        )
    ]


def _appraising(appraiser: Appraiser, frame: bytes, nonce: bytes) -> Callable[[], object]:
    def work() -> object:
        report = wire.decode(frame, messages.FromAgent, max_bytes=messages.MAX_FRAME_BYTES)
        assert isinstance(report, messages.Report)
        body = wire.decode(report.body, messages.ReportBody, max_bytes=messages.MAX_BODY_BYTES)
        return appraiser.appraise(report, body, nonce)

    return work
