"""One measured figure beside its reference, and the arithmetic that all benches share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec


class Figure(msgspec.Struct):
    """A line of results.json. `ratio` is value / reference_value, where there is a reference."""

    name: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None


def figure(
    name: str, value: float, unit: str, reference: str = "", reference_value: float | None = None
) -> Figure:
    """Return a figure with its ratio worked out."""
    ratio = value / reference_value if reference_value else None
    return Figure(name, value, unit, reference, reference_value, ratio)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


_TURNS = 12


def side_by_side(
    work: Callable[[], object], reference: Callable[[], object], *, seconds: float
) -> tuple[float, float]:
    """Return how often each runs in a second of this thread's processor time; `seconds` for each, after a warm-up.

    They take short turns, so that a machine that slows down for a while slows both.
    """
    both = (work, reference)
    times, took = [0, 0], [0.0, 0.0]
    for each in both:
        for _ in range(20):
            each()
    for _ in range(_TURNS):
        for number, each in enumerate(both):
            began = time.thread_time()
            while (now := time.thread_time() - began) < seconds / _TURNS:
                for _ in range(10):
                    each()
                times[number] += 10
            took[number] += now
    return times[0] / took[0], times[1] / took[1]
