"""What holds for the whole suite."""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling
    from xdist.workermanage import WorkerController

_ORDER = ("tests/flow/", "tests/agent/", "tests/lab/test_smoke.py")
"""After what must be alone: that comes first, while the processes are small and no guest is up."""
_ROOM: pytest.StashKey[tempfile.TemporaryDirectory[str]] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell each process of a run where all of them take turns."""
    if _ROOM not in node.config.stash:
        node.config.stash[_ROOM] = tempfile.TemporaryDirectory(prefix="ringfence-tests-")
    node.workerinput["turns"] = node.config.stash[_ROOM].name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """A file's tests in one process, in the order in which they were collected."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            alone = Path(config.stash[_ROOM].name, "alone").read_text().splitlines()
            return "alone" if nodeid in alone else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the work: what must be alone first, one after the other; what takes long not at the end."""
    turns = getattr(config, "workerinput", {}).get("turns")
    if turns is None:  # in order, as one wants it while looking for a fault
        return
    items.sort(key=_place)
    mine = Path(turns, f"alone.{os.getpid()}")
    mine.write_text("".join(f"{item.nodeid}\n" for item in items if _is_alone(item)))
    mine.rename(Path(turns, "alone"))


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _place(item: pytest.Item) -> int:
    if _is_alone(item):
        return 0
    begins = (n for n, begin in enumerate(_ORDER, 1) if item.nodeid.startswith(begin))
    return next(begins, len(_ORDER) + 1)


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
    alone = _is_alone(item)
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
