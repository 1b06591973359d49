"""What holds for the whole suite."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what thousands of collected tests hold out of the garbage collector's sight.

    Both programs run with a small heap; without this every full collection walks the suite's own for a second, which a
    test of a promise in milliseconds would take for the program's.
    """
    gc.collect()
    gc.freeze()
