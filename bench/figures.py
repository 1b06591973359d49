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


def per_second(work: Callable[[], object], *, seconds: float) -> float:
    """Return how often `work` runs in a second of this thread's processor time, after a short warm-up."""
    for _ in range(20):
        work()
    times, batch = 0, 20
    began = time.thread_time()
    while (took := time.thread_time() - began) < seconds:
        for _ in range(batch):
            work()
        times += batch
    return times / took
