"""USB as the kernel shows it: devices and interfaces in sysfs, and their `authorized` switches.

Kernel facts (Documentation/usb/authorization.rst): `authorized_default` of a root hub decides about devices
that come later; `interface_authorized_default` does the same for interfaces, and an interface that is authorised
later needs `drivers_probe`. The raw descriptors of a device can be read while it is not authorised, so what
it offers is known before it may do anything. Everything a device says of itself is hostile text and hostile
bytes. This module decides nothing; `agent.probes.usb` does. Used through `agent.host.Host` only.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from agent.proc import printable

ROOT_HUB = re.compile(r"usb[0-9]+", re.ASCII)
DEVICE = re.compile(r"[0-9]+-[0-9]+(?:\.[0-9]+)*", re.ASCII)
_MAX_ATTRIBUTE_BYTES = 4096
_MAX_DESCRIPTOR_BYTES = 65536
_DESCRIPTOR_INTERFACE = 4
_DESCRIPTOR_CONFIGURATION = 2
MALFORMED = "malformed"
"""Stands for what a device offers when its descriptors do not parse: no rule can name it."""


USBCORE = "usbcore"
"""Stands for the kernel's USB core where a root hub is named."""
ROOT = "root"
"""Stands for a root hub where a hub is named."""


class Offered(NamedTuple):
    """One interface as the descriptors announce it, before the device may do anything."""

    number: int
    """`bInterfaceNumber`; -1 where the descriptors do not parse."""
    kind: str
    """`class:subclass:protocol` in hexadecimal, or MALFORMED."""


class UsbInterface(NamedTuple):
    """One interface of the active configuration."""

    name: str
    number: int
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
    manufacturer: str
    authorized: bool
    offered: tuple[Offered, ...]
    """All interfaces in the descriptors, in every configuration: a kind as often as it is offered."""
    interfaces: tuple[UsbInterface, ...]
    hub: tuple[str, str]
    """Place and `vendor:product` of the hub it hangs on; ROOT and ROOT for a port of the machine."""
    connect: str
    """What the firmware says of the port: `hotplug`, `hardwired`, `not used`, `unknown`."""
    connected_s: float | None
    """When it was plugged in, on the monotonic clock (0 is the start of the kernel); None where the kernel does not tell."""
    digest: str | None
    """SHA-256 of texts and raw descriptors, see `device_digest`; None where there are no descriptors."""

    def kinds(self) -> tuple[str, ...]:
        """Return what it offers, each kind once."""
        return tuple(sorted({each.kind for each in self.offered}))


class UsbTree:
    """The USB part of a sysfs tree. Every method raises OSError for what cannot be read or written."""

    def __init__(self, sysfs_root: Path) -> None:
        self._bus = sysfs_root / "bus" / "usb"
        self._devices = self._bus / "devices"
        self._parameter = sysfs_root / "module/usbcore/parameters/authorized_default"

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
            vendor = self._text(folder / "idVendor").lower()
            product = self._text(folder / "idProduct").lower()
            texts = [self._text(folder / each, missing="") for each in ("manufacturer", "product", "serial")]
            raw = self._descriptors(folder)
            return UsbDevice(
                name=name,
                number=self._text(folder / "devnum", missing="0"),
                vendor=vendor,
                product=product,
                serial=texts[2],
                label=texts[1],
                manufacturer=texts[0],
                authorized=self._text(folder / "authorized") != "0",
                offered=offered_by(raw)
                if raw is not None
                else tuple(Offered(each.number, each.kind) for each in interfaces),
                interfaces=interfaces,
                hub=self._hub(name),
                connect=self._text(folder / "port" / "connect_type", missing="unknown"),
                connected_s=self._connected_s(folder),
                digest=None if raw is None else device_digest(vendor, product, texts, raw),
            )
        except FileNotFoundError:
            if folder.is_dir():
                raise
            return None

    def default(self, hub: str, attribute: str) -> str | None:
        """Return `authorized_default` or `interface_authorized_default` of a root hub; None where it has none.

        Hub USBCORE has the `authorized_default` that root hubs get which come later, with their controller.
        """
        return self._text(self._default_path(hub, attribute), missing="") or None

    def set_default(self, hub: str, attribute: str, value: str) -> None:
        """Write a default of a root hub, or of USBCORE."""
        _write(self._default_path(hub, attribute), value)

    def _default_path(self, hub: str, attribute: str) -> Path:
        return self._parameter if hub == USBCORE else self._devices / hub / attribute

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
        number = folder.name.rpartition(".")[2]
        return UsbInterface(
            folder.name,
            int(number) if number.isascii() and number.isdigit() else -1,
            kind,
            self._text(folder / "authorized", missing="1") != "0",
        )

    def _descriptors(self, folder: Path) -> bytes | None:
        try:
            return _read(folder / "descriptors", _MAX_DESCRIPTOR_BYTES)
        except FileNotFoundError:
            return None

    def _hub(self, name: str) -> tuple[str, str]:
        place = name.rpartition(".")[0]
        if not place:
            return ROOT, ROOT
        ids = [
            self._text(self._devices / place / each, missing="").lower() for each in ("idVendor", "idProduct")
        ]
        return place, ":".join(ids)

    def _connected_s(self, folder: Path) -> float | None:
        text = self._text(folder / "power" / "connected_duration", missing="")
        # In ms of the kernel's ticks, which stand still in suspend as the monotonic clock does.
        return time.monotonic() - int(text) / 1000 if text.isascii() and text.isdigit() else None

    def _text(self, path: Path, missing: str | None = None) -> str:
        try:
            return printable(_read(path, _MAX_ATTRIBUTE_BYTES).decode("utf-8", "backslashreplace").strip())
        except FileNotFoundError:
            if missing is None:
                raise
            return missing


def offered_by(untrusted_descriptors: bytes) -> tuple[Offered, ...]:
    """Return the interfaces that descriptors announce (USB 2.0, 9.6.3 and 9.6.5), sorted.

    An alternate setting of the same kind is the same interface; in another configuration it counts again. Bytes that do not
    walk to their end yield MALFORMED beside what was found before: nothing may match by luck.
    """
    found: set[tuple[int, Offered]] = set()
    place = configuration = 0
    while place < len(untrusted_descriptors):
        length = untrusted_descriptors[place]
        kind = untrusted_descriptors[place + 1] if place + 1 < len(untrusted_descriptors) else 0
        short = kind == _DESCRIPTOR_INTERFACE and length < 9
        if length < 2 or short or place + length > len(untrusted_descriptors):
            found.add((configuration, Offered(-1, MALFORMED)))
            break
        if kind == _DESCRIPTOR_CONFIGURATION:
            configuration += 1
        if kind == _DESCRIPTOR_INTERFACE:
            fields = untrusted_descriptors[place + 5 : place + 8]
            found.add((configuration, Offered(untrusted_descriptors[place + 2], fields.hex(":"))))
        place += length
    return tuple(sorted(each for _, each in found))


def device_digest(vendor: str, product: str, texts: list[str], untrusted_descriptors: bytes) -> str:
    """Return SHA-256, hexadecimal, of ids, manufacturer, product, serial and raw descriptors, each after its length.

    A device that copies another's ids and serial but offers anything else has another digest. One that copies every
    byte has the same: nothing that a USB device says can be proved.
    """
    digest = hashlib.sha256()
    for part in (*(text.encode() for text in (vendor, product, *texts)), untrusted_descriptors):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()


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
