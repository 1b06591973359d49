"""The cut in other network namespaces of this machine, while it is isolated: those that hold a device of the machine.

A network card that was given to a namespace passes no rule of ours, so a node that is isolated would talk on through it. Each
interface of such a namespace is cut both ways by a table of our own there, `netdev ringfence_apart`; what was open dies with its
packets. A link that is set down would lose its addresses and routes, and release could not give them back.

Refuses a namespace that is another one meanwhile under the same name. Relies on: CAP_SYS_ADMIN, `agent.firewall.namespaces`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, MutableMapping
from typing import NamedTuple

from agent.firewall import compare, namespaces, netlink
from agent.firewall.compare import Canonical
from agent.firewall.library import context, parsed, run
from agent.firewall.link import FIRST, LAST, cannot_be_written, on_every
from agent.firewall.tables import Table, replacing

PLACE = ("netdev", "ringfence_apart")
_REMEMBERED = "isolate:apart "


class Standing(NamedTuple):
    """What stands in one namespace."""

    interfaces: frozenset[str]
    """All but the loopback."""
    held: frozenset[str]
    """Those that our chains hold both ways."""
    listing: Canonical
    """Of our table; empty where it is absent."""


def apart(interfaces: Iterable[str]) -> str:
    """Return the batch that cuts these interfaces, whatever passes them. Pure."""
    devices = tuple(sorted(interfaces))
    chains = [*on_every("ingress", FIRST, devices, ("counter drop",))]
    chains += on_every("egress", LAST, devices, ("counter drop",))
    family, name = PLACE
    return replacing([PLACE]) + Table(name=name, sets=(), chains=tuple(chains), family=family).text()


def standing(path: str, number: int) -> Standing:
    """Look at the namespace that `path` leads to; `number` is its inode. Raises OSError."""
    return namespaces.inside(path, number, _standing)


def cut(path: str, number: int) -> None:
    """Cut every interface of a namespace. Raises OSError: nothing of it is in force."""

    def work() -> None:
        names = _interfaces()
        if any(map(cannot_be_written, names)):
            raise OSError(
                errno.EINVAL, f"an interface there has a name that cannot be written: {sorted(names)}"
            )
        run(context(), apart(names))

    namespaces.inside(path, number, work)


def remember(remembered: MutableMapping[str, str], number: int, where: str) -> None:
    """Write down, before it is cut, which namespace `rejoin` is to look for."""
    remembered.setdefault(f"{_REMEMBERED}{number}", where)


def rejoin(remembered: MutableMapping[str, str]) -> None:
    """Take our table away where we have cut. What has ended is forgotten. Raises OSError; the rest is done all the same."""
    numbers = {int(key.removeprefix(_REMEMBERED)) for key in remembered if key.startswith(_REMEMBERED)}
    there = {each.number: each for each in namespaces.others()} if numbers else {}
    failed: OSError | None = None
    for number in numbers:
        try:
            if number in there:
                with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                    namespaces.inside(there[number].path, number, _withdraw)
            del remembered[f"{_REMEMBERED}{number}"]
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _withdraw() -> None:
    run(context(), replacing([PLACE]))


def _standing() -> Standing:
    talk = netlink.Talk()
    try:
        there = [each for each in netlink.tables(talk) if (each.family, each.name) == PLACE]
        held = netlink.chain_devices(talk, PLACE[1])
    finally:
        talk.close()
    listing: Canonical = {}
    if any(each.flags for each in there):
        listing = {
            " ".join(PLACE): ("flags",)
        }  # asleep, or owned; older libraries read freed memory when they list it
    elif there:
        listing = compare.canonical(parsed(run(context(), f"list table {' '.join(PLACE)}")))
    both = frozenset(held[0] & held[1]) if len(held) == 2 else frozenset()
    return Standing(_interfaces(), both, listing)


def _interfaces() -> frozenset[str]:
    return frozenset(namespaces.interfaces())
