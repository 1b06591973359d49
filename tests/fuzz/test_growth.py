"""Time and memory of every parser grow with the input and no faster, up to each one's cap."""

from __future__ import annotations

import gc
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest

from contract import eventtypes as ev
from contract.errors import Rejected
from contract.eventlog import MAX_EVENTS
from contract.messages import MAX_EVENT_LOG_BYTES
from tests.contract import eventforge
from tests.contract.forge import PCRS
from tests.contract.imaforge import Log
from tests.fuzz.table import HARNESSES

KIB = 1024
GROWTH = 4
SLACK = 2.5
"""How far from linear a measurement may be on a busy machine; a quadratic parser is off by four."""
BYTES_A_BYTE = 60
"""Memory at most for each byte of input: Python objects are large beside two-byte fields."""


def tiny_events(size: int) -> bytes:
    one = eventforge.record(4, ev.EV_ACTION, b"")
    return eventforge.header() + one * min(MAX_EVENTS, size // len(one))


def signatures(size: int) -> bytes:
    hashes = (number.to_bytes(32, "big") for number in range((size - KIB) // 48))
    entries = eventforge.signature_list(eventforge.SHA256_LIST, *hashes)
    data = eventforge.variable_data(eventforge.GLOBAL, "dbx", entries)
    return eventforge.header() + eventforge.record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, data)


def empty_lists(size: int) -> bytes:
    empty = struct.pack("<16sIII", eventforge.SHA256_LIST, 28, 0, 48)
    data = eventforge.variable_data(eventforge.GLOBAL, "dbx", empty * ((size - KIB) // 28))
    return eventforge.header() + eventforge.record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, data)


def boot_options(size: int) -> bytes:
    one = eventforge.record(
        1, ev.EV_EFI_VARIABLE_BOOT, eventforge.variable_data(eventforge.GLOBAL, "Boot0001", bytes(8))
    )
    return eventforge.header() + one * min(MAX_EVENTS, size // len(one))


def device_path(size: int) -> bytes:
    image = bytes(24) + (size - KIB).to_bytes(8, "little") + b"\4\4\4\0" * ((size - KIB) // 4)
    return eventforge.header() + eventforge.record(4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image)


def command_line(size: int) -> bytes:
    return eventforge.header() + eventforge.record(
        8, ev.EV_IPL, b"kernel_cmdline: " + b"a " * (size // 2 - KIB)
    )


def tiny_lines(size: int) -> bytes:
    log = Log(PCRS, template="ima").file("f", b"d" * 20)
    return log.lines[0] + log.lines[1] * (size // len(log.lines[1]))


def violations(size: int) -> bytes:
    log = Log(PCRS)
    log.line(log.data(b"/f", bytes(32)), sha1=bytes(20))
    return log.lines[0] + log.lines[1] * (size // len(log.lines[1]))


def different_lines(size: int) -> bytes:
    log = Log(PCRS)
    for number in range(size // 100):
        log.file(f"/usr/lib/{number}", number.to_bytes(32, "big"))
    return b"".join(log.lines)


def long_names(size: int) -> bytes:
    log = Log(PCRS)
    log.file("/" + "x/" * 2000, bytes(32))
    return log.lines[0] + log.lines[1] * (size // len(log.lines[1]))


def toml_rules(size: int) -> bytes:
    rules = "".join(f'"/usr/lib/{number}" = ["sha256:{number:064x}"]\n' for number in range(size // 110))
    return f"[ima.allow]\n{rules}".encode()


def toml_tables(size: int) -> bytes:
    return b"".join(b"[boot.a%d]\n" % number for number in range(size // 14))


def json_values(size: int) -> bytes:
    return b'{"sha256": {' + b", ".join(b'"%d": "aa"' % n for n in range(size // 14)) + b"}}"


CASES: list[tuple[str, Callable[[int], bytes], int]] = [
    ("event-log", tiny_events, MAX_EVENT_LOG_BYTES),
    ("event-log", signatures, MAX_EVENT_LOG_BYTES),
    ("event-log", empty_lists, MAX_EVENT_LOG_BYTES),
    ("event-log", boot_options, MAX_EVENT_LOG_BYTES),
    ("event-log", device_path, MAX_EVENT_LOG_BYTES),
    ("event-log", command_line, MAX_EVENT_LOG_BYTES),
    ("ima-log", tiny_lines, 1024 * KIB),
    ("ima-log", violations, 1024 * KIB),
    ("ima-log", different_lines, 1024 * KIB),
    ("ima-log", long_names, 4096 * KIB),
    ("policy", toml_rules, 400 * KIB),
    ("policy", toml_tables, 100 * KIB),
    ("pcr-values", json_values, 1024 * KIB),
    (
        "corim",
        lambda size: b"\xd9\x01\xf5" + b"\x9a" + (size // 2).to_bytes(4, "big") + b"\x80" * size,
        256 * KIB,
    ),
    ("frame", lambda size: b"\xdd" + size.to_bytes(4, "big") + b"\xc0" * size, 1024 * KIB),
    (
        "certificate",
        lambda size: b"\x30\x84" + size.to_bytes(4, "big") + b"\x30\x00" * (size // 2),
        256 * KIB,
    ),
]


@pytest.mark.parametrize(
    ("harness", "inflated", "cap"), CASES, ids=lambda part: getattr(part, "__name__", part)
)
def test_m09_time_and_memory_are_bounded_by_the_input(
    harness: str, inflated: Callable[[int], bytes], cap: int
) -> None:
    run = HARNESSES[harness]

    def seconds(raw: bytes) -> float:
        gc.collect()
        begun = time.process_time()
        with suppress(Rejected):
            run(raw)
        return time.process_time() - begun

    small, large = inflated(cap // GROWTH), inflated(cap)
    assert len(large) > 2 * len(small)
    before = min(seconds(small) for _ in range(3))
    after = min(seconds(large) for _ in range(2))
    assert after < GROWTH * SLACK * before + 0.05, f"{before:.3f} s, then {after:.3f} s"
    tracemalloc.start()
    with suppress(Rejected):
        run(small)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BYTES_A_BYTE * len(small) + 4 * KIB * KIB, f"{peak} bytes for {len(small)}"
