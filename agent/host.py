"""The only gate to the machine's files, procfs and sysfs. Synchronous; used on the thread that owns the machine.

It refuses to follow a symbolic link in any part of a path that a baseline names, to read more than it is
told to, and to change a file that has a second name (a hard link could lead it elsewhere). It decides nothing. Its
roots can be other folders than `/`, `/proc` and `/sys`: for tests, and for an agent in a container.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from agent.cgroups import CgroupTree
from agent.clock import Clock
from agent.config import AgentConfig
from agent.containers import ContainerTree
from agent.devicenodes import DeviceNodes
from agent.devices import UsbTree
from agent.filewatch import FileWatch, Watched
from agent.glance import Glance
from agent.hwmon import HwmonTree
from agent.kernelmodules import ModuleTree
from agent.mounttable import MountTable
from agent.netlinks import Links
from agent.osrelease import os_release
from agent.packages import PackageDatabase
from agent.plainfile import Wanted, opened, set_access
from agent.proc import Flow, Listener, ProcTree, printable
from agent.socketends import Ended, SocketEnds
from agent.sysctls import MAX_SYSCTL_BYTES, KernelSettings
from agent.sysfsbuses import Disks, PciBus, ThunderboltBus
from agent.tree import Tree
from agent.uevents import DeviceEvents
from agent.upgrade import Upgrade
from agent.userdb import group_name, user_name

__all__ = ["FileFacts", "Host", "Identity", "Listener", "Wanted", "Watched", "printable"]

_EPHEMERAL_DEFAULT = (32768, 60999)
_SYSTEM = ("", "boot", "boot/efi", "usr", "etc", "var", "home", "opt", "srv", "root")
"""Folders whose disks the machine does not run without."""
_WHOLE = Path("/proc/1/root")
_POLL_S = 5.0
_POLL_ELSEWHERE_S = 0.25
"""A tree that is not the kernel's raises no uevents."""

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in ns: another one whenever the content can have changed by a write."""


class FileFacts(NamedTuple):
    """What `stat` says of one regular file."""

    uid: int
    gid: int
    mode: int
    """Permission bits, with set-uid, set-gid and sticky."""
    size: int
    identity: Identity

    @property
    def owner(self) -> str:
        """Name of the user, or its number where it has no name."""
        return user_name(self.uid)

    @property
    def group(self) -> str:
        """Name of the group, or its number."""
        return group_name(self.gid)


class Host(KernelSettings):
    """The machine."""

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        mounts_of: str = "1",
    ) -> None:
        self._root = root
        self._proc_root = proc_root
        self._sysfs_root = sysfs_root
        self.let_in: Callable[[], None] | None = None
        """What `breathe` calls; the loop sets it."""
        self.wake: Callable[[str], None] | None = None
        """Makes the loop look at a section again; the loop sets it."""
        self._watch: FileWatch | None = None
        self._ends: SocketEnds | None = None
        self.usb = UsbTree(sysfs_root)
        self.modules = ModuleTree(proc_root, sysfs_root)
        self.processes = ProcTree(proc_root, self.breathe)
        self.containers = ContainerTree(root, proc_root, self.breathe, self.processes.ending)
        self.cgroups = CgroupTree(sysfs_root)
        self.clock = Clock(sysfs_root)
        self.mounts = MountTable(proc_root, mounts_of)
        self.tree = Tree(root, self.breathe)
        self.packages = PackageDatabase(root, self.breathe)
        self.upgrade = Upgrade(root)
        self.nodes = DeviceNodes(root, sysfs_root, self.processes)
        self.pci = PciBus(sysfs_root)
        self.thunderbolt = ThunderboltBus(sysfs_root)
        self.disks = Disks(sysfs_root)
        self.hwmon = HwmonTree(sysfs_root)
        self.links = Links()

    def breathe(self) -> None:
        """Let more urgent work in; to be called at least every 10 ms or so by whatever takes long on the machine's thread.

        The firewall may be looked at and an order carried out before it returns, so nothing half done may be open
        to them. Does nothing on other threads.
        """
        if self.let_in is not None:
            self.let_in()

    # Facts

    def boot_id(self) -> str:
        """Return the kernel's random id of this boot. Raises OSError."""
        return self._proc("sys/kernel/random/boot_id")

    def uptime_s(self) -> float:
        """Return seconds since boot, time in suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def os_release(self) -> str:
        """Return which operating system the machine says that it runs, such as `debian 12`; empty where it does not say."""
        return os_release(self._root)

    def addresses(self) -> list[str]:
        """Return the node's own addresses, sorted, without loopback and link-local ones."""
        found = set()
        for addresses in psutil.net_if_addrs().values():
            for each in addresses:
                try:
                    address = ipaddress.ip_address(each.address.partition("%")[0])
                except ValueError:  # a MAC address
                    continue
                if not (address.is_loopback or address.is_link_local):
                    found.add(address)
        return [str(address) for address in sorted(found, key=lambda each: (each.version, int(each)))]

    def networks(self) -> dict[str, list[ipaddress.IPv4Network | ipaddress.IPv6Network]]:
        """Return the networks on each interface but loopback, without link-local ones; by interface, sorted."""
        found: dict[str, list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
        for name, addresses in sorted(psutil.net_if_addrs().items()):
            for each in addresses:
                try:
                    mask = each.netmask or ""
                    # psutil gives the mask of IPv6 as an address, which ipaddress does not take.
                    bits = bin(int(ipaddress.ip_address(mask))).count("1")
                    network = ipaddress.ip_network(f"{each.address.partition('%')[0]}/{bits}", strict=False)
                except ValueError:  # a MAC address
                    continue
                if not (network.is_loopback or network.is_link_local) and network not in found.get(name, []):
                    found.setdefault(name, []).append(network)
        return found

    def ephemeral_ports(self) -> range:
        """Return the ports that the kernel gives to sockets that ask for none."""
        try:
            low, high = (int(part) for part in self.sysctl("net.ipv4.ip_local_port_range").split())
        except (OSError, ValueError):
            low, high = _EPHEMERAL_DEFAULT
        return range(low, high + 1)

    def system_devices(self) -> list[tuple[int, int]]:
        """Return the numbers of the block devices that the system's own folders lie on; those that can be found."""
        numbers = set()
        for path in _SYSTEM:
            try:
                numbers.add((self._root / path).stat().st_dev)
            except OSError:  # a machine need not have them all
                continue
        try:
            table = self.mounts.mounts()
        except OSError:
            table = []
        for mount in table:  # btrfs and overlays have numbers of their own: their source tells more
            if mount.path.lstrip("/") in _SYSTEM and mount.source.startswith("/dev/"):
                try:
                    numbers.add((self._root / mount.source.lstrip("/")).stat().st_rdev)
                except OSError:
                    continue
        return sorted((os.major(each), os.minor(each)) for each in numbers if os.major(each))

    def interface_place(self, name: str) -> Path:
        """Return where sysfs has a network interface."""
        return self._sysfs_root / "class/net" / name

    def written_bytes(self) -> int:
        """Return how much the calling thread has written to files since it began; 0 where the kernel does not count."""
        try:
            with (self._proc_root / "thread-self/io").open("rb") as file:
                fields = dict(line.split(b":") for line in file.read(MAX_SYSCTL_BYTES).splitlines())
            return int(fields[b"wchar"])
        except (OSError, KeyError, ValueError):
            return 0

    # Processes and sockets

    def describe_process(self, pid: int) -> str:
        """Return a process in words: "nft (pid 4242, uid 0, from bash): nft flush ruleset"."""
        return self.processes.describe(pid)

    def listeners(self) -> list[Listener]:
        """Return every listening socket of this network namespace. Raises OSError."""
        return self.processes.listeners()

    def flows(self) -> list[Flow]:
        """Return every socket of this network namespace that has a peer. Raises OSError."""
        return self.processes.flows()

    def ended_sockets(self, limit: int) -> tuple[list[Ended], bool]:
        """Return sockets without a peer that were closed since the last call, and whether some were missed. Raises OSError.

        The first call begins to listen, in the network namespace of its thread.
        """
        if self._ends is None:
            self._ends = SocketEnds()
        return self._ends.take(limit)

    def end_listener(self, listener: Listener) -> None:
        """Kill the process behind a listening socket, if it still is that one. Raises OSError."""
        self.processes.end(listener)

    # Files

    def open_file(self, path: str) -> int:
        """Return a descriptor (the caller closes it) of a regular file, for reading.

        No part of the path may be a symbolic link. Raises OSError; EINVAL for what is no regular file.
        """
        with opened(self._root, path) as at:
            return os.dup(at.descriptor)

    def glance(self) -> Glance:
        """Return a way to ask of many files whether they are still the same."""
        return Glance(self._root)

    def file_facts(self, path: str) -> FileFacts:
        """Return what is known of a regular file without reading it. Raises OSError."""
        descriptor = self.open_file(path)
        try:
            return facts_of(descriptor)
        finally:
            os.close(descriptor)

    def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """Return the content of a regular file. Raises OSError; EFBIG if it is longer than `max_bytes`."""
        with open(self.open_file(path), "rb") as file:  # noqa: PTH123  (a descriptor)
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", path)
        return content

    def read_log(self, path: str, *, max_bytes: int) -> bytes:
        """Return a file the kernel makes (firmware log; size 0 in stat). Path from the agent's configuration. Raises OSError."""
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", path)
        return content

    def open_log(self, path: str) -> int:
        """Return a descriptor (the caller closes it) of a file the kernel makes. Path from the agent's configuration. Raises OSError."""
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def log_identity(self, path: str) -> tuple[int, int]:
        """Return device and inode of such a file. Raises OSError."""
        found = Path(path).stat()
        return found.st_dev, found.st_ino

    def set_access(self, path: str, wanted: Wanted) -> None:
        """Make a regular file grant what is wanted. Raises OSError, as `plainfile.set_access` says."""
        set_access(self._root, path, wanted, self.tree.about_to_change)

    def watch_files(self, section: str, watched: Watched) -> None:
        """Have `section` woken when one of these files and folders is touched.

        Nothing happens where nobody is to be woken, and where the kernel gives no inotify: looks find it later.
        """
        if self.wake is None:
            return
        try:
            if self._watch is None:
                self._watch = FileWatch(self._root, self.wake)
            self._watch.cover(section, watched)
        except OSError:  # no inotify left for root: the looks of every interval go on
            return

    def close(self) -> None:
        """End the threads that watch. Idempotent."""
        self.wake = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._ends is not None:
            self._ends.close()
            self._ends = None

    # Events

    def watch_devices(
        self, subsystems: Mapping[str, Sequence[str]], on_change: Callable[[str], None]
    ) -> DeviceEvents:
        """Return a started listener that calls `on_change(section)` from its own thread when devices change.

        `subsystems`: the kernel's name of each to the sections that look at it.
        """
        poll_s = _POLL_S if self._sysfs_root == Path("/sys") else _POLL_ELSEWHERE_S
        events = DeviceEvents(subsystems, on_change, lambda: {"usb": self.usb.entries()}, poll_s=poll_s)
        events.start()
        return events


def facts_of(descriptor: int) -> FileFacts:
    """Return the facts of an open file. Raises OSError."""
    found = os.fstat(descriptor)
    return FileFacts(
        uid=found.st_uid,
        gid=found.st_gid,
        mode=stat.S_IMODE(found.st_mode),
        size=found.st_size,
        identity=(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns),
    )


def host_of(config: AgentConfig | None, *, seen_whole: bool = False) -> Host:
    """Return the machine that a configuration means; without one, this machine.

    `seen_whole`: for an agent whose unit hides folders from it (kernel modules, other people's /tmp), files as process 1 sees them.
    """
    if config is None:
        return Host()
    roots = config.roots
    root = Path(roots.root)
    if seen_whole and roots.root == "/":
        with contextlib.suppress(OSError):  # a process 1 that lets nobody look: what is hidden stays so
            (_WHOLE / "usr").stat()
            root = _WHOLE
    return Host(root=root, sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))
