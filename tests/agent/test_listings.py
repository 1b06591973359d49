"""Folders that are not read again while nothing was put into them or taken out: what moves their ctime, and what does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import tree as trees
from agent.tree import Entry, Tree

DAY_NS = 86400 * 10**9


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """How often a folder was really read."""
    seen: list[object] = []
    real = os.scandir

    def counted(folder: int) -> object:
        seen.append(folder)
        return real(folder)

    monkeypatch.setattr(trees.os, "scandir", counted)
    return seen


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much time pass by the wall clock that nothing can follow within one tick, and one tick in truth.

    Without that a tmpfs may give a folder the same ctime again: what is taken out of it bears the time of the last tick.
    """
    time.sleep(0.02)
    now = time.time_ns() + DAY_NS
    monkeypatch.setattr(trees.time, "time_ns", lambda: now)


def filled(folder: Path) -> Tree:
    (folder / "units").mkdir()
    (folder / "units/a.service").write_text("a")
    (folder / "units/b.service").symlink_to("/dev/null")
    return Tree(folder)


WANTED = [Entry("a.service", "file", ""), Entry("b.service", "link", "/dev/null")]


def test_a_folder_in_which_nothing_changed_is_read_once(
    tmp_path: Path, reads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = filled(tmp_path)
    settled(monkeypatch)
    assert tree.entries("/units") == WANTED
    tree.entries("/units").clear()  # what is given out is the caller's
    (tmp_path / "units/a.service").write_text("its content is not in the listing")
    assert tree.entries("/units") == WANTED
    assert len(reads) == 1


def swapped(folder: Path) -> None:
    (folder / "new").symlink_to("/srv/other")
    (folder / "new").rename(folder / "b.service")


def with_its_time_put_back(folder: Path) -> None:
    before = folder.stat()
    (folder / "c.service").touch()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def whole_folder(folder: Path) -> None:
    folder.rename(folder.parent / "old")
    folder.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "c.service").touch(),
        lambda folder: (folder / "a.service").unlink(),
        lambda folder: (folder / "a.service").rename(folder / "z.service"),
        swapped,
        with_its_time_put_back,
        whole_folder,
    ],
)
def test_d10_what_is_put_into_a_folder_is_seen_with_the_next_look(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = filled(tmp_path)
    settled(monkeypatch)
    before = tree.entries("/units")
    change(tmp_path / "units")
    found = tree.entries("/units")
    assert found != before
    assert found == Tree(tmp_path).entries("/units")


def test_d10_a_folder_that_changed_just_now_is_read_again(tmp_path: Path, reads: list[object]) -> None:
    tree = filled(tmp_path)  # a change could follow within the same tick, and leave ctime as it is
    for _ in range(3):
        assert tree.entries("/units") == WANTED
    assert len(reads) == 3


def test_d10_a_folder_is_read_again_after_ten_minutes_whatever_its_time_says(
    tmp_path: Path, reads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = filled(tmp_path)
    settled(monkeypatch)
    tree.entries("/units")
    now = time.monotonic() + trees.REREAD_S
    monkeypatch.setattr(trees.time, "monotonic", lambda: now)
    tree.entries("/units")
    assert len(reads) == 2


def test_d10_what_tells_no_change_is_always_read(
    reads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    tree = Tree(Path("/"))
    for _ in range(2):
        tree.entries("/proc/sys")
        tree.entries("/sys/kernel")
    assert len(reads) == 4


def test_names_that_are_kept_are_bounded(
    tmp_path: Path, reads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = filled(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/c").touch()
    settled(monkeypatch)
    monkeypatch.setattr(trees, "MAX_REMEMBERED", 2)
    for _ in range(2):
        assert tree.entries("/units") == WANTED
        assert tree.entries("/more") == [Entry("c", "file", "")]
    assert len(reads) == 4
