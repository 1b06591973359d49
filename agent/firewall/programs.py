"""XDP programs and tc filters on the node's interfaces: what sees a packet before or after every rule of ours.

An XDP program and a tc ingress filter run before the first nftables hook, a tc egress filter after the last; each may
pass, rewrite or redirect what it likes. Nothing of nftables shows them, and no nftables event tells of them.

Refuses to take out what a BPF link or a tcx attachment holds: those belong to the process that made them, and are told.
Does not see: filters on the classes of a queueing discipline (they hang below its own). Relies on: rtnetlink(7), bpf(2)
for tcx (kernel 6.6), CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from agent.firewall import netlink
from agent.firewall.netlink import Talk

_SETLINK, _GETLINK, _DELQDISC, _GETQDISC, _DELTFILTER, _GETTFILTER = 19, 18, 37, 38, 45, 46
_IFINFOMSG = struct.Struct("=BxHiII")
_TCMSG = struct.Struct("=BxxxiIII")
_IFNAME, _XDP = 3, 43
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS, _XDP_PROGRAM = 1, 2, 3, 4
_MODES = {1: 1 << 2, 2: 1 << 1, 3: 1 << 3, 4: 0}
"""IFLA_XDP_ATTACHED to XDP_FLAGS: driver, generic, hardware, several."""
_TCA_KIND = 1
_CLSACT, _INGRESS, _EGRESS = 0xFFFF_FFF1, 0xFFFF_FFF2, 0xFFFF_FFF3
_NESTED = 0x8000
_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_QUERY = 16
_TCX = {46: "tcx ingress", 47: "tcx egress"}
_MAX_TCX = 64
_QUERY = struct.Struct("=IIIIQIIQQQQ")


class Program(NamedTuple):
    """What is attached at one place."""

    interface: str
    number: int
    """The interface's index."""
    hook: str
    """"xdp", "tc ingress", "tc egress", "tc 1:" (a queueing discipline), "tcx ingress" or "tcx egress"."""
    what: str
    parent: int = 0
    """Of tc: the handle that the filters hang on; of XDP: how it is attached."""
    discipline: str = ""
    """Of tc: the kind of what they hang on."""

    @property
    def cure(self) -> str:
        """Return what a person does about it."""
        if self.hook == "xdp":
            return f"ip link set {self.interface} xdp off"
        if self.hook.startswith("tcx"):
            return "end the program that attached it, bpftool net shows which"
        if self.parent in (_INGRESS, _EGRESS):
            return f"tc qdisc del dev {self.interface} {self.discipline}"
        return f"tc filter del dev {self.interface} parent {self.hook.removeprefix('tc ')}"


def attached(talk: Talk) -> list[Program]:
    """Return what is attached to the interfaces of the namespace, sorted. Raises OSError."""
    names: dict[int, str] = {}
    found: list[Program] = []
    for message in talk.dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        index = _IFINFOMSG.unpack_from(message.payload)[2]
        told = netlink.attributes(message.payload[_IFINFOMSG.size :])
        names[index] = told.get(_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        xdp = netlink.attributes(told.get(_XDP, b""))
        mode = int.from_bytes(xdp.get(_XDP_ATTACHED, b""), "little")
        if mode:
            (number,) = struct.unpack("=I", xdp.get(_XDP_PROGRAM, bytes(4)))
            found.append(Program(names[index], index, "xdp", f"XDP program {number}", mode))
    for index, parent, hook, kind in _places(talk):
        kinds = _filters(talk, index, parent)
        if kinds and index in names:
            found.append(Program(names[index], index, hook, f"filters: {', '.join(kinds)}", parent, kind))
    for index, name in names.items():
        found += [Program(name, index, hook, f"{count} programs") for hook, count in _tcx(index)]
    return sorted(found)


def remove(talk: Talk, program: Program) -> None:
    """Take out what is attached. Raises OSError; a BPF link's program stays (EBUSY)."""
    if program.hook == "xdp":
        inside = netlink.attribute(_XDP_FD, struct.pack("=i", -1))
        inside += netlink.attribute(_XDP_FLAGS, struct.pack("=I", _MODES.get(program.parent, 0)))
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, program.number, 0, 0)
        talk.tell(_SETLINK, body + netlink.attribute(_XDP | _NESTED, inside))
    elif program.parent in (_INGRESS, _EGRESS):
        with contextlib.suppress(FileNotFoundError):  # both directions go with the first
            talk.tell(_DELQDISC, _TCMSG.pack(socket.AF_UNSPEC, program.number, 0xFFFF_0000, _CLSACT, 0))
    elif program.parent:
        talk.tell(_DELTFILTER, _TCMSG.pack(socket.AF_UNSPEC, program.number, 0, program.parent, 0))


def _places(talk: Talk) -> list[tuple[int, int, str, str]]:
    """Return (interface, parent, what to call it, kind of discipline) wherever filters may hang."""
    found: list[tuple[int, int, str, str]] = []
    for message in list(talk.dump(_GETQDISC, _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))):
        _, index, handle, _, _ = _TCMSG.unpack_from(message.payload)
        kind = netlink.attributes(message.payload[_TCMSG.size :]).get(_TCA_KIND, b"")
        name = kind.rstrip(b"\0").decode("utf-8", "replace")
        if name in ("clsact", "ingress"):
            found.append((index, _INGRESS, "tc ingress", name))
            if name == "clsact":
                found.append((index, _EGRESS, "tc egress", name))
        elif handle:
            found.append((index, handle, f"tc {handle >> 16:x}:", name))
    return found


def _filters(talk: Talk, index: int, parent: int) -> list[str]:
    """Return the kinds of the filters there, each once; none where the discipline takes no filters."""
    try:
        listed = list(talk.dump(_GETTFILTER, _TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise
    kinds = (netlink.attributes(each.payload[_TCMSG.size :]).get(_TCA_KIND, b"") for each in listed)
    return sorted({kind.rstrip(b"\0").decode("utf-8", "replace") for kind in kinds})


def _tcx(index: int) -> Iterator[tuple[str, int]]:
    """Yield (hook, number of programs) of an interface; nothing where the kernel has no tcx."""
    call = _BPF.get(platform.machine())
    if call is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, hook in _TCX.items():
        numbers = ctypes.create_string_buffer(4 * _MAX_TCX)
        asked = _QUERY.pack(index, kind, 0, 0, ctypes.addressof(numbers), _MAX_TCX, 0, 0, 0, 0, 0)
        told = ctypes.create_string_buffer(asked, len(asked))
        if libc.syscall(call, _PROG_QUERY, told, len(asked)) == 0 or ctypes.get_errno() == errno.ENOSPC:
            count = _QUERY.unpack(told.raw)[5]
            if count:
                yield hook, count
