"""This node's open connections and listening sockets, for a plan of other rules. Reads procfs and asks for routes; on the machine's thread.

Loopback and connections between the node's own addresses are left out: no rule of ours touches them. Lets more urgent work in
between. Refuses: to tell more than `contract.sockets` takes; the rest is counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.firewall import routes
from agent.firewall.flows import Here
from agent.firewall.netlink import Talk
from agent.host import Host
from agent.probes import ControllerEndpoint
from agent.proc import printable
from agent.sockettable import SocketTable, plain_address
from agent.userdb import user_name
from contract.messages import MAX_SOCKETS_BYTES, never_more
from contract.sockets import (
    MAX_CONNECTIONS,
    MAX_LISTENING,
    MAX_TEXT,
    Connection,
    Endpoint,
    Listening,
    SocketReport,
)
from contract.wire import encode

_ESTABLISHED = "01"
"""TCP_ESTABLISHED; of UDP, a socket that has a peer."""
_MAX_ROWS = 50_000
_MAX_CGROUP_BYTES = 4096


class _Open(NamedTuple):
    """A row of procfs."""

    protocol: str
    local_port: int
    peer: str
    peer_port: int
    uid: int
    inode: int


def socket_report(host: Host, proc: Path, controller: Iterable[ControllerEndpoint]) -> SocketReport:
    """Return what is open now. Raises OSError."""
    table = SocketTable(proc, host.breathe)
    waiting = [each for each in table.waiting() if not _is_loopback(each.address)]
    served = {(each.protocol, each.port) for each in table.waiting()}
    talk = Talk(routes.NETLINK_ROUTE)
    try:
        here = Here(talk)
        found = [each for each in _connected(host, proc) if _leads_out(here, each.peer)]
        kept = sorted(found)[:MAX_CONNECTIONS]
        users = {uid: _text(user_name(uid)) for uid in {each.uid for each in kept}}
        listed = sorted(waiting)[:MAX_LISTENING]
        holders = table.holders({each.inode for each in kept} | {each.inode for each in listed})
        return SocketReport(
            connections=[
                Connection(
                    protocol=each.protocol,  # type: ignore[arg-type]
                    begun="there" if (each.protocol, each.local_port) in served else "here",
                    local_port=each.local_port,
                    peer=each.peer,
                    peer_port=each.peer_port,
                    interface=_interface(here, each.peer),
                    uid=each.uid,
                    user=users[each.uid],
                    cgroup=_cgroup(proc, holders.get(each.inode)),
                    program=_program(host, holders.get(each.inode)),
                )
                for each in kept
            ],
            connections_left_out=len(found) - len(kept),
            listening=[
                Listening(each.protocol, each.port, _program(host, holders.get(each.inode)))  # type: ignore[arg-type]
                for each in listed
            ],
            listening_left_out=len(waiting) - len(listed),
            controller=[
                Endpoint(each.address, each.port, _interface(here, each.address)) for each in controller
            ][:16],
        )
    finally:
        talk.close()


def fitting(report: SocketReport) -> bytes:
    """Return a report as it travels; connections that there is no room for are counted."""
    while len(said := encode(report)) > MAX_SOCKETS_BYTES:
        half = len(report.connections) // 2
        left = report.connections_left_out + len(report.connections) - half
        report = msgspec.structs.replace(
            report, connections=report.connections[:half], connections_left_out=left
        )
    return said


def _connected(host: Host, proc: Path) -> Iterator[_Open]:
    for name in ("tcp", "tcp6", "udp", "udp6"):
        try:
            with (proc / "net" / name).open("r", encoding="ascii", errors="replace") as table:
                for line in islice(table, 1, _MAX_ROWS):
                    host.breathe()
                    if (one := _row(name[:3], line.split())) is not None:
                        yield one
        except FileNotFoundError:
            if not name.endswith("6"):  # a kernel without IPv6 has no such table
                raise


def _row(protocol: str, fields: list[str]) -> _Open | None:
    """Return an established socket of a line; None for any other, and for a line that changed while it was read."""
    if len(fields) < 10 or fields[3] != _ESTABLISHED or fields[2].endswith(":0000"):
        return None
    with suppress(ValueError):
        address, _, port = fields[2].partition(":")
        local = int(fields[1].rpartition(":")[2], 16)
        return _Open(protocol, local, plain_address(address), int(port, 16), int(fields[7]), int(fields[9]))
    return None


def _leads_out(here: Here, peer: str) -> bool:
    return not _is_loopback(peer) and not here.has(ipaddress.ip_address(peer).packed)


def _interface(here: Here, address: str) -> str:
    """Return by which interface an address is reached; "" where that cannot be said of it alone (link-local)."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_link_local:
        return ""
    with suppress(OSError):
        return here.interface_to(parsed.packed)
    return ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _program(host: Host, pid: int | None) -> str:
    return _text(host.processes.program(pid).rpartition("/")[2]) if pid else ""


def _cgroup(proc: Path, pid: int | None) -> str:
    """Return the control group of version 2; too long a one is none, for a part of it would be another."""
    if not pid:
        return ""
    try:
        with (proc / str(pid) / "cgroup").open("rb") as file:
            lines = file.read(_MAX_CGROUP_BYTES).decode("utf-8", "backslashreplace").splitlines()
    except OSError:
        return ""
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    return path if path.isprintable() and len(path) <= MAX_TEXT else ""


def _text(untrusted_text: str) -> str:
    return never_more(printable(untrusted_text), MAX_TEXT)
