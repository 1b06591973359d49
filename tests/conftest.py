"""What holds for the whole suite."""

from __future__ import annotations

import fcntl
import gc
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

_ROOM: pytest.StashKey[tempfile.TemporaryDirectory[str]] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell each process of a run where all of them take turns."""
    if _ROOM not in node.config.stash:
        node.config.stash[_ROOM] = tempfile.TemporaryDirectory(prefix="ringfence-tests-")
    node.workerinput["turns"] = node.config.stash[_ROOM].name


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what thousands of collected tests hold out of the garbage collector's sight.

    Both programs run with a small heap; without this every full collection walks the suite's own for a second, which a
    test of a promise in milliseconds would take for the program's.
    """
    _out_of_sight()


def _out_of_sight() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let nothing run beside a test that is marked `alone`, in whichever process of the run."""
    turns = getattr(item.config, "workerinput", {}).get("turns")
    alone = item.get_closest_marker("alone") is not None
    if alone:  # what earlier tests left or thawed is the suite's as well
        _out_of_sight()
    if turns is None:  # one process runs everything
        return (yield)
    with Path(turns, "door").open("w") as door, Path(turns, "floor").open("w") as floor:
        # Whoever waits for the floor keeps the door shut, so nobody is overtaken.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(floor, fcntl.LOCK_UN)
