"""nftables tables as data, and the text that loads them. Pure.

A batch deletes each table where it stands and makes it anew, whole or not at all; `nft -f` can load it as well.
Refuses nothing: whoever fills these puts in only checked names, `ipaddress` values and integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Set:
    """A named set."""

    name: str
    kind: str
    """Its type, as nft writes it: "ipv4_addr . inet_service"."""
    elements: tuple[str, ...] = ()
    interval: bool = False
    flags: tuple[str, ...] = ()
    """Besides `interval`."""
    more: tuple[str, ...] = ()
    """Further lines, as nft writes them: "size 64"."""

    def text(self) -> str:
        """Return the set as it stands in a table."""
        named = ("interval", *self.flags) if self.interval else self.flags
        flags = f"\n\t\tflags {','.join(named)}" if named else ""
        flags += "".join(f"\n\t\t{line}" for line in self.more)
        filled = f"\n\t\telements = {{ {', '.join(self.elements)} }}" if self.elements else ""
        return f"\tset {self.name} {{\n\t\ttype {self.kind}{flags}{filled}\n\t}}"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain; with `head` a base chain: "type filter hook input priority 0; policy drop;"."""

    name: str
    rules: tuple[str, ...]
    head: str = ""

    def text(self) -> str:
        """Return the chain as it stands in a table."""
        lines = "\n".join(f"\t\t{line}" for line in ([self.head] if self.head else []) + list(self.rules))
        return f"\tchain {self.name} {{\n{lines}\n\t}}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of ours."""

    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    family: str = "inet"

    def text(self) -> str:
        """Return the table's text."""
        parts = "\n".join([each.text() for each in self.sets] + [each.text() for each in self.chains])
        return f"table {self.family} {self.name} {{\n{parts}\n}}\n"


def replacing(tables: Iterable[tuple[str, str]]) -> str:
    """Return what deletes tables, (family, name), wherever they stand."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in tables)
