"""nftables tables as data, the text that loads them whole, and the text that turns one into another. Pure.

A whole batch deletes each table where it stands and makes it anew; `nft -f` can load it as well. A difference changes only
what differs (elements of sets, chains emptied and filled again in the same batch), which costs as much as was changed
and not as much as there is. Both are in force whole or not at all.
Refuses nothing: whoever fills these puts in only checked names, `ipaddress` values and integers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

LARGE = 512
"""Elements, from which on a set is told its size, and read and filled in the kernel's own bytes (`agent.firewall.large`)."""
_ADDED = re.compile(r"(?P<place>\S+ \S+) (?P<kind>chain|set) (?P<name>[A-Za-z_][A-Za-z0-9_.-]*)")
"""Something in our tables that is not ours; a name of other letters cannot be written into a batch."""


@dataclass(frozen=True, kw_only=True)
class Set:
    """A named set."""

    name: str
    kind: str
    """Its type, as nft writes it: "ipv4_addr . inet_service"."""
    elements: tuple[str, ...] = ()
    interval: bool = False
    live: bool = False
    """Elements come and go while the rules stay: they are no part of the rules' number, and compared by themselves."""
    seconds: tuple[float, ...] = ()
    """Of a set with flag `timeout`: how long the kernel keeps each of `elements`; as many as those."""
    timeout: bool = False
    dynamic: str = ""
    """Filled by packets: "size 65535; timeout 60s;". What it holds is nobody's wish."""

    @property
    def head(self) -> tuple[object, ...]:
        """What cannot be changed without making the set anew."""
        return (self.kind, self.interval, self.timeout, self.dynamic, self.size)

    @property
    def size(self) -> int:
        """How many elements there is room for; 0: no word of it. Told of it, the kernel fills a large set twice as fast."""
        if len(self.elements) < LARGE or self.interval or self.timeout or self.dynamic or self.live:
            return 0
        return 1 << len(self.elements).bit_length()

    def text(self, *, live: bool = True, filled: bool = True) -> str:
        """Return the set as it stands in a table; without what it holds where it is live and `live` is False, or not `filled`."""
        flags = [
            name
            for name, on in (
                ("interval", self.interval),
                ("dynamic", bool(self.dynamic)),
                ("timeout", self.timeout),
            )
            if on
        ]
        lines = [f"type {self.kind}"]
        lines += [part.strip() for part in self.dynamic.split(";") if part.strip()]
        lines += [f"flags {','.join(flags)}"] if flags else []
        lines += [f"size {self.size}"] if self.size else []
        if self.elements and filled and (live or not self.live):
            lines.append(f"elements = {{ {', '.join(self.filled())} }}")
        return "\n".join([f"\tset {self.name} {{", *(f"\t\t{line}" for line in lines), "\t}"])

    def filled(self) -> list[str]:
        """Return the elements as nft adds them, with their time."""
        if not self.seconds:
            return list(self.elements)
        return [
            f"{each} timeout {_time(seconds)}"
            for each, seconds in zip(self.elements, self.seconds, strict=True)
        ]


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
    counters: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Family and name."""
        return f"{self.family} {self.name}"

    def text(self, *, live: bool = True, without: Collection[str] = ()) -> str:
        """Return the table's text; the sets of `without`, by key, are empty."""
        parts = [f"\tcounter {name} {{\n\t}}" for name in self.counters]
        parts += [
            each.text(live=live, filled=f"{self.place} set {each.name}" not in without) for each in self.sets
        ]
        parts += [each.text() for each in self.chains]
        return f"table {self.family} {self.name} {{\n" + "\n".join(parts) + "\n}\n"


def _time(seconds: float) -> str:
    return f"{seconds}s" if isinstance(seconds, int) else f"{max(1, round(seconds * 1000))}ms"


def replacing(tables: Iterable[tuple[str, str]]) -> str:
    """Return what deletes tables, (family, name), wherever they stand."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in tables)


def difference(old: Sequence[Table], new: Sequence[Table]) -> str | None:
    """Return the batch from `old` to `new`; "" where nothing differs, None where only a whole batch will do."""
    if [table.place for table in old] != [table.place for table in new]:
        return None
    parts = [_table_difference(before, after) for before, after in zip(old, new, strict=True)]
    return None if None in parts else "".join(part for part in parts if part)


def renewal(tables: Sequence[Table]) -> str:
    """Return the batch that makes every live set with times hold its elements and no other, each with its time anew.

    What is not live (a grant) never gets more time than it was given; what packets fill is left to them.
    """
    lines = []
    for table in tables:
        for each in table.sets:
            if each.live and each.timeout and not each.dynamic:
                # An element that is there would keep its old time, so all are taken away and put back in one commit.
                lines.append(f"flush set {table.place} {each.name}\n" + _adding(table, each, each.filled()))
    return "".join(lines)


def mending(tables: Sequence[Table], keys: Iterable[str]) -> str | None:
    """Return the batch that fills the named chains and sets again, and deletes such as are not ours.

    Keys are as `agent.firewall.compare` makes them: "inet ringfence chain input". None where only a whole batch will do.
    """
    objects = {f"{table.place} chain {each.name}": (table, each) for table in tables for each in table.chains}
    filled = {f"{table.place} set {each.name}": (table, each) for table in tables for each in table.sets}
    places = {table.place for table in tables}
    lines, emptied, deleted = [], [], []
    for key in keys:
        if key in objects:
            table, chain = objects[key]
            lines.append(_refilled(table, [chain]))
        elif key in filled and not filled[key][1].dynamic:
            table, found = filled[key]
            lines.append(f"flush set {table.place} {found.name}\n" + _adding(table, found, found.filled()))
        elif (foreign := _ADDED.fullmatch(key)) and foreign["place"] in places and key not in filled:
            kind, named = foreign["kind"], f"{foreign['place']} {foreign['name']}"
            emptied += [f"flush chain {named}\n"] if kind == "chain" else []
            # Chains before sets: a rule of one may hold the other.
            deleted.append((kind != "chain", f"delete {kind} {named}\n"))
        else:
            return None
    return "".join([*emptied, *lines, *(text for _, text in sorted(deleted))])


def _table_difference(old: Table, new: Table) -> str | None:
    sets = {each.name: each for each in old.sets}
    chains = {each.name: each for each in old.chains}
    kept_sets = [each for each in new.sets if each.name in sets]
    kept_chains = [each for each in new.chains if each.name in chains]
    if any(each.head != sets[each.name].head for each in kept_sets):
        return None
    if any(each.head != chains[each.name].head for each in kept_chains):
        return None
    new_chains = [each for each in new.chains if each.name not in chains]
    changed = [each for each in kept_chains if each.rules != chains[each.name].rules]
    gone_chains = [name for name in chains if name not in {each.name for each in new.chains}]
    gone_sets = [name for name in sets if name not in {each.name for each in new.sets}]
    fresh = replace(
        new,
        sets=tuple(each for each in new.sets if each.name not in sets),
        chains=tuple(replace(each, rules=()) for each in new_chains),
        counters=tuple(name for name in new.counters if name not in old.counters),
    )
    lines = [fresh.text()] if fresh.sets or fresh.chains or fresh.counters else []
    lines += [f"flush chain {new.place} {name}\n" for name in gone_chains]
    lines += [_elements(new, sets[each.name], each) for each in kept_sets]
    lines.append(_refilled(new, changed, new_chains))
    lines += [f"delete chain {new.place} {name}\n" for name in gone_chains]
    lines += [f"delete set {new.place} {name}\n" for name in gone_sets]
    lines += [f"delete counter {new.place} {name}\n" for name in old.counters if name not in new.counters]
    return "".join(lines)


def _refilled(table: Table, changed: Sequence[Chain], new: Sequence[Chain] = ()) -> str:
    if not changed and not new:
        return ""
    flushed = "".join(f"flush chain {table.place} {each.name}\n" for each in changed)
    bodies = "\n".join(replace(each, head="").text() for each in (*changed, *new))
    return f"{flushed}table {table.place} {{\n{bodies}\n}}\n"


def _elements(table: Table, old: Set, new: Set) -> str:
    """Change what a set holds. Times are not compared: whoever gives longer time says so by another batch."""
    if old.elements == new.elements:
        return ""
    before, after = set(old.elements), set(new.elements)
    gone = [each for each in old.elements if each not in after]
    added = [text for each, text in zip(new.elements, new.filled(), strict=True) if each not in before]
    # The kernel may have dropped an element whose time was over, and then `delete` alone would fail.
    first = _adding(table, old, gone) if new.timeout else ""
    taken = f"delete element {table.place} {new.name} {{ {', '.join(gone)} }}\n" if gone else ""
    return first + taken + _adding(table, new, added)


def _adding(table: Table, where: Set, elements: Sequence[str]) -> str:
    return f"add element {table.place} {where.name} {{ {', '.join(elements)} }}\n" if elements else ""
