"""The firmware's event log: parsed from bytes, replayed to PCR values, held against a quote.

Source: TCG PC Client Platform Firmware Profile, version 1.06, clauses 10 (event logging). A log is a claim: it is
worth what the quoted PCRs make of it, and even then the type field and the data of many events are covered by no
digest (`contract.eventdata`). The parser refuses what it does not understand, in time linear to the size.

What is judged is the SHA-256 bank. Other banks, and logs of the old layout (SHA-1 only), are read where asked for,
to be shown and to be held against the PCRs of that bank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import partial
from hashlib import sha256
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from contract import eventtypes
from contract.errors import Rejected
from contract.eventcover import Hash, covers
from contract.messages import MAX_EVENT_LOG_BYTES, Finding

EV_NO_ACTION: Final = eventtypes.EV_NO_ACTION
SHA1: Final = 0x0004
SHA256: Final = 0x000B
PCR_COUNT: Final = 24
NO_PCR: Final = 0xFFFFFFFF
MAX_EVENTS: Final = 8192
MAX_ALGORITHMS: Final = 8
# TPM_ALG_ID to digest size: SHA-1, SHA-256, SHA-384, SHA-512, SM3-256, SHA3-256, SHA3-384, SHA3-512.
_SIZES: Final = {SHA1: 20, SHA256: 32, 0x0C: 48, 0x0D: 64, 0x12: 32, 0x27: 32, 0x28: 48, 0x29: 64}
BANKS: Final = {
    SHA1: "sha1",
    SHA256: "sha256",
    0x0C: "sha384",
    0x0D: "sha512",
    0x12: "sm3_256",
    0x27: "sha3_256",
    0x28: "sha3_384",
    0x29: "sha3_512",
}
"""TPM_ALG_ID to the name that tpm2-tools has for it."""
_SPEC_ID: Final = b"Spec ID Event03\0"
_LOCALITY: Final = b"StartupLocality\0"
_FIRST = Struct("<II20sI")  # TCG_PCClientPCREvent, the old layout: pcrIndex, eventType, SHA-1, eventDataSize
_SPEC = Struct("<16sIBBBBI")  # signature, platformClass, minor, major, errata, uintnSize, numberOfAlgorithms
_ALGORITHM = Struct("<HH")
_EVENT = Struct("<III")  # TCG_PCR_EVENT2: pcrIndex, eventType, count of digests
_U32 = Struct("<I")
_DYNAMIC: Final = range(17, 23)


_HASHES: Final[Mapping[int, Hash]] = {
    # Never judged by: for showing, and for the PCRs of that bank.
    SHA1: partial(hashlib.sha1, usedforsecurity=False),
    SHA256: sha256,
    0x0C: hashlib.sha384,
    0x0D: hashlib.sha512,
    0x27: hashlib.sha3_256,
    0x28: hashlib.sha3_384,
    0x29: hashlib.sha3_512,
}


class Event(Record, frozen=True, gc=False):
    """One record of the log. Only `digest` is what the TPM was extended with."""

    index: int
    """From 0; in a crypto-agile log the record that names the algorithms is 0."""
    pcr: int
    type: int
    digest: bytes
    """In the bank of the log."""
    untrusted_data: bytes
    covered: bool | None
    """Whether the digest is that of the data, as `eventcover.covers` says: None where it is only the log's word."""

    @property
    def sha256(self) -> bytes:
        """Return the digest, where the log is of the SHA-256 bank: the one that is judged."""
        return self.digest

    @property
    def type_name(self) -> str:
        """Return the name of the type, or its number."""
        return eventtypes.EVENT_TYPES.get(self.type) or f"{self.type:#010x}"


class EventLog(Record, frozen=True):
    """A log that is well formed. Not yet held against any PCR."""

    events: tuple[Event, ...]
    """Without the record that names the algorithms."""
    startup_locality: int
    replayed: Mapping[int, bytes]
    """PCR values, of the log's bank, that it leads to, for each PCR that it extends."""
    bank: int = SHA256
    """TPM_ALG_ID of the digests in `events`."""


class Coverage(Record, frozen=True):
    """Which PCRs a log and a quote explain to each other; every quoted PCR is in one of the first three."""

    explained: frozenset[int]
    """Quoted, and of the value that the log leads to: what the log says of these is worth believing."""
    runtime: frozenset[int]
    """Quoted, and known to be extended after the log ends: no log explains their value."""
    unexplained: frozenset[int]
    """Quoted, with another value."""
    unquoted: frozenset[int]
    """Extended by the log and not quoted: what the log says of these is only its word."""


def hash_of(bank: int) -> Hash:
    """Return the hash function of a log's bank."""
    return _HASHES[bank]


def banks_of(untrusted: bytes) -> tuple[int, ...]:
    """Return the banks of a log (TPM_ALG_ID) in its own order; SHA-1 alone for the old layout. Raises Rejected as
    `parse_event_log` does."""
    _check_size(untrusted)
    if not _is_crypto_agile(untrusted):
        return (SHA1,)
    algorithms, _ = _header(untrusted)
    return tuple(algorithm for algorithm, _ in algorithms)


def parse_event_log(untrusted: bytes, bank: int = SHA256) -> EventLog:
    """Parse one bank of a log: crypto-agile (PFP 10.2), or of the old layout (PFP 10.2.1) where SHA-1 is asked for.

    Raises Rejected, with offset and event index in the detail: `eventlog.empty`, `eventlog.too-large`,
    `eventlog.header`, `eventlog.algorithms`, `eventlog.no-sha256`, `eventlog.no-bank`, `eventlog.truncated`,
    `eventlog.digests`, `eventlog.pcr-index`, `eventlog.locality`, `eventlog.too-many`.
    """
    _check_size(untrusted)
    if _is_crypto_agile(untrusted):
        algorithms, at = _header(untrusted)
        present = [algorithm for algorithm, _ in algorithms]
        if bank not in present:
            raise _no_bank(bank, f"found {', '.join(BANKS[each] for each in present)}")
        if bank not in _HASHES:
            raise _no_bank(bank, "nothing here makes such hashes")
        events = _events(untrusted, at, algorithms, bank)
    elif bank == SHA1:
        events = _old_events(untrusted)
    else:
        # Logs without that record hold SHA-1 digests only.
        raise _no_bank(bank, "found sha1 (no Spec ID Event03)")
    locality = _startup_locality(events)
    return EventLog(tuple(events), locality, _replayed(events, locality, bank), bank)


def _check_size(untrusted: bytes) -> None:
    if not untrusted:
        raise Rejected("eventlog.empty", "zero bytes: the machine showed no firmware log")
    if len(untrusted) > MAX_EVENT_LOG_BYTES:
        raise Rejected("eventlog.too-large", f"{len(untrusted)} bytes, at most {MAX_EVENT_LOG_BYTES}")


def _no_bank(bank: int, why: str) -> Rejected:
    code = "eventlog.no-sha256" if bank == SHA256 else "eventlog.no-bank"
    return Rejected(code, f"offset 0, event 0: wanted bank {BANKS.get(bank, f'{bank:#06x}')}, {why}")


def _is_crypto_agile(untrusted: bytes) -> bool:
    """Tell the layouts apart by the first record, which has the old one in both. Raises Rejected if it is cut short."""
    if len(untrusted) < _FIRST.size:
        raise Rejected("eventlog.truncated", f"offset 0, event 0: {len(untrusted)} bytes")
    *_, size = _FIRST.unpack_from(untrusted)
    if _FIRST.size + size > len(untrusted):
        raise Rejected("eventlog.truncated", f"offset {_FIRST.size}, event 0: {size} bytes of data wanted")
    return untrusted[_FIRST.size : _FIRST.size + len(_SPEC_ID)] == _SPEC_ID


def _header(untrusted: bytes) -> tuple[list[tuple[int, int]], int]:
    """Read the first record with the table of algorithms (PFP 10.4.5.1); the caller has seen that it is whole."""
    pcr, kind, _, size = _FIRST.unpack_from(untrusted)
    end = _FIRST.size + size
    if pcr != 0 or kind != EV_NO_ACTION or size < _SPEC.size:
        raise Rejected("eventlog.header", f"offset 0, event 0: PCR {pcr}, type {kind:#x}, {size} bytes")
    *_, count = _SPEC.unpack_from(untrusted, _FIRST.size)
    if not 0 < count <= MAX_ALGORITHMS:
        raise Rejected("eventlog.algorithms", f"offset {_FIRST.size}, event 0: {count} algorithms")
    table_at = _FIRST.size + _SPEC.size
    vendor_at = table_at + count * _ALGORITHM.size
    if vendor_at >= end or vendor_at + 1 + untrusted[vendor_at] != end:
        raise Rejected("eventlog.header", f"offset {vendor_at}, event 0: sizes do not fit the record")
    algorithms: list[tuple[int, int]] = list(_ALGORITHM.iter_unpack(untrusted[table_at:vendor_at]))
    for algorithm, digest_size in algorithms:
        if _SIZES.get(algorithm) != digest_size:
            detail = (
                f"offset {table_at}, event 0: algorithm {algorithm:#06x} with digests of {digest_size} bytes"
            )
            raise Rejected("eventlog.algorithms", detail)
    if len({algorithm for algorithm, _ in algorithms}) != count:
        raise Rejected("eventlog.algorithms", f"offset {table_at}, event 0: an algorithm twice")
    return algorithms, end


def _events(untrusted: bytes, at: int, algorithms: list[tuple[int, int]], bank: int) -> list[Event]:
    """Read the TCG_PCR_EVENT2 records (PFP 10.2.2). All have the same digests in the same order, save by a quirk."""
    usual = Struct("<III" + "".join(f"H{size}s" for _, size in algorithms) + "I")
    order = [algorithm for algorithm, _ in algorithms]
    place = 4 + 2 * order.index(bank)
    ids = slice(3, 3 + 2 * len(order), 2)
    sizes = dict(algorithms)
    length = len(untrusted)
    unpack, usual_size, count, hashed = usual.unpack_from, usual.size, len(order), hash_of(bank)
    expected = tuple(order)
    events: list[Event] = []
    while at < length:
        index = len(events) + 1
        if index > MAX_EVENTS:
            raise Rejected("eventlog.too-many", f"offset {at}: more than {MAX_EVENTS} events")
        data_at = at + usual_size
        fields = unpack(untrusted, at) if data_at <= length else None
        if fields is not None and fields[2] == count and fields[ids] == expected:
            pcr, kind, digest, size = fields[0], fields[1], fields[place], fields[-1]
        else:
            pcr, kind, digest, size, data_at = _unusual(untrusted, at, index, sizes, bank)
        end = data_at + size
        if end > length:
            detail = f"offset {data_at}, event {index}: {size} bytes of data wanted, {length - data_at} left"
            raise Rejected("eventlog.truncated", detail)
        if pcr >= PCR_COUNT:
            _check_without_pcr(pcr, kind, at, index)
        data = untrusted[data_at:end]
        events.append(Event(index, pcr, kind, digest, data, covers(digest, kind, data, hashed)))
        at = end
    return events


def _old_events(untrusted: bytes) -> list[Event]:
    """Read TCG_PCClientPCREvent records (PFP 10.2.1): one SHA-1 digest each."""
    total, at, hashed = len(untrusted), 0, hash_of(SHA1)
    events: list[Event] = []
    while at < total:
        index = len(events)
        if index >= MAX_EVENTS:
            raise Rejected("eventlog.too-many", f"offset {at}: more than {MAX_EVENTS} events")
        data_at = at + _FIRST.size
        if data_at > total:
            raise Rejected("eventlog.truncated", f"offset {at}, event {index}: cut short")
        pcr, kind, digest, size = _FIRST.unpack_from(untrusted, at)
        end = data_at + size
        if end > total:
            detail = f"offset {data_at}, event {index}: {size} bytes of data wanted, {total - data_at} left"
            raise Rejected("eventlog.truncated", detail)
        if pcr >= PCR_COUNT:
            _check_without_pcr(pcr, kind, at, index)
        data = untrusted[data_at:end]
        events.append(Event(index, pcr, kind, digest, data, covers(digest, kind, data, hashed)))
        at = end
    return events


def _check_without_pcr(pcr: int, kind: int, at: int, index: int) -> None:
    """EV_NO_ACTION extends nothing and may name no PCR at all (seen in the field: 0xFFFFFFFF)."""
    if not (kind == EV_NO_ACTION and pcr == NO_PCR):
        raise Rejected("eventlog.pcr-index", f"offset {at}, event {index}: PCR {pcr}")


def _unusual(
    untrusted: bytes, at: int, index: int, sizes: dict[int, int], bank: int
) -> tuple[int, int, bytes, int, int]:
    """Read a record whose digests are fewer or in another order; the bank's must be there, nothing twice."""
    short = Rejected("eventlog.truncated", f"offset {at}, event {index}: cut short")
    if at + _EVENT.size > len(untrusted):
        raise short
    pcr, kind, count = _EVENT.unpack_from(untrusted, at)
    if not 0 < count <= len(sizes):
        raise Rejected("eventlog.digests", f"offset {at}, event {index}: {count} digests")
    at += _EVENT.size
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = int.from_bytes(untrusted[at : at + 2], "little")
        end = at + 2 + sizes.get(algorithm, 0)
        if end + 4 > len(untrusted):
            raise short
        if algorithm not in sizes or algorithm in digests:
            detail = f"offset {at}, event {index}: algorithm {algorithm:#06x} is unknown or there twice"
            raise Rejected("eventlog.digests", detail)
        digests[algorithm] = untrusted[at + 2 : end]
        at = end
    if bank not in digests:
        raise Rejected("eventlog.digests", f"offset {at}, event {index}: no digest of bank {bank:#06x}")
    (size,) = _U32.unpack_from(untrusted, at)
    return pcr, kind, digests[bank], size, at + 4


def _startup_locality(events: list[Event]) -> int:
    """Return PCR 0's start value (PFP 10.4.5.3): at most one such event, before PCR 0 is extended; else Rejected."""
    found: int | None = None
    extended = False
    for event in events:
        if event.type != EV_NO_ACTION:
            extended = extended or event.pcr == 0
            continue
        data = event.untrusted_data
        if not data.startswith(_LOCALITY):
            continue
        where = f"event {event.index}: "
        if found is not None or extended or event.pcr != 0:
            raise Rejected("eventlog.locality", where + "twice, after the first extension, or not for PCR 0")
        # Some firmware pads the record with zeros.
        if len(data) <= len(_LOCALITY) or any(data[len(_LOCALITY) + 1 :]):
            raise Rejected("eventlog.locality", where + f"{len(data)} bytes")
        found = data[len(_LOCALITY)]
        if found not in (0, 3, 4):
            raise Rejected("eventlog.locality", where + f"locality {found}")
    return found or 0


def start_value(pcr: int, startup_locality: int = 0, size: int = 32) -> bytes:
    """Return what a PCR holds after a reset, before anything extends it (PFP 3.3.1; TPM 2.0 Part 1, 17.4)."""
    if pcr in _DYNAMIC:
        return b"\xff" * size
    return (startup_locality if pcr == 0 else 0).to_bytes(size, "big")


def _replayed(events: list[Event], locality: int, bank: int) -> dict[int, bytes]:
    hashed, size = hash_of(bank), _SIZES[bank]
    pcrs: dict[int, bytes] = {}
    for event in events:
        if event.type == EV_NO_ACTION:
            continue
        pcr = event.pcr
        value = pcrs.get(pcr) or start_value(pcr, locality, size)
        pcrs[pcr] = hashed(value + event.digest).digest()
    return pcrs


def replay(log: EventLog) -> Mapping[int, bytes]:
    """Return the PCR values, of the log's bank, that the log leads to, for each PCR that it extends."""
    return log.replayed


def explain(log: EventLog, quoted_pcrs: Mapping[int, bytes], runtime_pcrs: Collection[int]) -> list[Finding]:
    """Return a finding `eventlog.replay` for each quoted PCR whose value the log does not lead to.

    `runtime_pcrs` are extended after the log ends (10 by IMA; 9, 11, 12, 15 by systemd), so no log explains their
    value. A PCR that the log never extends must hold its start value.
    """
    replayed = replay(log)
    findings = []
    for pcr in sorted(quoted_pcrs):
        wanted = replayed.get(pcr) or start_value(pcr, log.startup_locality, _SIZES[log.bank])
        if pcr not in runtime_pcrs and quoted_pcrs[pcr] != wanted:
            detail = f"PCR {pcr}: the log leads to {wanted.hex()}, the TPM holds {quoted_pcrs[pcr].hex()}"
            ignored = _ignored(log, pcr)
            if ignored is not None:
                detail += f"; event {ignored} has a digest and a type that extends nothing"
            findings.append(Finding(code="eventlog.replay", detail=detail, pcr=pcr, event=ignored))
    return findings


def _ignored(log: EventLog, pcr: int) -> int | None:
    """Return the first event of a PCR whose type was likely exchanged: EV_NO_ACTION has zeros for a digest (PFP 10.4.5)."""
    for event in log.events:
        if event.pcr == pcr and event.type == EV_NO_ACTION and any(event.digest):
            return event.index
    return None


def coverage(log: EventLog, quoted_pcrs: Mapping[int, bytes], runtime_pcrs: Collection[int]) -> Coverage:
    """Return, both ways, which PCRs of a log and a quote prove each other (see `explain` for `runtime_pcrs`)."""
    replayed = replay(log)
    explained, runtime, unexplained = set(), set(), set()
    for pcr, value in quoted_pcrs.items():
        if pcr in runtime_pcrs:
            runtime.add(pcr)
        elif value == (replayed.get(pcr) or start_value(pcr, log.startup_locality, _SIZES[log.bank])):
            explained.add(pcr)
        else:
            unexplained.add(pcr)
    return Coverage(
        frozenset(explained),
        frozenset(runtime),
        frozenset(unexplained),
        frozenset(replayed.keys() - quoted_pcrs.keys()),
    )
