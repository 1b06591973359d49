"""The cut in other network namespaces of this machine, while it is isolated: those that hold a device of the machine.

A network card that was given to a namespace passes no rule of ours, so a node that is isolated would talk on through it. Each
interface of such a namespace is cut both ways by a table of our own there, `netdev ringfence_apart`; what was open dies with its
packets. A link that is set down would lose its addresses and routes, and release could not give them back: so that is done only
where the table cannot be had (somebody holds its name, an interface has a name that nftables would read as syntax).

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
_REMEMBERED, _DOWN = "isolate:apart ", "isolate:down "


class Standing(NamedTuple):
    """What stands in one namespace."""

    interfaces: frozenset[str]
    """All but the loopback."""
    up: frozenset[str]
    """Those that could carry something."""
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


def shut(path: str, number: int, remembered: MutableMapping[str, str]) -> None:
    """Cut a namespace off, by its links where the table cannot be had; what `rejoin` needs is written down first. Raises OSError."""
    remembered.setdefault(f"{_REMEMBERED}{number}", path)
    try:
        cut(path, number)
    except OSError:
        for name in sorted(standing(path, number).up):
            remembered.setdefault(f"{_DOWN}{number} {name}", path)
        namespaces.inside(path, number, lambda: namespaces.set_links(up=False))


def rejoin(remembered: MutableMapping[str, str]) -> None:
    """Take our table away where we have cut. What has ended is forgotten. Raises OSError; the rest is done all the same."""
    numbers = {int(key.removeprefix(_REMEMBERED)) for key in remembered if key.startswith(_REMEMBERED)}
    there = {each.number: each for each in namespaces.others()} if numbers else {}
    failed: OSError | None = None
    for number in numbers:
        try:
            if number in there:
                with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                    _rejoin(there[number], remembered)
            for key in [each for each in remembered if each.startswith(f"{_DOWN}{number} ")]:
                del remembered[key]
            del remembered[f"{_REMEMBERED}{number}"]
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _rejoin(other: namespaces.Other, remembered: MutableMapping[str, str]) -> None:
    start = f"{_DOWN}{other.number} "
    down = frozenset(key.removeprefix(start) for key in remembered if key.startswith(start))

    def work() -> None:
        if down:
            namespaces.set_links(up=True, named=down)
        run(context(), replacing([PLACE]))

    namespaces.inside(other.path, other.number, work)


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
    names = _interfaces()
    return Standing(names, frozenset(namespaces.interfaces(up=True)), both, listing)


def _interfaces() -> frozenset[str]:
    return frozenset(namespaces.interfaces())
