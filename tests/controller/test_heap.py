"""The collector's pauses: what is alive is looked at once, and circles that ended are found when it is due."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from controller.heap import LEAST_ENDED, Heap, short_pauses


@pytest.fixture(autouse=True)
def _frozen_again() -> Iterator[None]:
    """What these tests thaw is the whole suite's, and later tests would wait for it to be looked at."""
    yield
    gc.collect()
    gc.freeze()


class Circle:
    def __init__(self) -> None:
        self.self = self


def took_s() -> float:
    begun = time.perf_counter()
    gc.collect()
    return time.perf_counter() - begun


@pytest.mark.alone
def test_a_full_collection_passes_over_what_an_earlier_one_left_alive() -> None:
    kept = [{n: [n]} for n in range(300_000)]
    gc.collect()
    whole_s = took_s()
    with short_pauses():
        gc.collect()
        assert gc.get_freeze_count() > len(kept)
        assert took_s() < whole_s / 4
        lost = weakref.ref(Circle())
        gc.collect()
        assert lost() is None, "what came since is still looked at"
    assert gc.get_freeze_count() == 0


def test_circles_that_ended_out_of_sight_are_collected_once_many_sessions_have_ended() -> None:
    heap = Heap()
    with short_pauses():
        circle = Circle()
        gc.collect()
        lost = weakref.ref(circle)
        del circle
        gc.collect()
        assert lost() is not None
        assert not heap.tidy(LEAST_ENDED - 1, 0)
        assert not heap.tidy(LEAST_ENDED, 2 * LEAST_ENDED + 2)
        assert heap.tidy(LEAST_ENDED, 10)
        assert lost() is None
        assert not heap.tidy(LEAST_ENDED + 1, 10)
        assert gc.get_freeze_count() > 0
