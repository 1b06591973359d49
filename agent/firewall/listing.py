"""Tables as libnftables lists them, and what a text would make of ours, tried where it harms nobody.

libnftables ends the process (an assertion) where it is to print a name as JSON that is no UTF-8, and before 1.0.8 it prints
the flags of a table from freed memory. So a foreign table is first printed as text, and one that has flags is listed chain by chain.

What is wanted is loaded in a throw-away network namespace and listed there by the same code: only what the kernel itself made of two texts is
ever compared. Relies on: libnftables.so.1; CAP_SYS_ADMIN for the throw-away namespace.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple, TypeVar

import nftables

from agent.firewall import compare, large, link, netlink, xtables
from agent.firewall.compare import Canonical, Object
from agent.firewall.foreign import ForeignChain, foreign_chains, unreadable
from agent.firewall.large import Elements
from agent.firewall.library import NetfilterError, context, parsed, run, version
from agent.firewall.match import is_ours
from agent.firewall.netlink import Talk
from agent.firewall.spare import Names
from contract.errors import Rejected

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_TRIES = 8
"""A manager of containers commits every few milliseconds while it sets up a network."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*").fullmatch
"""A name that others chose and that can be written into a command as it stands."""
_FLAGS_SAFE_SINCE = (1, 0, 8)
"""Before it, libnftables' JSON reads freed memory where a table has flags."""
_DORMANT = 1
_FLAG_NAMES = {_DORMANT: "dormant", 2: "owner", 4: "persist"}


class Loaded(NamedTuple):
    """What the kernel made of a text."""

    canonical: Canonical
    elements: Elements
    """Of its large sets (`agent.firewall.large`)."""


NOTHING = Loaded({}, {})


def own(
    within: nftables.Nftables,
    talk: Talk,
    wanted: Iterable[tuple[str, str]],
    names: Names,
    like: Loaded = NOTHING,
) -> Canonical:
    """Return the canonical form of tables of ours, by their own names, of those that stand.

    The large sets of `like` are read by netlink, and said to hold the same where the kernel says the same of them.
    """
    standing = netlink.tables(talk)
    names.leave(standing)
    flags = {(each.family, each.name): each.flags for each in standing}
    out: dict[str, tuple[str, ...]] = {}
    for family, table in wanted:
        real = names.real((family, table))
        if flags.get(real):
            # Never listed: ours has no flags, and older libraries read freed memory when they print them.
            said = [name for bit, name in _FLAG_NAMES.items() if flags[real] & bit]
            out[f"{family} {table} table {table}"] = (f"flags {' '.join(said) or flags[real]}",)
        elif real in flags and not is_named_in_text(talk, real):
            out[f"{family} {table} table {table}"] = ("names that are no text",)
        elif real in flags:
            keys = [key for key in like.elements if key.startswith(f"{family} {table} set ")]
            if keys:
                sets = frozenset(large.place_of(key)[2] for key in keys)
                listed = _without(within, talk, real, standing, sets)
            else:
                listed = parsed(run(within, f"list table {' '.join(real)}"))
            out |= compare.canonical(names.objects(listed, (family, table)))
            for key in out.keys() & set(keys):
                out[key] = (out[key][0], *_held(within, talk, real, key, like))
    return out


def _held(
    within: nftables.Nftables, talk: Talk, real: tuple[str, str], key: str, like: Loaded
) -> tuple[str, ...]:
    """Return what a large set holds, as lines."""
    place = (*real, large.place_of(key)[2])
    found, lines = frozenset(large.read(talk, place)), like.canonical[key][1:]
    if found == like.elements[key].elements:
        return lines
    told = large.told(like.elements[key], found, lines)
    if told is not None:
        return told
    (listed,) = compare.canonical(parsed(run(within, f"list set {' '.join(place)}"))).values()
    return listed[1:]


def _without(
    within: nftables.Nftables,
    talk: Talk,
    place: tuple[str, str],
    standing: Iterable[netlink.Table],
    sets: frozenset[str],
) -> list[Object]:
    """Return the objects of a table of ours, but without what `sets` hold.

    libnftables reads every element of a table to list one of its rules, but those of named sets only when it lists the whole
    ruleset tersely: so it is asked for that, where none but tables of ours are in it.
    """
    whole = f"list table {' '.join(place)}"
    if not _lists_tersely():
        return _emptied(parsed(run(within, whole)), sets)
    others = [each for each in standing if each.family == place[0] and (each.family, each.name) != place]
    alone = all(
        is_ours(each.name) and not each.flags and is_named_in_text(talk, (each.family, each.name))
        for each in others
    )
    listed = _tersely(within, f"list ruleset {place[0]}" if alone else whole)
    out: list[Object] = []
    for entry in listed:
        for kind, body in entry.items():
            named = body if isinstance(body, dict) else {}
            if (named.get("family"), named.get("name" if kind == "table" else "table")) != place:
                continue
            if kind not in ("set", "map") or named.get("name") in sets:
                out.append(entry)
            elif _PLAIN(name := str(named.get("name"))):
                said = parsed(run(within, f"list {kind} {' '.join(place)} {name}"))
                out += [each for each in said if kind in each]
            else:
                return _emptied(parsed(run(within, whole)), sets)
    return _emptied(out, sets)


def _emptied(listed: list[Object], sets: frozenset[str]) -> list[Object]:
    for entry in listed:
        body = entry.get("set")
        if isinstance(body, dict) and body.get("name") in sets:
            body.pop("elem", None)
    return listed


def _tersely(within: nftables.Nftables, command: str) -> list[Object]:
    within.set_terse_output(True)
    try:
        return parsed(run(within, command))
    finally:
        within.set_terse_output(False)


@cache
def _lists_tersely() -> bool:
    """Tell whether a terse listing still shows the sets that a rule has without a name: tried where it harms nobody."""

    def work() -> bool:
        within = context()
        run(within, "table inet t {\n\tchain c {\n\t\ttcp dport { 7, 9 } accept\n\t}\n}\n")
        listed = compare.canonical(_tersely(within, "list ruleset inet"))
        return '{"set":[7,9]}' in "".join(listed["inet t chain c"])

    return in_own_namespace(work)


def is_named_in_text(talk: Talk, place: tuple[str, str]) -> bool:
    """Tell whether names and comments in a table of ours are UTF-8: to print it whole twice would cost too much."""
    try:
        for spelt in netlink.spelt(talk, place):
            spelt.decode()
    except UnicodeDecodeError:
        return False
    except FileNotFoundError:  # no such table: whoever lists it is told so
        return True
    return True


@cache
def _lists_flags() -> bool:
    """Tell whether the library can print the flags of a table. It says its version only with a listing: of an empty namespace."""
    return in_own_namespace(lambda: version(context()) >= _FLAGS_SAFE_SINCE)


def foreign(within: nftables.Nftables, talk: Talk) -> list[ForeignChain]:
    """Return the chains of other programs that accept, drop or rewrite. Raises NetfilterError."""
    objects: list[Object] = []
    unread: list[ForeignChain] = []
    leads: dict[tuple[str, str, int], str] = {}
    for table in netlink.tables(talk):
        if is_ours(table.name) or table.flags & _DORMANT:
            continue
        try:
            read = _read(within, talk, table) if _PLAIN(table.name) else None
        except NetfilterError:
            if table in netlink.tables(talk):
                raise
            continue  # it went while it was read: firewalld has one for a moment at each reload
        if read is None:
            unread.append(unreadable(table.family, table.name))
            continue
        objects += read[0]
        leads |= {(table.family, table.name, handle): to for handle, to in read[1].items()}
    return foreign_chains(objects, (), leads) + unread


def _read(
    within: nftables.Nftables, talk: Talk, table: netlink.Table
) -> tuple[list[Object], dict[int, str]] | None:
    """Return a table's objects and where its xtables DNAT leads, both of one moment; None where that cannot be listed."""
    commands = [f"list table {table.family} {table.name}"]
    if not _is_text(within, commands[0]):
        return None
    for _ in range(_TRIES):
        before = netlink.generation(talk)
        if table.flags and not _lists_flags():
            chains = netlink.chains(talk, table)
            if not all(map(_PLAIN, chains)):
                return None
            commands = [f"list chain {table.family} {table.name} {name}" for name in chains]
        listed = [run(within, command) for command in commands]
        asked = any('"DNAT"' in each for each in listed)
        found = xtables.destinations(talk, table.family, table.name) if asked else {}
        if netlink.generation(talk) == before:
            break
    return [each for text in listed for each in parsed(text)], found


def _is_text(within: nftables.Nftables, command: str) -> bool:
    """Tell whether all that a command lists is UTF-8."""
    within.set_json_output(False)
    try:
        run(within, command)
    except UnicodeDecodeError:
        return False
    finally:
        within.set_json_output(True)
    return True


def loaded(text: str, tables: Iterable[tuple[str, str]]) -> Loaded:
    """Return what `own` says of `tables` with nothing but `text` loaded. Raises Rejected `firewall.refused`. For `in_own_namespace`."""
    within = context()
    try:
        run(within, link.on_loopback(text))
    except NetfilterError as error:
        raise Rejected("firewall.refused", str(error.strerror)) from None
    talk = Talk()
    try:
        listed = own(within, talk, tables, Names())
        return Loaded(listed, large.wanted(talk, listed))
    finally:
        talk.close()


def in_own_namespace(work: Callable[[], T]) -> T:
    """Run `work` on a thread with a network namespace of its own, which ends with it."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise NetfilterError(code, f"unshare: {os.strerror(code)}")
            results.append(work())
        except (OSError, Rejected, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="nftables-dry-run")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
