"""Which chain judges a packet: one look in a verdict map by direction and interfaces, then the zones that are there. Pure.

A zone that names interfaces costs nothing to packets of other interfaces, however many such zones there are. What is left are
zones that share an interface, and those that name none: one comparison each, for the first packet of a flow alone.

Refuses nothing. Relies on: `ct direction` of a packet being the map's first key, names of interfaces being exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from agent.firewall.tables import Chain


@dataclass(frozen=True, kw_only=True)
class Way:
    """Packets that a chain judges."""

    direction: str
    """"original" or "reply"."""
    interfaces: tuple[tuple[str, ...], ...]
    """For each key of the hook: the names, empty for any."""
    match: str
    """Everything else, as nftables writes it; "" or with a blank at its end."""
    verdict: str


def dispatched(hook: str, keys: tuple[str, ...], ways: Iterable[Way]) -> tuple[list[str], list[Chain]]:
    """Return the rules for a base chain and the chains that they lead to; `keys`: "iifname", "oifname" or both.

    What the interfaces decide comes before what they do not; else in the order given.
    """
    ways = list(ways)
    mapped: dict[tuple[str, ...], list[str]] = {}
    linear: list[str] = []
    for way in ways:
        if all(way.interfaces):
            for each in itertools.product(*way.interfaces):
                mapped.setdefault((way.direction, *each), []).append(f"{way.match}{way.verdict}")
        else:
            named = "".join(_named(key, names) for key, names in zip(keys, way.interfaces, strict=True))
            linear.append(f"ct direction {way.direction} {named}{way.match}{way.verdict}")
    if not mapped:
        return linear, []
    chains: dict[tuple[str, ...], str] = {}
    elements = []
    for key in sorted(mapped):
        chain = chains.setdefault(tuple(mapped[key]), f"{hook}_at_{len(chains) + 1}")
        direction, *names = key
        elements.append(" . ".join([direction, *(f'"{name}"' for name in names)]) + f" : jump {chain}")
    first = f"ct direction . {' . '.join(keys)} vmap {{ {', '.join(elements)} }}"
    return [first, *linear], [Chain(name=name, rules=rules) for rules, name in chains.items()]


def _named(key: str, names: tuple[str, ...]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{key} {{ {quoted} }} " if names else ""
