"""Bounded output: however much is unknown on a machine, a report stays short. Not a probe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from agent.probes import Difference


def bounded(what: str, differences: Iterable[Difference], limit: int) -> Iterator[Difference]:
    """Yield the first `limit` differences; the rest becomes one, under the key `what`, with their number."""
    rest = iter(differences)
    yield from islice(rest, limit)
    more = sum(1 for _ in rest)
    if more:
        yield Difference(what, "none", f"{more} more than the {limit} that are named")
