"""A fleet of imagined nodes for the attestation bench, and the frames they send.

What nodes of one release share: the files with their content, the order of the first 55 lines of IMA, the PCR values of
the boot. What each has of its own: keys, nonces, where images lay in memory (in the log's bytes, in no digest), the order
of all later lines, a few lines of files that no other has, and which of the release's files it has run at all.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from contract import tpm, wire
from contract.eventlog import parse_event_log
from contract.imapolicy import ImaPolicy, pack
from contract.messages import MAX_FRAME_BYTES, Report
from contract.quote import AttestationKey
from controller.appraisal import Appraiser, Asked, LogWanted, parsed_body
from controller.policies import Policies, compiled
from controller.records import Sections, SessionRecord
from tests.parts import imalog
from tests.parts.attester import CERTIFICATE_SHA256, Attester, after
from tests.parts.simulator import replayed

Kind = Literal["RSA-2048", "P-256"]
VECTORS = Path(__file__).resolve().parents[1] / "tests/vectors"
RELEASE_FILES = 15_000
SAME_ORDER = 55
OWN_LINES = 8
_EV_IPL = 0x0D
_EV_IMAGE = 0x80000003
_FIRST_BANK = 32 + 28
"""Offset of the table of banks: after the first record's head and the fixed part of its Spec ID event."""


class Sent(NamedTuple):
    """One report on the wire, and what the session code knows when it comes."""

    frame: bytes
    nonce: bytes
    asked: Asked
    sent_back: bool
    """The log goes on in the next one."""


class Run(NamedTuple):
    """Reports of one node in a row, and the record that the first is held against."""

    record: SessionRecord
    key: AttestationKey
    reference: bytes | None
    pcrs: dict[int, bytes]
    """Values that the report before these had: what has not changed since does not travel."""
    reports: list[Sent]

    @property
    def attestations(self) -> int:
        """Those that end in evidence."""
        return sum(1 for report in self.reports if not report.sent_back)


@cache
def release() -> dict[str, bytes]:
    """Return every file of the imagined release, with its SHA-256."""
    folders = ("/usr/bin/", "/usr/lib/x86_64-linux-gnu/", "/usr/lib/python3/dist-packages/", "/usr/sbin/")
    return {
        f"{folders[n % len(folders)]}part-{n:05}": hashlib.sha256(b"file %d" % n).digest()
        for n in range(RELEASE_FILES)
    }


def policies() -> Policies:
    """Return policies that allow the release by package, and nothing else but each node's own data."""
    files = [(path.encode(), digest) for path, digest in release().items()]
    packages = [pack(f"package-{n}", "1.0-1", dict(files[n : n + 50])) for n in range(0, len(files), 50)]
    section = ImaPolicy(package=packages, exclude=["/var/lib/models/"])
    return compiled(Sections(boot=b"", ima=msgspec.json.encode(section)))


def firmware_log(events: int, node: int) -> bytes:
    """Return a recorded log with further boot-loader records at its end, so that it has so many, and with the images
    where this node's firmware put them."""
    log = bytearray((VECTORS / "secureboot-on/eventlog.bin").read_bytes())
    (banks,) = struct.unpack_from("<I", log, _FIRST_BANK - 4)
    algorithms = [struct.unpack_from("<H", log, _FIRST_BANK + 4 * n)[0] for n in range(banks)]
    parsed = parse_event_log(bytes(log)).events
    for event in parsed:
        if event.type == _EV_IMAGE:  # UEFI_IMAGE_LOAD_EVENT begins with ImageLocationInMemory
            at = log.find(event.untrusted_data)
            struct.pack_into("<Q", log, at, 0x7000_0000 + node * 0x1000)
    for number in range(events - len(parsed)):
        hashed = f"set variable_{number}=value".encode()
        text = b"grub_cmd: " + hashed + b"\0"
        log += struct.pack("<III", 8, _EV_IPL, banks)
        for algorithm in algorithms:
            log += struct.pack("<H", algorithm) + hashlib.new(tpm.HASH_NAMES[algorithm], hashed).digest()
        log += struct.pack("<I", len(text)) + text
    return bytes(log)


def fleet(count: int, kind: Kind, *, lines: int, events: int) -> list[Attester]:
    """Make so many nodes, each with a boot behind it."""
    return [_node(number, kind, lines, events) for number in range(count)]


def _node(number: int, kind: Kind, lines: int, events: int) -> Attester:
    event_log = firmware_log(events, number)
    # Most of what a boot measures is the same on all nodes of a release; some of it each has chosen by itself.
    order = random.Random(number)
    files = list(release().items())[: max(lines + lines // 4, SAME_ORDER)]
    first, rest = files[:SAME_ORDER], files[SAME_ORDER:]
    chosen = first + order.sample(rest, lines - 1 - SAME_ORDER - OWN_LINES)
    own = [
        (f"/var/lib/models/of-{number}-{n}", hashlib.sha256(b"%d %d" % (number, n)).digest())
        for n in range(OWN_LINES)
    ]
    log = imalog.of_boot(replayed(event_log), dict(chosen + own))
    key = rsa.generate_private_key(65537, 2048) if kind == "RSA-2048" else None
    return Attester(f"node-{number}", event_log, log, rsa_ak=key)


def new_lines(count: int, seed: int) -> bytes:
    """Return lines of files of the release, as somebody runs a few more programs."""
    order = random.Random(seed)
    return b"".join(imalog.record(*file) for file in order.sample(list(release().items()), count))


def first(node: Attester, policies: Policies) -> Run:
    """Return the first attestation of a boot: one report, or as many as a long log takes."""
    return _run(node, policies, node.record(), None, pcrs={}, news=[b""])


def steady(node: Attester, policies: Policies, *, lines: int, reports: int) -> Run:
    """Return so many reports after the first, with so many new lines in each."""
    begun = first(node, policies)
    seed = zlib.crc32(node.name.encode()) + lines
    news = [new_lines(lines, seed + number) for number in range(reports)]
    return _run(node, policies, play(begun, policies).record, begun.reference, pcrs=node.pcrs, news=news)


def _run(
    node: Attester,
    policies: Policies,
    record: SessionRecord,
    reference: bytes | None,
    *,
    pcrs: dict[int, bytes],
    news: list[bytes],
) -> Run:
    """Let the node measure each of `news` and report, and keep the frames."""
    key = AttestationKey.from_public(record.ak_public, record.ek_public)
    appraiser, sent, shown = Appraiser(record, CERTIFICATE_SHA256, policies, key), [], dict(pcrs)
    for lines in news:
        node.measure(lines)
        asked, done = appraiser.asking(), False
        while not done:
            nonce = node.nonce()
            report = node.report(nonce, asked)
            changed = {pcr: value for pcr, value in report.pcrs.items() if shown.get(pcr) != value}
            frame, now = wire.encode(msgspec.structs.replace(report, pcrs=changed)), asked
            try:
                evidence = appraiser.appraise(report, parsed_body(report), nonce, asked, reference)
                reference, done, shown = reference or evidence.reference, True, report.pcrs
                appraiser = appraiser.renewed(after(appraiser.record, evidence), policies)
            except LogWanted as more:
                asked = more.asked
            sent.append(Sent(frame, nonce, now, not done))
    return Run(record, key, reference, dict(pcrs), sent)


def play(run: Run, policies: Policies) -> Appraiser:
    """Do with each frame what the session code does, but for the store; return what the session then holds.

    From frame to evidence: decode, complete the PCR values, verify the quote, follow and judge the logs. The key was loaded
    when the session was opened.
    """
    appraiser, known = Appraiser(run.record, CERTIFICATE_SHA256, policies, run.key), run.pcrs
    for frame, nonce, asked, sent_back in run.reports:
        report: Report = wire.decode(frame, Report, max_bytes=MAX_FRAME_BYTES)
        body = parsed_body(report)
        shown = {**known, **report.pcrs}
        report = msgspec.structs.replace(report, pcrs=shown)
        try:
            evidence = appraiser.appraise(report, body, nonce, asked, run.reference)
        except LogWanted:
            assert sent_back
            continue
        assert not evidence.findings, evidence.findings
        known = shown
        appraiser = appraiser.renewed(after(appraiser.record, evidence), policies)
    return appraiser
