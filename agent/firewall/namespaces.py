"""Interfaces of other network namespaces that send past our rules: through one of ours, or by a device of their own.

A MACVLAN, IPVLAN or VLAN whose lower interface is ours, moved into a namespace, hands its frames to that interface below every
inet hook. From here the kernel does not list them, so each namespace that a process or a name keeps is asked.
What only an open descriptor keeps is not seen. A device of the machine (a network card, a radio) that was given to a
namespace passes nothing of ours at all; the namespaces of this process and of those that it comes from, up to process 1,
are the machine's own and are not asked for those.

`inside` is the way into one of them, for `agent.firewall.elsewhere`.

Refuses to change anything there itself. Relies on: CAP_SYS_ADMIN (setns(2)), /proc, rtnetlink(7) with IFLA_LINK_NETNSID.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from agent.firewall import netlink
from agent.firewall.match import LOOPBACK

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE = 0
_NEWLINK, _GETLINK, _GETNSID = 16, 18, 90
_UP = 1
"""IFF_UP."""
_IFINFOMSG = struct.Struct("=BxHiII")
_IFNAME, _LINK, _LINKINFO, _LINK_NETNSID = 3, 5, 18, 37
_NSID_ID, _NSID_FD = 1, 3
_KINDS = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"})
DEVICE = "device of the machine"
_DEVICES = frozenset({"", "wwan", "ipoib"})
"""What is no construct of the kernel's own."""
_KIND_OF_LOOPBACK = 772
"""ARPHRD_LOOPBACK."""
_MAX_NAMESPACES = 4096
_OWN = "/proc/thread-self/ns/net"
_NAMED = ("/run/netns", "/run/docker/netns")


class Stray(NamedTuple):
    """One such interface."""

    name: str
    kind: str
    parent: str
    """The interface of ours that carries it; the interface itself where it is a device."""
    where: str
    """What keeps its namespace: "pid 4242", or a path."""
    path: str = ""
    """That leads there, for `inside`."""
    number: int = 0
    """The namespace's own: the inode behind `path`."""


class Other(NamedTuple):
    """Another network namespace of this machine."""

    path: str
    where: str
    number: int


def inside(path: str, number: int, work: Callable[[], T]) -> T:
    """Return what `work` returns in the namespace that `path` leads to; raises OSError where it is not `number` any more."""
    results: list[T] = []
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with Path(path).open("rb") as handle:
                if os.fstat(handle.fileno()).st_ino != number:
                    raise FileNotFoundError(errno.ENOENT, "the namespace has ended", path)
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns", path)
            results.append(work())
        except (OSError, ValueError) as error:
            errors.append(error)

    # A thread of its own: it stays there, and ends there.
    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def interfaces(*, up: bool = False) -> list[str]:
    """Return the names of every interface of this thread's namespace but its loopback, whatever that is called.

    `up`: those alone that are set up. Raises OSError.
    """
    talk = netlink.Talk(_NETLINK_ROUTE)
    try:
        return [name for _, name, is_up in _listed(talk) if is_up or not up]
    finally:
        talk.close()


def set_links(*, up: bool, named: frozenset[str] | None = None) -> None:
    """Set interfaces of this thread's namespace up or down: those named, or all but its loopback. Raises OSError."""
    talk = netlink.Talk(_NETLINK_ROUTE)
    try:
        for number, name, is_up in _listed(talk):
            if is_up != up and (named is None or name in named):
                flags = _UP if up else 0
                talk.tell(_NEWLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, number, flags, _UP))
    finally:
        talk.close()


def _listed(talk: netlink.Talk) -> list[tuple[int, str, bool]]:
    """Return (index, name, whether it is up) of every interface but the loopback."""
    found = []
    for message in talk.dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, number, flags, _ = _IFINFOMSG.unpack_from(message.payload)
        name = _text(netlink.attributes(message.payload[_IFINFOMSG.size :]).get(_IFNAME, b""))
        if number != LOOPBACK:
            found.append((number, name, bool(flags & _UP)))
    return found


def strays() -> list[Stray]:
    """Return them, sorted. Raises OSError where the namespaces cannot be listed."""
    own_number, machine = Path(_OWN).stat().st_ino, _machines_own()
    found: list[Stray] = []
    errors: list[OSError] = []
    with Path(_OWN).open("rb") as own:
        listed = _others(own_number)

        def ask() -> None:
            try:
                for each in listed:
                    found.extend(_in_namespace(each, own.fileno(), first=each.number in machine))
            except OSError as error:
                errors.append(error)

        # A thread of its own: it stays in the last namespace that it entered, and ends there.
        thread = threading.Thread(target=ask, name="namespaces")
        thread.start()
        thread.join()
    if errors:
        raise errors[0]
    return sorted(
        each if each.kind == DEVICE else each._replace(parent=_name_of(each.parent)) for each in found
    )


def others() -> list[Other]:
    """Return every other namespace that a process or a name keeps. Raises OSError."""
    return _others(Path(_OWN).stat().st_ino)


def _machines_own() -> set[int]:
    """Return the numbers of the namespaces of this process and of all that it comes from."""
    found: set[int] = set()
    process = os.getpid()
    while process:
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{process}/ns/net").stat().st_ino)
        try:
            # proc(5): the name before it may hold anything, also brackets.
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _others(own: int) -> list[Other]:
    seen = {own: Other("", "", own)}
    named: Iterable[tuple[str, str]] = (
        (str(path), str(path))
        for folder in _NAMED
        if Path(folder).is_dir()
        for path in Path(folder).iterdir()
    )
    processes = (
        (f"{path}/ns/net", f"pid {path.name}") for path in Path("/proc").iterdir() if path.name.isdigit()
    )
    for path, where in (*named, *processes):
        with contextlib.suppress(OSError):  # it ended meanwhile
            number = Path(path).stat().st_ino
            seen.setdefault(number, Other(path, where, number))
    del seen[own]
    if len(seen) > _MAX_NAMESPACES:
        raise OSError(f"more than {_MAX_NAMESPACES} network namespaces")
    return list(seen.values())


def _in_namespace(other: Other, own: int, *, first: bool) -> list[Stray]:
    path, where, number = other
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []  # it ended meanwhile
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, _CLONE_NEWNET):
            return []  # a name that is left of a namespace that was
    finally:
        os.close(handle)
    talk = netlink.Talk(_NETLINK_ROUTE)
    try:
        question = struct.pack("=B3x", socket.AF_UNSPEC) + netlink.attribute(_NSID_FD, struct.pack("=I", own))
        told = netlink.attributes(talk.ask(_GETNSID, question).payload[4:])
        ours = told.get(_NSID_ID, b"")
        dump = [each.payload for each in talk.dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))]
    finally:
        talk.close()
    found = [] if first else [Stray(name, DEVICE, name, where, path, number) for name in devices(dump)]
    if len(ours) != 4 or ours == b"\xff\xff\xff\xff":
        return found  # nothing else there has anything to do with us
    links = [netlink.attributes(each[_IFINFOMSG.size :]) for each in dump]
    return found + [
        Stray(
            _text(link.get(_IFNAME, b"")),
            kind,
            str(int.from_bytes(link.get(_LINK, b""), sys.byteorder)),
            where,
            path,
            number,
        )
        for link in links
        if link.get(_LINK_NETNSID) == ours and (kind := _kind(link)) in _KINDS
    ]


def devices(listed: Iterable[bytes]) -> list[str]:
    """Return the names of the machine's own devices among links (struct ifinfomsg and its attributes)."""
    found = []
    for payload in listed:
        kind_of_link = _IFINFOMSG.unpack_from(payload)[1]
        link = netlink.attributes(payload[_IFINFOMSG.size :])
        if kind_of_link != _KIND_OF_LOOPBACK and _kind(link) in _DEVICES:
            found.append(_text(link.get(_IFNAME, b"")))
    return found


def _kind(link: dict[int, bytes]) -> str:
    return _text(netlink.attributes(link.get(_LINKINFO, b"")).get(1, b""))


def _name_of(index: str) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(int(index))
    return f"interface {index}"


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")
