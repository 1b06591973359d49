"""USB as the kernel shows it: devices and interfaces in sysfs, their `authorized` switches, and uevents.

Kernel facts (Documentation/usb/authorization.rst): `authorized_default` of a root hub decides about devices
that come later; `interface_authorized_default` does the same for interfaces, and an interface that is authorised
later needs `drivers_probe`. The raw descriptors of a device can be read while it is not authorised, so what
it offers is known before it may do anything. Everything a device says of itself is hostile text and hostile
bytes. This module decides nothing; `agent.probes.usb` does. Used through `agent.host.Host` only.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.proc import printable

ROOT_HUB = re.compile(r"usb[0-9]+", re.ASCII)
DEVICE = re.compile(r"[0-9]+-[0-9]+(?:\.[0-9]+)*", re.ASCII)
_MAX_ATTRIBUTE_BYTES = 4096
_MAX_DESCRIPTOR_BYTES = 65536
_DESCRIPTOR_INTERFACE = 4
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_RECEIVE_BUFFER_BYTES = 1024 * 1024
MALFORMED = "malformed"
"""Stands for what a device offers when its descriptors do not parse: no rule can name it."""


class UsbInterface(NamedTuple):
    """One interface of the active configuration. `kind` is `class:subclass:protocol` in hexadecimal."""

    name: str
    kind: str
    authorized: bool


class UsbDevice(NamedTuple):
    """One device that is no root hub. Texts are the device's own claims, made printable."""

    name: str
    """Place in the tree, `1-2.4`: bus, port, port behind a hub."""
    number: str
    """The kernel's device number: another one after every plug-in."""
    vendor: str
    product: str
    serial: str
    label: str
    authorized: bool
    offered: tuple[str, ...]
    """Kinds of all interfaces in the descriptors, in every configuration."""
    interfaces: tuple[UsbInterface, ...]


class UsbTree:
    """The USB part of a sysfs tree. Every method raises OSError for what cannot be read or written."""

    def __init__(self, sysfs_root: Path) -> None:
        self._bus = sysfs_root / "bus" / "usb"
        self._devices = self._bus / "devices"

    def names(self) -> list[str]:
        """Return the names of root hubs and devices, sorted; empty where the kernel has no USB."""
        return [name for name in self.entries() if ROOT_HUB.fullmatch(name) or DEVICE.fullmatch(name)]

    def entries(self) -> list[str]:
        """Return the names of everything on the bus, interfaces among them, sorted; empty where the kernel has no USB."""
        try:
            return sorted(os.listdir(self._devices))  # noqa: PTH208  (one system call; runs four times a second)
        except FileNotFoundError:
            if self._bus.parent.is_dir():
                return []
            raise

    def device(self, name: str) -> UsbDevice | None:
        """Return what is known of one device; None if it has gone meanwhile."""
        folder = self._devices / name
        try:
            interfaces = tuple(self._interface(path) for path in sorted(folder.glob(f"{name}:*")))
            return UsbDevice(
                name=name,
                number=self._text(folder / "devnum", missing="0"),
                vendor=self._text(folder / "idVendor").lower(),
                product=self._text(folder / "idProduct").lower(),
                serial=self._text(folder / "serial", missing=""),
                label=self._text(folder / "product", missing=""),
                authorized=self._text(folder / "authorized") != "0",
                offered=self._offered(folder, interfaces),
                interfaces=interfaces,
            )
        except FileNotFoundError:
            if folder.is_dir():
                raise
            return None

    def default(self, hub: str, attribute: str) -> str | None:
        """Return `authorized_default` or `interface_authorized_default` of a root hub; None where it has none."""
        return self._text(self._devices / hub / attribute, missing="") or None

    def set_default(self, hub: str, attribute: str, value: str) -> None:
        """Write a default of a root hub."""
        _write(self._devices / hub / attribute, value)

    def authorize(self, device: str, allowed: bool) -> None:
        """Let a device in, or shut it out: its drivers are unbound and its configuration is dropped."""
        _write(self._devices / device / "authorized", "1" if allowed else "0")

    def authorize_interface(self, device: str, interface: str, allowed: bool) -> None:
        """Let one interface in or shut it out. Letting in also asks the bus to find its driver."""
        _write(self._devices / device / interface / "authorized", "1" if allowed else "0")
        probe = self._bus / "drivers_probe"
        if allowed and probe.exists():
            try:
                _write(probe, interface)
            except OSError:  # no driver takes it (ENODEV): the interface is let in all the same
                return

    def _interface(self, folder: Path) -> UsbInterface:
        parts = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
        kind = ":".join(self._text(folder / part).lower() for part in parts)
        return UsbInterface(folder.name, kind, self._text(folder / "authorized", missing="1") != "0")

    def _offered(self, folder: Path, interfaces: tuple[UsbInterface, ...]) -> tuple[str, ...]:
        try:
            raw = _read(folder / "descriptors", _MAX_DESCRIPTOR_BYTES)
        except FileNotFoundError:
            return tuple(sorted({interface.kind for interface in interfaces}))
        return interface_kinds(raw)

    def _text(self, path: Path, missing: str | None = None) -> str:
        try:
            return printable(_read(path, _MAX_ATTRIBUTE_BYTES).decode("utf-8", "backslashreplace").strip())
        except FileNotFoundError:
            if missing is None:
                raise
            return missing


def interface_kinds(untrusted_descriptors: bytes) -> tuple[str, ...]:
    """Return the kinds (`03:01:01`) of all interface descriptors (USB 2.0, 9.6.5), sorted, each once.

    Bytes that do not walk to their end yield MALFORMED beside what was found before: nothing may match by luck.
    """
    kinds: set[str] = set()
    place = 0
    while place < len(untrusted_descriptors):
        length = untrusted_descriptors[place]
        if length < 2 or place + length > len(untrusted_descriptors):
            kinds.add(MALFORMED)
            break
        if untrusted_descriptors[place + 1] == _DESCRIPTOR_INTERFACE:
            if length < 9:
                kinds.add(MALFORMED)
                break
            fields = untrusted_descriptors[place + 5 : place + 8]
            kinds.add(fields.hex(":"))
        place += length
    return tuple(sorted(kinds))


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def _write(path: Path, value: str) -> None:
    # No O_CREAT: in a tree that has no such switch this must fail, not make a file.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


class DeviceEvents:
    """Calls `on_change()` from its own thread when USB devices come, go or change.

    Kernel uevents wake it. Four times a second it also compares the list of devices, since netlink may overflow
    and trees other than the kernel's own raise no uevents. The call carries no data and may be made in vain.
    """

    SETTLE_S = 0.02
    """A burst of uevents (one device raises five or more) is one call."""
    POLL_S = 0.25

    def __init__(self, tree: UsbTree, on_change: Callable[[], None]) -> None:
        self._tree = tree
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-events", daemon=True)
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, _KERNEL_GROUP))
        self._stop_reader, self._stop_writer = os.pipe()

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        os.write(self._stop_writer, b"x")
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        os.close(self._stop_reader)
        os.close(self._stop_writer)

    def _run(self) -> None:
        known = self._names()
        while not self._stop.is_set():
            ready, _, _ = select.select([self._socket.fileno(), self._stop_reader], [], [], self.POLL_S)
            event = self._socket.fileno() in ready and self._drain()
            if event and self._stop.wait(self.SETTLE_S):
                return
            self._drain()
            names = self._names()
            if event or names != known:
                known = names
                self._on_change()

    def _names(self) -> list[str]:
        try:
            return self._tree.entries()
        except OSError:
            return ["?"]  # the probe looks for itself and reports it

    def _drain(self) -> bool:
        """Empty the socket; True if something of USB was in it, or if the kernel says that messages were lost."""
        seen = False
        while True:
            try:
                message = self._socket.recv(8192)
            except BlockingIOError:
                return seen
            except OSError:  # ENOBUFS
                return True
            seen = seen or b"\0SUBSYSTEM=usb\0" in message
