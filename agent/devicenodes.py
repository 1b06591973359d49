"""Device nodes below /dev: what they are, who may open them, who has them open. Part of the gate `agent.host`.

A node is never opened to look at it (opening a serial port moves its lines, opening a camera lights it): descriptors are
O_PATH, without following links. What a process has open is told by device number, so a second node of the
same device, made elsewhere, is no way around. Decides nothing. Refuses to change what is no device any more.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import msgspec

from agent.proc import ProcTree, printable
from agent.tree import Tree

Kind = Literal["char", "block"]
Number = tuple[int, int]
"""Major and minor."""

_ACL = "system.posix_acl_access"
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_NAMED = {2: "user", 8: "group"}
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
"""Do not ask a server: a network file system that hangs must not hold us."""
_STATX_TYPE = 1
_STATX_BYTES = 256
_BLKROSET = 0x125D
_MAX_ATTRIBUTE_BYTES = 4096
_MAX_CGROUP_BYTES = 16384
_USB_UP = 12
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")
_libc = ctypes.CDLL(None, use_errno=True)


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may open a node: owner, group, permission bits and an access control list."""

    uid: int
    gid: int
    mode: int
    acl: str = ""
    """The whole list as the kernel keeps it, base64; empty where there is none."""

    def named(self) -> list[str]:
        """Return the list's entries for single users and groups: `user 1000 rw-`."""
        raw = base64.b64decode(self.acl)[4:]
        whole = len(raw) // _ACL_ENTRY.size * _ACL_ENTRY.size
        found = []
        for tag, bits, number in _ACL_ENTRY.iter_unpack(raw[:whole]):
            if tag in _ACL_NAMED:
                rights = "".join(
                    letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
                )
                found.append(f"{_ACL_NAMED[tag]} {number} {rights}")
        return found


SHUT = Access(uid=0, gid=0, mode=0)
"""Nobody but root may open it."""


class Node(NamedTuple):
    """One device node, and what sysfs says of the device behind it. Texts are printable."""

    path: str
    kind: Kind
    number: Number
    access: Access
    driver: str
    vendor: str
    """Of the USB device behind it, or of the PCI one; empty where there is neither."""
    product: str
    serial: str

    def describe(self) -> str:
        """Return it in words."""
        ids = f", {self.vendor}:{self.product}" if self.vendor else ""
        return f"{self.kind} {self.number[0]}:{self.number[1]}, driver {self.driver or 'unknown'}{ids}"


class Holder(NamedTuple):
    """A process that has a device open."""

    pid: int
    uid: int
    unit: str
    """Its systemd service or scope; empty where it has none."""
    program: str
    number: Number


class DeviceNodes:
    """The nodes below one root's /dev."""

    def __init__(self, root: Path, sysfs_root: Path, processes: ProcTree) -> None:
        self._root = root
        self._sysfs = sysfs_root
        self._processes = processes
        self._tree = Tree(root)

    def find(self, patterns: Iterable[str]) -> tuple[list[Node], list[str]]:
        """Return the device nodes under some patterns (`/dev/dri/*`: only the last part may have `*`), and what stands there but is no device.

        Links are left out: what they lead to counts where it stands. Raises OSError.
        """
        nodes: dict[str, Node] = {}
        others = []
        folders: dict[str, list[str]] = {}
        for pattern in patterns:
            folder, _, name = pattern.rpartition("/")
            folders.setdefault(folder, []).append(name)
        for folder, names in folders.items():
            try:
                entries = self._tree.entries(folder)
            except FileNotFoundError:
                continue
            for entry in entries:
                wanted = any(fnmatchcase(entry.name, name) for name in names)
                if not wanted or entry.kind in ("link", "folder"):
                    continue
                path = f"{folder}/{entry.name}"
                with suppress(FileNotFoundError):
                    node = self.node(path)
                    if node is None:
                        others.append(path)
                    else:
                        nodes[path] = node
        return [nodes[path] for path in sorted(nodes)], sorted(set(others))

    def node(self, path: str) -> Node | None:
        """Return one node, or None if something else stands there. Raises OSError."""
        with self._opened(path) as descriptor:
            found = os.fstat(descriptor)
            kind = _kind(found.st_mode)
            if kind is None:
                return None
            number = (os.major(found.st_rdev), os.minor(found.st_rdev))
            access = Access(
                uid=found.st_uid, gid=found.st_gid, mode=stat.S_IMODE(found.st_mode), acl=_acl(descriptor)
            )
        device = self._sysfs / "dev" / kind / f"{number[0]}:{number[1]}"
        vendor, product, serial = self._ids(device)
        return Node(path, kind, number, access, self._driver(device), vendor, product, serial)

    def is_empty_port(self, node: Node) -> bool:
        """Tell whether a serial node has no hardware behind it: the 8250 driver makes some in store, of type 0."""
        return _text(self._sysfs / "dev" / node.kind / f"{node.number[0]}:{node.number[1]}" / "type") == "0"

    def set_access(self, node: Node, wanted: Access) -> None:
        """Make owner, mode and access control list of a node what is wanted. Raises OSError; ESTALE if another stands there."""
        with self._opened(node.path) as descriptor:
            self._same(descriptor, node.path, node.kind, node.number)
            itself = f"/proc/self/fd/{descriptor}"
            acl = _acl(descriptor)
            if acl and not wanted.acl:
                os.removexattr(itself, _ACL)
            if (node.access.uid, node.access.gid) != (wanted.uid, wanted.gid):
                os.chown(itself, wanted.uid, wanted.gid)
            os.chmod(itself, wanted.mode)  # noqa: PTH101  (a descriptor's name)
            if wanted.acl and acl != wanted.acl:  # last: it holds the bits of the group as well
                os.setxattr(itself, _ACL, base64.b64decode(wanted.acl))

    def set_read_only(self, path: str, number: Number, on: bool) -> None:
        """Set or lift the kernel's read-only flag of a block device (ioctl BLKROSET). Raises OSError; ESTALE as above."""
        with self._opened(path) as descriptor:
            self._same(descriptor, path, "block", number)
            opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(opened, _BLKROSET, struct.pack("i", on))
        finally:
            os.close(opened)

    def holders(self, kind: Kind, numbers: Iterable[Number]) -> list[Holder]:
        """Return who has one of these devices open, by any name, each process once for each device. Raises OSError."""
        wanted = set(numbers)
        found: list[Holder] = []
        if not wanted:
            return found
        own = str(os.getpid())
        for name in os.listdir(self._processes.root):  # noqa: PTH208
            if name.isascii() and name.isdigit() and name != own:
                open_here = {number for each, number in self._opens(name) if each == kind} & wanted
                for number in sorted(open_here):
                    with suppress(OSError):  # gone meanwhile
                        found.append(self._holder(int(name), number))
        return sorted(found)

    def end(self, holder: Holder, kind: Kind) -> None:
        """Kill a process if it still has the device open. Raises OSError; never pid 1 and never ourselves."""
        if holder.pid in (1, os.getpid()):
            raise ProcessLookupError(f"no process that may be killed: {holder.pid}")
        try:
            handle = os.pidfd_open(holder.pid)
        except ProcessLookupError:
            return
        try:
            # The number is held by the descriptor, so what is seen now is what is killed.
            if (kind, holder.number) in set(self._opens(str(holder.pid))):
                self._processes.kill(holder.pid, handle)
        finally:
            os.close(handle)

    def _opens(self, pid: str) -> Iterator[tuple[Kind, Number]]:
        folder = self._processes.root / pid / "fd"
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:
            return  # gone, or a thread of the kernel
        for name in names:
            found = _device_of(f"{folder}/{name}")
            if found is not None:
                yield found

    def _holder(self, pid: int, number: Number) -> Holder:
        folder = self._processes.root / str(pid)
        with (folder / "cgroup").open("rb") as file:
            units = _UNIT.findall(file.read(_MAX_CGROUP_BYTES).decode("utf-8", "backslashreplace"))
        services = [unit for unit in units if unit.endswith(".service")]
        unit = (services or units or [""])[-1]
        return Holder(pid, _uid(folder), printable(unit), self._processes.program(pid), number)

    def _driver(self, device: Path) -> str:
        for place in ("device/driver", "driver", "device/device/driver"):
            with suppress(OSError):
                return printable(os.readlink(device / place).rpartition("/")[2])  # noqa: PTH115
        return ""

    def _ids(self, device: Path) -> tuple[str, str, str]:
        """Return vendor, product and serial of the nearest USB device above, else of the nearest PCI one."""
        try:
            at = device.resolve(strict=True)
        except OSError:
            return "", "", ""
        pci = ("", "", "")
        for folder in list(at.parents)[:_USB_UP]:
            if (folder / "idVendor").exists():
                ids = _text(folder / "idVendor").lower(), _text(folder / "idProduct").lower()
                return *ids, _text(folder / "serial")
            if not pci[0] and (folder / "vendor").exists() and (folder / "class").exists():
                vendor, product = (_text(folder / each).removeprefix("0x") for each in ("vendor", "device"))
                pci = vendor, product, ""
        return pci

    def _same(self, descriptor: int, path: str, kind: Kind, number: Number) -> None:
        found = os.fstat(descriptor)
        if (_kind(found.st_mode), (os.major(found.st_rdev), os.minor(found.st_rdev))) != (kind, number):
            raise OSError(errno.ESTALE, "another device stands there by now", path)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        parts = PurePosixPath(path).relative_to("/").parts
        if not parts or ".." in parts:
            raise OSError(errno.EINVAL, "no path of a node", path)
        folder = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            descriptor = os.open(parts[-1], _NODE, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _uid(process: Path) -> int:
    """Return the effective user of a process: its folder's owner is another one for what may not be traced."""
    with (process / "status").open("rb") as file:
        for line in file.read(_MAX_CGROUP_BYTES).splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(process))


def _kind(mode: int) -> Kind | None:
    if stat.S_ISCHR(mode):
        return "char"
    return "block" if stat.S_ISBLK(mode) else None


def _acl(descriptor: int) -> str:
    try:
        return base64.b64encode(os.getxattr(f"/proc/self/fd/{descriptor}", _ACL)).decode()
    except OSError:  # ENODATA, or a file system without lists
        return ""


def _device_of(link: str) -> tuple[Kind, Number] | None:
    """Return what device a descriptor of a process leads to (statx(2)); None for everything else."""
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, link.encode(), _AT_STATX_DONT_SYNC, _STATX_TYPE, answer):
        return None
    kind = _kind(struct.unpack_from("=H", answer, 28)[0])  # stx_mode
    if kind is None:
        return None
    major, minor = struct.unpack_from("=II", answer, 128)  # stx_rdev_major, stx_rdev_minor
    return kind, (major, minor)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return printable(file.read(_MAX_ATTRIBUTE_BYTES).decode("utf-8", "backslashreplace").strip())
    except OSError:
        return ""
