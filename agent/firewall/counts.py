"""What the named counters of our rules say, and their sums over loads. Pure.

A counter's name is made of what its rule is about: `in_enclave_tcp` (direction, zone, protocol), `drop_input` (what no
rule let in). In the kernel it goes on while rules change in part and begins at 0 when the whole table is loaded anew; `Tally`
goes on over that. What a table had counted that somebody else deleted is lost from the last look on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Count(NamedTuple):
    """One counter as it stands."""

    name: str
    packets: int
    bytes: int


def counts(listed: Iterable[tuple[str, int, int]]) -> list[Count]:
    """Return the counters of a table, (name, packets, bytes): drops first, then by packets, most first."""
    found = [Count(*each) for each in listed]
    return sorted(found, key=lambda each: (not is_drop(each), -each.packets, each.name))


def is_drop(count: Count) -> bool:
    """Tell whether a counter is of what was dropped: by no rule, or by one that limits."""
    return count.name.startswith("drop_") or count.name.endswith(("_over_rate", "_over_connections"))


class Tally:
    """Sums of counters over every load of the tables, since the agent began; and what of them was told."""

    def __init__(self) -> None:
        self._seen: dict[str, Count] = {}
        self._sums: dict[str, Count] = {}
        self._told: dict[str, Count] = {}

    def add(self, found: Iterable[Count]) -> None:
        """Take what the counters say now. One that says less than before has begun anew."""
        listed = {each.name: each for each in found}
        for name, now in listed.items():
            before = self._seen.get(name, Count(name, 0, 0))
            if now.packets < before.packets or now.bytes < before.bytes:
                before = Count(name, 0, 0)
            self._sums[name] = _plus(self._sums.get(name, Count(name, 0, 0)), _minus(now, before))
        self._seen = listed

    def begun_anew(self) -> None:
        """Note that the tables were loaded anew, after `add` of what they had counted."""
        self._seen = {}

    def dropped(self, most: int) -> list[Count]:
        """Return what was dropped since `tell`, most packets first."""
        since = [
            _minus(each, self._told.get(name, Count(name, 0, 0)))
            for name, each in self._sums.items()
            if is_drop(each)
        ]
        found = [each for each in since if each.packets]
        return sorted(found, key=lambda each: (-each.packets, each.name))[:most]

    def tell(self, told: Iterable[Count]) -> None:
        """Note that these, from `dropped`, have arrived: what is left over waits for the next time."""
        for each in told:
            self._told[each.name] = _plus(self._told.get(each.name, Count(each.name, 0, 0)), each)


def _plus(one: Count, other: Count) -> Count:
    return Count(one.name, one.packets + other.packets, one.bytes + other.bytes)


def _minus(one: Count, other: Count) -> Count:
    return Count(one.name, one.packets - other.packets, one.bytes - other.bytes)
