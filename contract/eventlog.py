"""The firmware's event log: parsed from bytes, replayed to PCR values, held against a quote (SHA-256 bank).

Source: TCG PC Client Platform Firmware Profile, version 1.06, clauses 10 (event logging). A log is a claim: it is
worth what the quoted PCRs make of it, and even then the type field and the data of many events are covered by no
digest (`contract.eventdata`). The parser refuses what it does not understand, in time linear to the size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from contract.errors import Rejected
from contract.messages import MAX_EVENT_LOG_BYTES, Finding

EV_NO_ACTION: Final = 0x03
EV_SEPARATOR: Final = 0x04
EV_ACTION: Final = 0x05
EV_S_CRTM_VERSION: Final = 0x08
EV_IPL: Final = 0x0D
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_BOOT: Final = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EV_EFI_GPT_EVENT: Final = 0x80000006
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_VARIABLE_BOOT2: Final = 0x8000000C
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0

EVENT_TYPES: Final = {
    0x00: "EV_PREBOOT_CERT",
    0x01: "EV_POST_CODE",
    0x02: "EV_UNUSED",
    EV_NO_ACTION: "EV_NO_ACTION",
    EV_SEPARATOR: "EV_SEPARATOR",
    EV_ACTION: "EV_ACTION",
    0x06: "EV_EVENT_TAG",
    0x07: "EV_S_CRTM_CONTENTS",
    EV_S_CRTM_VERSION: "EV_S_CRTM_VERSION",
    0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0B: "EV_TABLE_OF_DEVICES",
    0x0C: "EV_COMPACT_HASH",
    EV_IPL: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA",
    0x0F: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    EV_EFI_VARIABLE_DRIVER_CONFIG: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    EV_EFI_VARIABLE_BOOT: "EV_EFI_VARIABLE_BOOT",
    EV_EFI_BOOT_SERVICES_APPLICATION: "EV_EFI_BOOT_SERVICES_APPLICATION",
    EV_EFI_BOOT_SERVICES_DRIVER: "EV_EFI_BOOT_SERVICES_DRIVER",
    EV_EFI_RUNTIME_SERVICES_DRIVER: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    EV_EFI_GPT_EVENT: "EV_EFI_GPT_EVENT",
    EV_EFI_ACTION: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    EV_EFI_VARIABLE_BOOT2: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    EV_EFI_VARIABLE_AUTHORITY: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}

PCR_COUNT: Final = 24
NO_PCR: Final = 0xFFFFFFFF
MAX_EVENTS: Final = 8192
MAX_ALGORITHMS: Final = 8
_SHA256: Final = 0x000B
# TPM_ALG_ID to digest size: SHA-1, SHA-256, SHA-384, SHA-512, SM3-256, SHA3-256, SHA3-384, SHA3-512.
_SIZES: Final = {0x04: 20, 0x0B: 32, 0x0C: 48, 0x0D: 64, 0x12: 32, 0x27: 32, 0x28: 48, 0x29: 64}
_SPEC_ID: Final = b"Spec ID Event03\0"
_LOCALITY: Final = b"StartupLocality\0"
_FIRST = Struct("<II20sI")  # TCG_PCClientPCREvent, the old layout: pcrIndex, eventType, SHA-1, eventDataSize
_SPEC = Struct("<16sIBBBBI")  # signature, platformClass, minor, major, errata, uintnSize, numberOfAlgorithms
_ALGORITHM = Struct("<HH")
_EVENT = Struct("<III")  # TCG_PCR_EVENT2: pcrIndex, eventType, count of digests
_U32 = Struct("<I")
_DYNAMIC: Final = range(17, 23)


class Event(Record, frozen=True, gc=False):
    """One record of the log. Only `sha256` is what the TPM was extended with."""

    index: int
    """From 0; the record that names the algorithms is 0."""
    pcr: int
    type: int
    sha256: bytes
    untrusted_data: bytes
    """Covered by the digest for some types only."""

    @property
    def type_name(self) -> str:
        """Return the name of the type, or its number."""
        return EVENT_TYPES.get(self.type, f"{self.type:#010x}")


class EventLog(Record, frozen=True):
    """A log that is well formed. Not yet held against any PCR."""

    events: tuple[Event, ...]
    """Without the first record."""
    startup_locality: int
    sha256: bytes
    """Of the log's bytes: what `binding.qualifying_data` takes."""


def parse_event_log(untrusted: bytes) -> EventLog:
    """Parse a crypto-agile log (PFP 10.2) with a SHA-256 bank.

    Raises Rejected, with offset and event index in the detail: `eventlog.empty`, `eventlog.too-large`,
    `eventlog.header`, `eventlog.algorithms`, `eventlog.no-sha256`, `eventlog.truncated`, `eventlog.digests`,
    `eventlog.pcr-index`, `eventlog.locality`, `eventlog.too-many`.
    """
    if not untrusted:
        raise Rejected("eventlog.empty", "zero bytes: the machine showed no firmware log")
    if len(untrusted) > MAX_EVENT_LOG_BYTES:
        raise Rejected("eventlog.too-large", f"{len(untrusted)} bytes, at most {MAX_EVENT_LOG_BYTES}")
    algorithms, at = _header(untrusted)
    events = _events(untrusted, at, algorithms)
    return EventLog(tuple(events), _startup_locality(events), sha256(untrusted).digest())


def _header(untrusted: bytes) -> tuple[list[tuple[int, int]], int]:
    """Read the first record, in the old SHA-1 layout, with the table of algorithms (PFP 10.4.5.1)."""
    if len(untrusted) < _FIRST.size:
        raise Rejected("eventlog.truncated", f"offset 0, event 0: {len(untrusted)} bytes")
    pcr, kind, _, size = _FIRST.unpack_from(untrusted)
    end = _FIRST.size + size
    if end > len(untrusted):
        raise Rejected("eventlog.truncated", f"offset {_FIRST.size}, event 0: {size} bytes of data wanted")
    if untrusted[_FIRST.size : _FIRST.size + 16] != _SPEC_ID:
        # Logs without this record hold SHA-1 digests only.
        raise Rejected("eventlog.no-sha256", "offset 0, event 0: no Spec ID Event03, so a SHA-1 log")
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
    if all(algorithm != _SHA256 for algorithm, _ in algorithms):
        raise Rejected("eventlog.no-sha256", f"offset {table_at}, event 0: {algorithms}")
    return algorithms, end


def _events(untrusted: bytes, at: int, algorithms: list[tuple[int, int]]) -> list[Event]:
    """Read the TCG_PCR_EVENT2 records (PFP 10.2.2). All have the same digests in the same order, save by a quirk."""
    usual = Struct("<III" + "".join(f"H{size}s" for _, size in algorithms) + "I")
    order = [algorithm for algorithm, _ in algorithms]
    place = 4 + 2 * order.index(_SHA256)
    ids = slice(3, 3 + 2 * len(order), 2)
    sizes = dict(algorithms)
    length = len(untrusted)
    unpack, usual_size, count = usual.unpack_from, usual.size, len(order)
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
            pcr, kind, digest, size, data_at = _unusual(untrusted, at, index, sizes)
        end = data_at + size
        if end > length:
            detail = f"offset {data_at}, event {index}: {size} bytes of data wanted, {length - data_at} left"
            raise Rejected("eventlog.truncated", detail)
        # EV_NO_ACTION extends nothing and may name no PCR at all (seen in the field: 0xFFFFFFFF).
        if pcr >= PCR_COUNT and not (kind == EV_NO_ACTION and pcr == NO_PCR):
            raise Rejected("eventlog.pcr-index", f"offset {at}, event {index}: PCR {pcr}")
        events.append(Event(index, pcr, kind, digest, untrusted[data_at:end]))
        at = end
    return events


def _unusual(
    untrusted: bytes, at: int, index: int, sizes: dict[int, int]
) -> tuple[int, int, bytes, int, int]:
    """Read a record whose digests are fewer or in another order; SHA-256 must be there, nothing twice."""
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
    if _SHA256 not in digests:
        raise Rejected("eventlog.digests", f"offset {at}, event {index}: no SHA-256 digest")
    (size,) = _U32.unpack_from(untrusted, at)
    return pcr, kind, digests[_SHA256], size, at + 4


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


def start_value(pcr: int, startup_locality: int = 0) -> bytes:
    """Return what a PCR holds after a reset, before anything extends it (PFP 3.3.1; TPM 2.0 Part 1, 17.4)."""
    if pcr in _DYNAMIC:
        return b"\xff" * 32
    return (startup_locality if pcr == 0 else 0).to_bytes(32, "big")


def replay(log: EventLog) -> dict[int, bytes]:
    """Return the SHA-256 PCR values that the log leads to, for each PCR that it extends."""
    pcrs: dict[int, bytes] = {}
    for event in log.events:
        if event.type == EV_NO_ACTION:
            continue
        pcr = event.pcr
        value = pcrs.get(pcr) or start_value(pcr, log.startup_locality)
        pcrs[pcr] = sha256(value + event.sha256).digest()
    return pcrs


def explain(log: EventLog, quoted_pcrs: Mapping[int, bytes], runtime_pcrs: Collection[int]) -> list[Finding]:
    """Return a finding `eventlog.replay` for each quoted PCR whose value the log does not lead to.

    `runtime_pcrs` are extended after the log ends (10 by IMA; 9, 11, 12, 15 by systemd), so no log explains their
    value. A PCR that the log never extends must hold its start value.
    """
    replayed = replay(log)
    findings = []
    for pcr in sorted(quoted_pcrs):
        wanted = replayed.get(pcr) or start_value(pcr, log.startup_locality)
        if pcr not in runtime_pcrs and quoted_pcrs[pcr] != wanted:
            detail = f"PCR {pcr}: the log leads to {wanted.hex()}, the TPM holds {quoted_pcrs[pcr].hex()}"
            findings.append(Finding(code="eventlog.replay", detail=detail, pcr=pcr))
    return findings
