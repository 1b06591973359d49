"""One `stat` for a file that was judged before: real files, and everything that must not pass for the same one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from agent.glance import Glance, Identity


def identity_of(path: Path) -> Identity:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def make(root: Path, name: str = "srv/a/file") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    return path


def rewritten_with_its_old_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_copy(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def linked_to(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def in_a_linked_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("b"))
    path.parent.symlink_to("b")


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: list[Callable[[Path], None]] = [
    rewritten_with_its_old_time,
    lambda path: path.chmod(0o600),
    replaced_by_a_copy,
    linked_to,
    in_a_linked_folder,
    made_a_folder,
    Path.unlink,
]


def test_files_that_nobody_touched_are_the_same_in_one_folder_and_the_next(tmp_path: Path) -> None:
    files = [make(tmp_path, name) for name in ("srv/a/one", "srv/a/two", "srv/b/one", "top")]
    with Glance(tmp_path) as glance:
        assert all(glance.same(f"/{file.relative_to(tmp_path)}", identity_of(file)) for file in files)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_done_to_a_file_it_is_not_the_same(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = make(tmp_path)
    identity = identity_of(path)
    time.sleep(0.02)  # the kernel's time of change goes by ticks
    change(path)
    with Glance(tmp_path) as glance:
        assert not glance.same("/srv/a/file", identity)


def test_a_folder_that_is_missing_hides_no_later_one_and_nothing_stays_open(tmp_path: Path) -> None:
    path = make(tmp_path)
    with Glance(tmp_path) as glance:
        assert not glance.same("/srv/missing/file", identity_of(path))
        assert glance.same("/srv/a/file", identity_of(path))
        assert open_below(tmp_path) != []
    assert open_below(tmp_path) == []


def open_below(folder: Path) -> list[str]:
    """Return what this process has open there; what other tests left open may close at any time."""
    found = []
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{each}"))  # noqa: PTH115
    return [name for name in found if name.startswith(str(folder))]
