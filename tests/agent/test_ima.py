"""Reading the IMA log: only from where it is wanted, also while it grows, and never pretending."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import Host
from agent.ima import ImaLog

LINES = [f"line {n}\n".encode() for n in range(50)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "binary_runtime_measurements"
    path.write_bytes(b"".join(LINES))
    return path


@pytest.fixture
def log(path: Path) -> Iterator[ImaLog]:
    log = ImaLog(Host(), str(path))
    yield log
    log.close()


def test_a_log_is_read_from_where_it_is_wanted_to_its_end(log: ImaLog, path: Path) -> None:
    whole = path.read_bytes()
    assert log.read(0, max_bytes=1 << 20) == whole
    assert log.read(7, max_bytes=1 << 20) == whole[7:]
    assert log.read(7, max_bytes=10) == whole[7:17]
    assert log.read(len(whole), max_bytes=10) == b""
    assert log.look(7) == (7, len(whole) - 7, ())


def test_new_lines_are_read_without_reading_the_old_ones_again(
    log: ImaLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the kernel begins at the offset, over a file that stays open."""
    asked: list[tuple[int, int]] = []
    real = os.pread

    def pread(file: int, count: int, offset: int) -> bytes:
        asked.append((file, offset))
        return real(file, count, offset)

    end = len(log.read(0, max_bytes=1 << 20) or b"")
    monkeypatch.setattr(os, "pread", pread)
    with path.open("ab") as file:
        file.write(b"new\n")
    assert log.read(end, max_bytes=1 << 20) == b"new\n"
    assert min(offset for _, offset in asked) == end
    assert len({file for file, _ in asked}) == 1


def test_m05_an_offset_past_the_end_gives_nothing(log: ImaLog, path: Path) -> None:
    assert log.read(10**6, max_bytes=10) == b""
    assert log.look(10**6) == (10**6, 0, ())


def test_no_log_is_told_and_one_that_comes_later_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "later"
    log = ImaLog(Host(), str(path))
    assert log.read(0, max_bytes=10) is None
    assert log.look(0).available_bytes is None
    path.write_bytes(b"x")
    assert log.look(0).available_bytes == 1
    path.unlink()
    assert log.look(0).available_bytes is None
    path.mkdir()
    assert log.look(0).available_bytes is None
    log.close()


def test_a_log_of_another_boot_under_the_same_name_is_seen(log: ImaLog, path: Path) -> None:
    assert log.read(0, max_bytes=5) == b"line "
    other = path.with_suffix(".new")
    other.write_bytes(b"after the reboot")
    other.rename(path)
    assert log.read(0, max_bytes=5) == b"after"


def test_reads_that_give_a_page_at_a_time_are_put_together(
    log: ImaLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As securityfs does, whatever is asked for."""
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, offset: real(file, min(count, 13), offset))
    assert log.read(3, max_bytes=1 << 20) == path.read_bytes()[3:]
