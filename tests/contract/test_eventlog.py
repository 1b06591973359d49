"""Part L of the attacks, against `contract.eventlog` and `contract.eventdata`, on logs of real boots."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import pytest

from contract import eventtypes
from contract.errors import Rejected
from contract.eventdata import covered, describe, oddities
from contract.eventlog import SHA1, EventLog, banks_of, coverage, explain, parse_event_log, replay
from tests.contract.eventforge import (
    GLOBAL,
    SHA256_LIST,
    header,
    keys,
    no_action,
    old_record,
    record,
    sbat_level,
    secure_boot,
    separators,
    signature_list,
    variable_data,
)
from tests.contract.eventwitness import LOGS, agrees_with_tpm2_eventlog
from tests.contract.forge import CASES, Case

RUNTIME = (10, 11, 12, 13, 15)


def refused(code: str, log: bytes, bank: int = 0x0B) -> str:
    with pytest.raises(Rejected) as caught:
        parse_event_log(log, bank)
    assert caught.value.code == code
    return caught.value.detail


def codes(log: bytes) -> list[str]:
    return [finding.code for finding in oddities(parse_event_log(log))]


def edited(case: Case, old: bytes, new: bytes) -> EventLog:
    """Return the case's log with bytes exchanged for as many others."""
    raw = case.read("eventlog.bin")
    assert raw.count(old) >= 1
    assert len(old) == len(new)
    return parse_event_log(raw.replace(old, new))


@pytest.mark.parametrize("name", CASES)
def test_recorded_logs_lead_to_the_recorded_pcrs(name: str) -> None:
    case = Case(name)
    log = parse_event_log(case.read("eventlog.bin"))
    assert explain(log, case.pcrs, RUNTIME) == []
    assert oddities(log) == []


@pytest.mark.parametrize("path", LOGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_tpm2_eventlog_agrees_on_every_log(path: Path) -> None:
    agrees_with_tpm2_eventlog(path)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_l17_logs_of_real_machines_hold_nothing_odd(path: Path) -> None:
    log = parse_event_log(path.read_bytes())
    assert oddities(log) == []
    assert all(describe(event).isprintable() for event in log.events)


def test_l17_event_without_a_pcr_extends_nothing() -> None:
    plain = header() + separators()
    log = parse_event_log(plain + no_action(0xFFFFFFFF, b"vendor"))
    assert replay(log) == replay(parse_event_log(plain))
    refused("eventlog.pcr-index", plain + record(0xFFFFFFFF, eventtypes.EV_ACTION, b"vendor"))
    refused("eventlog.pcr-index", plain + no_action(24, b"vendor"))


def test_l17_stray_byte_of_older_shim_is_known() -> None:
    data = struct.pack("<16sQQ", b"g" * 16, 4, 3) + "Shim".encode("utf-16-le") + b"abc"
    kind = eventtypes.EV_EFI_VARIABLE_AUTHORITY
    assert codes(header() + separators() + record(7, kind, data + b"\0", hashed=data)) == []
    assert codes(header() + separators() + record(7, kind, data + b"\0\0", hashed=data)) == ["eventlog.data"]


def test_l17_pcrs_extended_at_run_time_are_no_finding() -> None:
    case = Case("good-rsa")
    log = parse_event_log(case.read("eventlog.bin"))
    quoted = {**case.all_pcrs, 9: bytes(32), 11: b"r" * 32}
    assert [f.pcr for f in explain(log, quoted, RUNTIME)] == [9]
    assert explain(log, quoted, (9, *RUNTIME)) == []


def test_l01_replay_that_differs_from_the_pcrs_is_found() -> None:
    case = Case("good-rsa")
    other = parse_event_log(Case("cmdline-changed").read("eventlog.bin"))
    found = explain(other, case.pcrs, RUNTIME)
    assert [(f.code, f.pcr) for f in found] == [("eventlog.replay", 8), ("eventlog.replay", 9)]
    untouched = parse_event_log(header() + separators())
    assert [f.pcr for f in explain(untouched, {5: bytes(32), 9: b"x" * 32, 14: bytes(32)}, ())] == [5, 9]


def test_l02_event_type_swapped_to_an_ignored_one_is_found() -> None:
    case = Case("good-rsa")
    raw = bytearray(case.read("eventlog.bin"))
    at = raw.index(struct.pack("<III", 9, eventtypes.EV_IPL, 3))
    raw[at + 4 : at + 8] = struct.pack("<I", eventtypes.EV_NO_ACTION)
    found = explain(parse_event_log(bytes(raw)), case.pcrs, RUNTIME)
    assert [(f.code, f.pcr) for f in found] == [("eventlog.replay", 9)]


def test_l02_the_exchanged_type_is_named() -> None:
    case = Case("good-rsa")
    raw = bytearray(case.read("eventlog.bin"))
    at = raw.index(struct.pack("<III", 9, eventtypes.EV_IPL, 3))
    raw[at + 4 : at + 8] = struct.pack("<I", eventtypes.EV_NO_ACTION)
    found = explain(parse_event_log(bytes(raw)), case.pcrs, RUNTIME)
    assert [f.event for f in found] == [33]
    assert found[0].detail.endswith("event 33 has a digest and a type that extends nothing")


@pytest.mark.parametrize(
    "kind", [eventtypes.EV_POST_CODE, eventtypes.EV_ACTION, eventtypes.EV_EFI_VARIABLE_AUTHORITY]
)
def test_l02_a_separator_hides_behind_no_other_type(kind: int) -> None:
    hidden = record(7, kind, b"vendor", hashed=bytes(4))
    rest = separators(7) + secure_boot() + record(7, eventtypes.EV_SEPARATOR, bytes(4))
    found = codes(header() + secure_boot(b"\0") + hidden + rest)
    assert {"eventlog.type", "eventlog.secure-boot", "eventlog.separator"} <= set(found)


def test_l02_secure_boot_off_hides_behind_no_other_type() -> None:
    off = variable_data(GLOBAL, "SecureBoot", b"\0")
    hidden = record(7, eventtypes.EV_POST_CODE, b"vendor", hashed=off)
    found = codes(header() + hidden + secure_boot() + separators())
    assert "eventlog.type" in found
    assert "eventlog.secure-boot" in found
    lied = record(
        7, eventtypes.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(GLOBAL, "SecureBoot", b"\1"), hashed=off
    )
    assert "eventlog.data" in codes(header() + lied + separators())


def test_l02_a_debugger_and_the_exit_hide_behind_no_other_type() -> None:
    debugger = record(7, eventtypes.EV_POST_CODE, b"vendor", hashed=b"UEFI Debug Mode")
    assert set(codes(header() + debugger + separators())) == {"eventlog.type", "eventlog.debugger"}
    left = record(5, eventtypes.EV_POST_CODE, b"vendor", hashed=b"Exit Boot Services Returned with Success")
    late = record(4, eventtypes.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32))
    assert "eventlog.after-exit" in codes(header() + separators() + left + late)


def test_l03_data_that_no_digest_covers_is_only_the_logs_word() -> None:
    size = struct.pack("<I", 30)
    old, new = b"(hd0,gpt2)/boot/grub/grub.cfg\0", b"(hd0,gpt2)/boot/grub/evil.cfg\0"
    log = edited(Case("good-rsa"), size + old, size + new)
    assert oddities(log) == []
    changed = [event for event in log.events if b"evil.cfg" in event.untrusted_data and event.pcr == 9]
    assert [covered(event) for event in changed] == [None] * len(changed)
    images = [event for event in log.events if event.type == eventtypes.EV_EFI_BOOT_SERVICES_APPLICATION]
    assert [covered(event) for event in images] == [None, None]
    assert changed


def test_l04_data_edited_where_the_digest_covers_it_is_found() -> None:
    case = Case("good-rsa")
    log = edited(case, b"console=ttyS0 quiet ima_policy=tcb", b"console=ttyS0 quiet ima_policy=off")
    assert explain(log, case.pcrs, RUNTIME) == []
    assert {f.code for f in oddities(log)} == {"eventlog.data"}
    action = edited(case, b"Exit Boot Services Invocation", b"Exit Boot Services Invocatiom")
    assert [f.code for f in oddities(action)] == ["eventlog.data"]


def test_l05_secure_boot_twice_or_after_the_separator_is_found() -> None:
    before = separators(7)
    end = record(7, eventtypes.EV_SEPARATOR, bytes(4))
    assert codes(header() + secure_boot() + before + end) == []
    assert codes(header() + secure_boot(b"\0") + secure_boot() + before + end) == ["eventlog.secure-boot"]
    assert codes(header() + before + end + secure_boot()) == ["eventlog.secure-boot"]


@pytest.mark.parametrize("pcr", range(8))
def test_l06_separator_missing_doubled_or_in_error_is_found(pcr: int) -> None:
    assert codes(header() + separators(pcr)) == ["eventlog.separator"]
    twice = separators() + record(pcr, eventtypes.EV_SEPARATOR, bytes(4))
    assert codes(header() + twice) == ["eventlog.separator"]
    error = separators(pcr) + record(pcr, eventtypes.EV_SEPARATOR, b"\1\0\0\0")
    assert codes(header() + error) == ["eventlog.separator"]


def test_l07_events_after_exit_boot_services_are_found() -> None:
    left = record(5, eventtypes.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")
    late = record(4, eventtypes.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32))
    assert codes(header() + separators() + late + left) == []
    assert codes(header() + separators() + left + late) == ["eventlog.after-exit"]


def test_l08_startup_locality_sets_the_start_of_pcr_0() -> None:
    def at(data: bytes) -> bytes:
        return no_action(0, b"StartupLocality\0" + data)

    for padding in (b"", b"\0", b"\0" * 7):
        log = parse_event_log(header() + at(b"\3" + padding) + separators())
        start = bytes(31) + b"\3"
        assert replay(log)[0] == hashlib.sha256(start + hashlib.sha256(bytes(4)).digest()).digest()
    for bad in (at(b""), at(b"\5"), at(b"\3\1"), at(b"\3") * 2, separators() + at(b"\3")):
        refused("eventlog.locality", header() + bad)
    elsewhere = no_action(1, b"StartupLocality\0\3")
    refused("eventlog.locality", header() + elsewhere)


@pytest.mark.parametrize(
    ("algorithms", "count"),
    [
        (((0x0B, 0),), None),
        (((0x0B, 65535),), None),
        (((0x0B, 31),), None),
        (((0x0B, 32), (0x0B, 32)), None),
        (((0x0B, 32), (0x99, 32)), None),
        (((0x0B, 32),), 2**32 - 1),
        (((0x0B, 32),), 9),
        (((0x0B, 32),), 0),
    ],
)
def test_l09_bad_algorithm_table_is_rejected(
    algorithms: tuple[tuple[int, int], ...], count: int | None
) -> None:
    refused("eventlog.algorithms", header(algorithms, count=count))


def test_l09_table_that_does_not_fit_its_record_is_rejected() -> None:
    refused("eventlog.header", header(count=3))
    refused("eventlog.header", header(vendor=b"\5"))
    refused("eventlog.header", header(vendor=b""))


@pytest.mark.parametrize("name", ["good-rsa", "secureboot-on"])
def test_l10_cut_short_at_every_byte_is_rejected_or_found(name: str) -> None:
    case = Case(name)
    raw = case.read("eventlog.bin")
    borders = 0
    for end in range(len(raw)):
        try:
            log = parse_event_log(raw[:end])
        except Rejected as rejected:
            assert rejected.code in ("eventlog.empty", "eventlog.truncated")
            continue
        borders += 1
        assert explain(log, case.pcrs, RUNTIME), f"cut at {end} went unseen"
    assert borders == len(parse_event_log(raw).events)


def test_l10_the_detail_tells_where() -> None:
    raw = Case("good-rsa").read("eventlog.bin")
    assert re.search(r"offset \d+, event 49", refused("eventlog.truncated", raw[:-1]))


def test_l11_sha1_only_log_is_rejected() -> None:
    refused("eventlog.no-sha256", header(((0x04, 20),)))
    old = struct.pack("<II20sI", 0, 8, b"", 4) + bytes(4)
    refused("eventlog.no-sha256", old * 3)


OLD = (
    old_record(0, eventtypes.EV_S_CRTM_VERSION, b"v1")
    + b"".join(old_record(pcr, eventtypes.EV_SEPARATOR, bytes(4)) for pcr in range(8))
    + old_record(4, eventtypes.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
)


def test_l11_a_sha1_log_is_read_for_its_own_bank_only() -> None:
    assert banks_of(OLD) == (SHA1,)
    log = parse_event_log(OLD, SHA1)
    assert [event.index for event in log.events] == list(range(10))
    assert all(event.covered for event in log.events)
    start = hashlib.sha1(bytes(20) + hashlib.sha1(bytes(4)).digest()).digest()
    assert replay(log)[7] == start
    assert oddities(log) == []
    # Its digests are no evidence of the SHA-256 bank: no PCR is explained.
    assert [f.pcr for f in explain(log, {7: start.ljust(32, b"\0"), 9: bytes(32)}, ())] == [7, 9]
    refused("eventlog.no-sha256", OLD)
    refused("eventlog.no-bank", OLD, 0x0C)
    refused("eventlog.no-bank", header(), 0x0C)
    refused("eventlog.no-bank", header(((0x0B, 32), (0x12, 32))), 0x12)


def test_l10_a_sha1_log_cut_short_is_rejected() -> None:
    borders = 0
    for end in range(1, len(OLD)):
        try:
            parse_event_log(OLD[:end], SHA1)
            borders += 1
        except Rejected as rejected:
            assert rejected.code == "eventlog.truncated"
    assert borders == 9


@pytest.mark.parametrize(("bank", "size"), [(0x04, 20), (0x0B, 32), (0x0C, 48)])
def test_every_bank_leads_to_the_recorded_pcrs(bank: int, size: int) -> None:
    case = Case("good-rsa")
    raw = case.read("eventlog.bin")
    assert banks_of(raw) == (0x04, 0x0B, 0x0C)
    log = parse_event_log(raw, bank)
    name = {20: "sha1", 32: "sha256", 48: "sha384"}[size]
    shown = case.read("pcrs.txt").decode().partition(f"{name}:")[2]
    held = {
        int(p): bytes.fromhex(v) for p, v in re.findall(r"^\s+(\d+)\s*: 0x([0-9A-Fa-f]+)$", shown, re.M)[:24]
    }
    assert all(value == held[pcr] for pcr, value in replay(log).items())
    assert oddities(log) == []
    assert explain(log, {pcr: held[pcr] for pcr in case.wanted}, RUNTIME) == []


def test_coverage_is_checked_both_ways() -> None:
    case = Case("good-rsa")
    log = parse_event_log(case.read("eventlog.bin"))
    quoted = {pcr: value for pcr, value in case.all_pcrs.items() if pcr in (0, 4, 7, 8, 10)} | {4: b"x" * 32}
    found = coverage(log, quoted, RUNTIME)
    assert (found.explained, found.runtime, found.unexplained) == ({0, 7, 8}, {10}, {4})
    assert found.unquoted == {1, 2, 3, 5, 6, 9, 14}


def test_l11_record_without_a_sha256_digest_is_rejected() -> None:
    sha1_only = struct.pack("<IIIH", 0, 1, 1, 4) + bytes(20) + struct.pack("<I", 0)
    refused("eventlog.digests", header() + sha1_only)
    for count in (0, 3, 2**32 - 1):
        refused("eventlog.digests", header() + struct.pack("<III", 0, 1, count) + bytes(200))
    twice = struct.pack("<III", 0, 1, 2) + (struct.pack("<H", 11) + bytes(32)) * 2 + bytes(4)
    refused("eventlog.digests", header() + twice)


def test_a_record_with_its_digests_in_another_order_is_read() -> None:
    digests = struct.pack("<H", 11) + b"2" * 32 + struct.pack("<H", 4) + b"1" * 20
    log = parse_event_log(header() + struct.pack("<III", 3, 1, 2) + digests + struct.pack("<I", 1) + b"d")
    assert (log.events[0].sha256, log.events[0].untrusted_data) == (b"2" * 32, b"d")


def with_dbx(value: bytes) -> bytes:
    return header() + keys(dbx=value) + separators()


@pytest.mark.parametrize(
    ("list_size", "header_size", "entry_size"),
    [
        (27, 0, 48),
        (0, 0, 48),
        (2**32 - 1, 0, 48),
        (28 + 48, 2**32 - 1, 48),
        (28 + 48, 49, 48),
        (28 + 48, 0, 0),
        (28 + 48, 0, 16),
        (28 + 48, 0, 47),
        (28 + 49, 0, 48),
        (28 + 47, 0, 48),
        (28 + 48, 0, 2**32 - 1),
    ],
)
def test_l12_signature_lists_that_underflow_are_found(
    list_size: int, header_size: int, entry_size: int
) -> None:
    good = signature_list(SHA256_LIST, bytes(32))
    bad = good[:16] + struct.pack("<III", list_size, header_size, entry_size) + good[28:]
    assert codes(with_dbx(good)) == []
    assert codes(with_dbx(bad)) == ["eventlog.signatures"]
    assert codes(with_dbx(good[:-1])) == ["eventlog.signatures"]
    assert codes(with_dbx(good + b"\0" * 27)) == ["eventlog.signatures"]


@pytest.mark.parametrize(
    "text",
    [b"", b"shim,1\n", b"sbat\n", b"sbat,x,1\n", b"sbat,1,2\nshim,-1\n", b"sbat,1,2\ngrub,1\ngrub,2\n"],
)
def test_l12_revocation_levels_that_are_none_are_found(text: bytes) -> None:
    assert codes(header() + keys() + separators() + sbat_level(text)) == ["eventlog.sbat"]


@pytest.mark.parametrize("chars", [2**64 - 1, 2**63, 2**32, 11, 9])
def test_l12_name_lengths_that_do_not_fit_are_found(chars: int) -> None:
    raw = header() + secure_boot(name_chars=chars) + separators()
    assert codes(raw) == ["eventlog.secure-boot"]
    assert describe(parse_event_log(raw).events[0]) == "lengths that do not fit"


def test_l13_no_log_or_zero_bytes_is_rejected() -> None:
    refused("eventlog.empty", b"")
    refused("eventlog.truncated", b"\0")
    refused("eventlog.no-sha256", bytes(4096))


def test_l14_firmware_debugger_is_found() -> None:
    debugger = record(7, eventtypes.EV_EFI_ACTION, b"UEFI Debug Mode")
    assert codes(header() + debugger + separators()) == ["eventlog.debugger"]


def test_l16_newline_in_the_kernel_command_line_stays_on_one_line() -> None:
    text = b"quiet\nPCR 8: all good\x1b[2J\xe2\x80\xae"
    data = b"kernel_cmdline: " + text + b"\0"
    log = parse_event_log(header() + record(8, eventtypes.EV_IPL, data, hashed=text))
    shown = describe(log.events[0])
    assert shown == r"kernel_cmdline: quiet\nPCR 8: all good\x1b[2J" + "\\u202e"
    assert covered(log.events[0]) is True


def test_time_and_memory_are_bounded() -> None:
    smallest = struct.pack("<III", 0, 1, 2) + struct.pack("<H", 4) + bytes(20)
    smallest += struct.pack("<H", 11) + bytes(32) + bytes(4)
    refused("eventlog.too-many", header() + smallest * 9000)
    refused("eventlog.too-large", header() + bytes(2**20))
