"""What the named counters of our rules say, from a JSON listing. Pure.

A counter's name is made of what its rule is about: `in_enclave_tcp` (direction, zone, protocol), `drop_input` (what no
rule let in). It goes on while rules change in part and begins at 0 when the whole table is loaded anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from agent.firewall.compare import Object


class Count(NamedTuple):
    """One counter as it stands."""

    name: str
    packets: int
    bytes: int


def counts(objects: Iterable[Object]) -> list[Count]:
    """Return the counters of a listing: drops first, then by packets, most first. Raises ValueError, KeyError."""
    found = []
    for entry in objects:
        body = entry.get("counter")
        if isinstance(body, dict):
            found.append(Count(str(body["name"]), int(body["packets"]), int(body["bytes"])))
    return sorted(found, key=lambda each: (not each.name.startswith("drop_"), -each.packets, each.name))
