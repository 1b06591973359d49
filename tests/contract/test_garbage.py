"""No byte string makes a parser of the contract raise anything but Rejected.

Every parser gets pure noise and, since noise seldom passes the first check, good input that was mutated: cut, spliced,
flipped, and with numbers from the borders of their ranges written over it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contract import inventory, messages, sockets, tpm, trust, wire
from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy, Reference, judge_boot, reference_from
from contract.credential import make_credential
from contract.directive import Directive
from contract.enrolment import check_ak, check_identity, ek_digest
from contract.envelope import open_directive
from contract.errors import Rejected
from contract.eventdata import covered, describe, oddities
from contract.eventlog import explain, parse_event_log
from contract.names import checked_name
from contract.quote import AttestationKey, verify_quote
from contract.sealing import directive_signer, sign_directive
from tests.contract.forge import PCRS, QUALIFYING, WANTED, Case, Forger

GOOD, SECURE = Case("good-rsa"), Case("secureboot-on")
FORGERS = {"rsa2048": Forger("rsa2048"), "ecc256": Forger("ecc256")}
ROOTS = GOOD.roots()
NOW = 1.8e9
DIRECTIVE_SEED = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"directive").digest())
DIRECTIVE_KEY = DIRECTIVE_SEED.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
DIRECTIVE = Directive(node="press-1", number=1, issued=NOW, expires=NOW + 60, posture="normal")
BASELINE = b"""
[baseline]
name = "factory"
version = 3
summary = "an inference node"

[boot]
pcrs = [0, 4, 7]
reference = "pinned"
[boot.pinned]
0 = ["%s"]
""" % (b"a" * 64)
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**64 - 1]


def report() -> bytes:
    attest = FORGERS["ecc256"].attest()
    signature = FORGERS["ecc256"].sign(attest)
    return wire.encode(messages.Report(body=b"body", quote=attest, signature=signature, pcrs=PCRS))


def body() -> bytes:
    return wire.encode(
        messages.ReportBody(
            node="press-1",
            number=1,
            boot_id="b",
            at=1.0,
            uptime_s=2.0,
            agent_version="1",
            posture="normal",
            baseline=messages.BaselineRef(name="factory", version=1, sha256=b"s" * 32),
            drifts=[messages.Drift(section="usb", key="k", wanted="w", found="f", since=1.0)],
            events=[
                messages.Event(seq=1, at=1.0, kind="a.b", severity="info", summary="s", detail={"k": "v"})
            ],
        )
    )


def signed_garbage(attest: bytes) -> None:
    """A TPM signs only what it made, but an AK's key could be out: a good signature over anything."""
    FORGERS["ecc256"].verify(attest)


def any_signature(signature: bytes) -> None:
    attest = FORGERS["rsa2048"].attest()
    for forger in FORGERS.values():
        with suppress(Rejected):
            forger.verify(attest, signature=signature)


def any_log(raw: bytes) -> None:
    log = parse_event_log(raw)
    explain(log, GOOD.pcrs, ())
    oddities(log)
    for event in log.events:
        covered(event)
        assert describe(event).isprintable()
    judge_boot(BootPolicy(), GOOD.quote(), log, reference_from(log, GOOD.pcrs))


def any_ak(raw: bytes) -> None:
    for check in (check_ak, tpm.name_of, ek_digest):
        with suppress(Rejected):
            check(raw)
    AttestationKey.from_public(raw, GOOD.read("ek.tpm2b"))


def any_ek(raw: bytes) -> None:
    with suppress(Rejected):
        check_identity(raw, GOOD.read("ek-cert.der"), ROOTS, (), NOW)
    with suppress(Rejected):
        verify_quote(
            AttestationKey.from_public(GOOD.read("ak.tpm2b"), raw),
            GOOD.read("quote.attest"),
            GOOD.read("quote.sig"),
            qualifying_data=QUALIFYING,
            pcrs=PCRS,
            wanted_pcrs=WANTED,
            previous=None,
        )
    make_credential(raw, b"n" * 34, b"s" * 32)


def any_certificate(raw: bytes) -> None:
    check_identity(GOOD.read("ek.tpm2b"), raw, ROOTS, (), NOW)


def any_frame(raw: bytes) -> None:
    kinds = (
        messages.FromAgent,
        messages.FromController,
        messages.EnrolBegin | messages.EnrolFinish,
        messages.EnrolReply,
        messages.ReportBody,
        Reference,
    )
    for kind in kinds:
        with suppress(Rejected):
            wire.decode(raw, kind, max_bytes=messages.MAX_FRAME_BYTES)  # type: ignore[arg-type]


def any_json(raw: bytes) -> None:
    for kind in (messages.ReportBody, Reference):
        with suppress(Rejected):
            wire.decode_json(raw, kind, max_bytes=messages.MAX_FRAME_BYTES)


def any_baseline(raw: bytes) -> None:
    parsed = parse_baseline(raw)
    for name in parsed.sections:
        section(parsed, name, BootPolicy)


def any_envelope(raw: bytes) -> None:
    open_directive(raw, DIRECTIVE_KEY, node="press-1", now=NOW, highest_number=0)


def any_root(raw: bytes) -> None:
    trust.trusted_root(raw, [raw])


def any_name(raw: bytes) -> None:
    checked_name(raw.decode("utf-8", "surrogateescape"))


FACTS = [inventory.Fact("package", "bash", "5.2"), inventory.Fact("system", "kernel", "6.1")]
SOCKETS = sockets.SocketReport(
    connections=[
        sockets.Connection("tcp", "here", 40000, "10.0.0.1", 443, "eth0", 0, "root", "/x.service", "x")
    ],
    listening=[sockets.Listening("udp", 53, "x")],
    controller=[sockets.Endpoint("fd00::1", 8440, "eth0")],
)


def any_facts(raw: bytes) -> object:
    """Facts whose digest a report has named, whatever they are."""
    return inventory.unpacked(zlib.compress(raw), hashlib.sha256(raw).digest())


def any_packed(raw: bytes) -> object:
    return inventory.unpacked(raw, inventory.packed(FACTS).sha256)


PARSERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "attest": (signed_garbage, [FORGERS["ecc256"].attest()]),
    "signature": (
        any_signature,
        [GOOD.read("quote.sig"), FORGERS["ecc256"].sign(FORGERS["rsa2048"].attest())],
    ),
    "event log": (any_log, [GOOD.read("eventlog.bin"), SECURE.read("eventlog.bin")]),
    "ak": (any_ak, [GOOD.read("ak.tpm2b"), FORGERS["ecc256"].ak_public]),
    "ek": (any_ek, [GOOD.read("ek.tpm2b"), FORGERS["ecc256"].ek_public]),
    "certificate": (any_certificate, [GOOD.read("ek-cert.der"), GOOD.read("ek-cert.der") + b"\xff" * 40]),
    "frame": (any_frame, [report(), body()]),
    "json": (any_json, [b'{"pcrs":{"0":"' + b"A" * 43 + b'="},"events":[]}', b'{"node":"a","number":1}']),
    "baseline": (any_baseline, [BASELINE]),
    "envelope": (
        any_envelope,
        [sign_directive(DIRECTIVE, directive_signer(DIRECTIVE_SEED))],
    ),
    "root metadata": (any_root, [b'{"signatures":[],"signed":{"_type":"root","version":1}}']),
    "name": (any_name, [b"press-1"]),
    "inventory": (any_facts, [wire.encode(inventory.Facts(facts=FACTS, left_out=3))]),
    "packed inventory": (any_packed, [inventory.packed(FACTS).packed]),
    "sockets": (sockets.read_sockets, [wire.encode(SOCKETS)]),
}


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return noise, or a seed with up to four faults."""
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.binary(max_size=600))
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        fault = draw(st.sampled_from(["flip", "number", "cut", "insert", "delete", "double"]))
        if fault == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif fault == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(EDGES)) & (2 ** (8 * size) - 1)
            raw[at : at + size] = value.to_bytes(size, draw(st.sampled_from(["big", "little"])))
        elif fault == "cut":
            del raw[at:]
        elif fault == "insert":
            raw[at:at] = draw(st.binary(max_size=40))
        elif fault == "delete":
            del raw[at : at + draw(st.integers(1, 40))]
        elif fault == "double":
            raw[at:at] = raw[at : at + draw(st.integers(1, 400))]
    return bytes(raw)


@pytest.mark.parametrize("name", PARSERS)
def test_no_byte_string_raises_anything_but_rejected(name: str) -> None:
    parser, seeds = PARSERS[name]

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(seeds))
    @example(b"")
    def run(raw: bytes) -> None:
        with suppress(Rejected):
            parser(raw)

    run()


@pytest.mark.parametrize("name", sorted(PARSERS.keys() - {"root metadata"}))
def test_the_seeds_are_good_as_they_are(name: str) -> None:
    """A seed that fails at its first byte would test nothing behind it."""
    parser, seeds = PARSERS[name]
    for seed in seeds:
        parser(seed)
