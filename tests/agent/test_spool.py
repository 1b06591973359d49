"""Events in order, within a fixed space, through crashes and a full disk (ATTACKS a06)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.responses import Told
from agent.spool import Spool

NODE = "press-1"
SMALL = 64 * 1024


def told(n: int) -> Told:
    return Told(kind="test.event", severity="info", summary=f"event {n}", detail={"n": str(n)})


def opened(folder: Path, *, max_bytes: int = SMALL, now: float = 1000.0) -> Spool:
    return Spool(folder, NODE, max_bytes=max_bytes, now=now)


def numbers(spool: Spool) -> list[int]:
    return [int(event.detail["n"]) for event in spool.peek(1_000_000, 1 << 40)]


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a06_a_week_offline_keeps_order_within_a_fixed_space(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    for n in range(1500):
        spool.append([told(n)], 1000.0 + n)
        if n % 200 == 0:
            assert disk_bytes(tmp_path / "spool") <= SMALL + 4096
    kept = numbers(spool)
    assert kept == list(range(kept[0], 1500)), "in order, without a hole, the newest kept"
    assert spool.dropped == kept[0], "what went is counted"
    again = opened(tmp_path / "spool", now=9.0)
    assert numbers(again) == kept
    assert again.dropped == spool.dropped
    events = again.peek(1_000_000, 1 << 40)
    sequence = [event.seq for event in events]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))


def test_a06_acknowledged_events_go_and_numbers_are_never_used_twice(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    events = spool.append([told(n) for n in range(10)], 1.0)
    spool.ack(events[6].seq)
    assert numbers(spool) == [7, 8, 9]
    spool.ack(events[2].seq)
    spool.ack(events[-1].seq + 100)
    assert numbers(spool) == [7, 8, 9], "old and invented acknowledgements change nothing"
    spool.ack(events[-1].seq)
    again = opened(tmp_path / "spool", now=5.0)
    (later,) = again.append([told(10)], 2.0)
    assert later.seq == events[-1].seq + 1


def test_a06_lost_folder_begins_above_what_was_sent_before(tmp_path: Path) -> None:
    first = opened(tmp_path / "a", now=1000.0).append([told(0)], 1.0)
    second = opened(tmp_path / "b", now=2000.0).append([told(0)], 1.0)
    assert second[0].seq > first[0].seq + 100_000


def test_a06_record_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    spool.append([told(n) for n in range(5)], 1.0)
    (segment,) = (tmp_path / "spool").glob("*.log")
    whole = segment.read_bytes()
    for cut in range(1, 40, 3):
        segment.write_bytes(whole[:-cut])
        again = opened(tmp_path / "spool")
        assert numbers(again) == [0, 1, 2, 3]
        again.append([told(4)], 1.0)
        assert numbers(opened(tmp_path / "spool")) == [0, 1, 2, 3, 4]
        segment.write_bytes(whole)


def test_spool_of_another_node_is_set_aside(tmp_path: Path) -> None:
    opened(tmp_path / "spool").append([told(1)], 1.0)
    other = Spool(tmp_path / "spool", "press-2", max_bytes=SMALL, now=1.0)
    assert numbers(other) == []
    assert len(list(tmp_path.glob("spool.foreign-*"))) == 1


def test_full_disk_loses_nothing_that_fits_in_memory(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], check=True)
    try:
        spool = opened(mount / "spool")
        spool.append([told(0)], 1.0)
        ballast = mount / "ballast"
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(descriptor, b"x" * 4096):
                pass
        os.close(descriptor)
        for n in range(1, 200):
            spool.append([told(n)], 1.0)
        assert numbers(spool) == list(range(200))
        ballast.unlink()
        spool.flush()
        assert numbers(opened(mount / "spool")) == list(range(200))
    finally:
        subprocess.run(["umount", mount], check=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5), st.just("ack"), st.just("open")), max_size=25))
def test_a06_any_order_of_append_ack_and_restart_keeps_order(script: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = opened(Path(folder) / "spool")
        expected: list[int] = []
        n = 0
        for action in script:
            if action == "ack" and expected:
                events = spool.peek(2, 1 << 40)
                spool.ack(events[-1].seq)
                del expected[: len(events)]
            elif action == "open":
                spool = opened(Path(folder) / "spool", now=1.0)
            elif isinstance(action, int):
                spool.append([told(n + i) for i in range(action)], 1.0)
                expected += range(n, n + action)
                n += action
            assert numbers(spool) == expected
