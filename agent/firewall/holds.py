"""Who holds a table, above all one under a name of ours: the process that owns it, as far as the kernel and /proc tell. Reads only.

The kernel names the netlink socket (NFTA_TABLE_OWNER); /proc/net/netlink has its inode, and the descriptors of processes lead from
there to whoever has it open. No event tells that a hold has ended, so every look asks again; who it is, is asked once.
Relies on: nf_tables(4) since Linux 5.12; the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from agent.firewall import netlink
from agent.firewall.events import Culprit, described
from agent.firewall.match import is_ours
from agent.firewall.netlink import Table
from agent.probes import Difference
from agent.sockettable import SocketTable

_HOLD = " owner"
_SHOWN_CHARS = 128
_NETLINK = "thread-self/net/netlink"


class Holds:
    """What is held, for one section; remembers who, for as long as it stands."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[Table, Culprit | None] = {}

    def differences(self, held: Iterable[Table]) -> list[Difference]:
        """Return one difference for each table that is held."""
        self._known = {
            each: self._known[each] if each in self._known else _who(each, self._proc) for each in held
        }
        return [
            Difference(
                f"{each.family} {each.name[:_SHOWN_CHARS]}{_HOLD}",
                "owned by nobody",
                f"owned by {_said(each, culprit)}",
                culprit.describe() if culprit else "",
            )
            for each, culprit in self._known.items()
        ]


def owner(table: Table, proc: Path = Path("/proc")) -> str:
    """Return one line for people on who owns a table, whatever its name."""
    return _said(table, _who(table, proc))


def _who(table: Table, proc: Path) -> Culprit | None:
    pid = process(table.owner, proc)
    if pid is None:
        return None
    name = ""
    with contextlib.suppress(OSError):
        name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
    return described(pid, name, frozenset({(table.family, table.name)}), proc)


def _said(table: Table, culprit: Culprit | None) -> str:
    return culprit.describe() if culprit else f"netlink port {table.owner}"


def process(port: int, proc: Path = Path("/proc")) -> int | None:
    """Return a process that has the netfilter socket with this port open; None where nobody is seen to."""
    try:
        lines = (proc / _NETLINK).read_text().splitlines()[1:]
    except OSError:
        return None
    for fields in map(str.split, lines):
        if len(fields) >= 10 and fields[1] == str(netlink.NETLINK_NETFILTER) and fields[2] == str(port):
            inode = int(fields[9])
            return SocketTable(proc, lambda: None).holders({inode}).get(inode)
    return None


def is_hold(key: str) -> bool:
    """Tell whether a drift's key says that somebody holds a table under a name of ours: no repair can end that."""
    return key.endswith(_HOLD) and key.count(" ") == 2 and is_ours(key.split(" ")[1])
