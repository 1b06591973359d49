"""Attestations per second on one core, beside the bare signature check of the same kind of key in the same run.

The nodes are imagined (`bench.imagined`), each with keys, nonces and logs of its own, and take turns. A rate counts whole
attestations, from the frame on the wire to evidence; the store and TLS are measured by `bench.fleet`.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path

import psutil
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench import imagined
from bench.figures import Figure, figure, side_by_side
from bench.imagined import Kind, Run
from contract import tpm, wire
from contract.binding import QUOTED_PCRS
from contract.quote import AttestationKey, verify_quote
from controller.appraisal import Appraiser
from controller.nonces import Nonces
from controller.policies import STRICTEST, Policies
from controller.records import SessionRecord
from tests.parts.attester import CERTIFICATE_SHA256, Attester
from tests.parts.softtpm import SoftTpm, new_scalar

VECTORS = Path(__file__).resolve().parents[1] / "tests/vectors"
EVENTS, LINES, LONG_LINES, NEW_LINES = 150, 800, 10_000, 20
STEADY_REPORTS = 8
_RSA_HEAD_BYTES = 6
_SIGNED = "bare signature check"


def run(*, quick: bool) -> list[Figure]:
    """Measure quotes alone, first and steady attestation, and what a node costs in memory."""
    seconds = 0.5 if quick else 3.0
    policies = imagined.policies()
    figures = [*_quotes("P-256", seconds), *_quotes("RSA-2048", seconds)]
    for kind in ("RSA-2048", "P-256"):
        figures += _attestations(kind, policies, seconds, nodes=8 if quick else 24)
    return [*figures, _memory(policies, 200 if quick else 2000)]


# ---- the quote alone


def _quotes(kind: Kind, seconds: float) -> list[Figure]:
    node = imagined.fleet(1, kind, lines=64, events=EVENTS)[0]
    data = hashlib.sha256(b"bench").digest()
    attest, signature = node.tpm.quote(data, node.pcrs, clock_ms=1000)
    key = AttestationKey.from_public(node.tpm.ak_public, node.tpm.ek_public)

    def work() -> object:
        return verify_quote(
            key,
            attest,
            signature,
            qualifying_data=data,
            pcrs=node.pcrs,
            wanted_pcrs=QUOTED_PCRS,
            previous=None,
        )

    ours, bare = side_by_side(work, _bare(node), seconds=seconds)
    return [figure(f"quote verified, {kind}", ours, "1/s on one core", f"{_SIGNED}, {kind}", bare)]


def _bare(node: Attester) -> Callable[[], object]:
    """Return what has `cryptography` check one signature of this node, and does nothing else."""
    attest, signature = node.tpm.quote(bytes(32), node.pcrs, clock_ms=1000)
    key, algorithm = tpm.parse_public(node.tpm.ak_public).key, hashes.SHA256()
    if isinstance(key, rsa.RSAPublicKey):
        raw, scheme = signature[_RSA_HEAD_BYTES:], padding.PKCS1v15()
        return lambda: key.verify(raw, attest, scheme, algorithm)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = signature[6:38], signature[40:72]
    der, ecdsa = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")), ec.ECDSA(algorithm)
    return lambda: key.verify(der, attest, ecdsa)


# ---- whole attestations


def _attestations(kind: Kind, policies: Policies, seconds: float, *, nodes: int) -> list[Figure]:
    fleet = imagined.fleet(nodes, kind, lines=LINES, events=EVENTS)
    long = imagined.fleet(4, kind, lines=LONG_LINES, events=EVENTS)
    firsts = [imagined.first(node, policies) for node in fleet]
    what = f"first attestation: {EVENTS} events, {LINES} IMA lines"
    bare = _bare(fleet[0])
    rates = {what: _rate(firsts, policies, bare, seconds)}
    cold, (_, reference) = _cold_rate(firsts, seconds), rates[what]
    rates[f"{what}, no line ever seen before"] = cold, reference
    longs = [imagined.first(node, policies) for node in long]
    rates[f"first attestation: {EVENTS} events, {LONG_LINES} IMA lines"] = _rate(
        longs, policies, bare, seconds
    )
    for lines in (0, NEW_LINES):
        runs = [imagined.steady(node, policies, lines=lines, reports=STEADY_REPORTS) for node in fleet]
        name = f"steady attestation: quote and {lines} new IMA lines"
        rates[name] = _rate(runs, policies, bare, seconds)
    return [
        figure(f"{name}, {kind}", rate, "1/s on one core", f"{_SIGNED}, {kind}", reference)
        for name, (rate, reference) in rates.items()
    ]


def _rate(
    runs: Sequence[Run], policies: Policies, bare: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """Return attestations a second, and bare signature checks a second in the same time."""
    turns = cycle(runs)
    attestations = sum(run.attestations for run in runs) / len(runs)
    rate, reference = side_by_side(lambda: imagined.play(next(turns), policies), bare, seconds=seconds)
    return rate * attestations, reference


def _cold_rate(runs: Sequence[Run], seconds: float) -> float:
    """As the first node under a new baseline finds it: rules compiled, and no line remembered."""
    times, took = 0, 0.0
    for run in cycle(runs):
        fresh = imagined.policies()
        began = time.thread_time()
        imagined.play(run, fresh)
        took += time.thread_time() - began
        times += 1
        if took >= seconds / 3:
            break
    return times / took


# ---- memory


def _memory(policies: Policies, nodes: int) -> Figure:
    """Resident memory of what a session keeps for the verifier: record with its states, loaded key, nonces."""
    node = imagined.fleet(1, "P-256", lines=LINES, events=EVENTS)[0]
    record = wire.encode(imagined.play(imagined.first(node, policies), policies).record)
    machines = [SoftTpm(new_scalar(), new_scalar()) for _ in range(nodes)]
    keys = [(machine.ak_public, machine.ek_public) for machine in machines]
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn")
    ) as fresh:  # nothing freed before to be used again
        grown = fresh.submit(_grown, record, keys).result()
    return figure("verifier state of a connected node", grown / nodes / 1024, "KiB resident")


def _grown(record: bytes, keys: list[tuple[bytes, bytes]]) -> int:
    """Hold a session's state for each key, and return by how many bytes the process has grown."""
    policies = STRICTEST
    held = [_held(record, policies, *keys[0]) for _ in range(100)]
    gc.collect()
    before = psutil.Process().memory_info().rss
    held += [_held(record, policies, ak, ek) for ak, ek in keys]
    gc.collect()
    return psutil.Process().memory_info().rss - before


def _held(record: bytes, policies: Policies, ak: bytes, ek: bytes) -> tuple[Appraiser, Nonces]:
    own = wire.decode(record, SessionRecord, max_bytes=len(record))
    key, nonces = AttestationKey.from_public(bytes(ak), bytes(ek)), Nonces()
    nonces.issue(0.0, 1.0)
    return Appraiser(own, CERTIFICATE_SHA256, policies, key), nonces
