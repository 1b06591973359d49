"""PCI, Thunderbolt and disks as sysfs shows them, and the kernel's switches for them. Part of the gate `agent.host`.

Kernel facts: `remove` of a PCI device takes it from the kernel until `rescan` of the bus; with `drivers_autoprobe` 0 a device that
comes gets no driver until `drivers_probe` is told its address (Documentation/ABI/testing/sysfs-bus-pci); `authorized` of a Thunderbolt device opens
its PCIe tunnel (Documentation/admin-guide/thunderbolt.rst). Decides nothing; every method raises OSError for what cannot be read or written.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent.proc import printable

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DOMAIN = re.compile(r"domain[0-9]+")
_THUNDERBOLT = re.compile(r"[0-9]+-[0-9a-f]+")
_MAX_ATTRIBUTE_BYTES = 4096
_SECTOR_BYTES = 512


class PciDevice(NamedTuple):
    """One PCI function. Numbers are hexadecimal without `0x`."""

    address: str
    vendor: str
    device: str
    subsystem: str
    """`vendor:device` of the card's maker."""
    kind: str
    """Class, subclass, interface: `030000`."""
    driver: str
    """Empty where none is bound."""
    removable: str
    """`removable`, `fixed` or `unknown`, as the firmware says."""

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.vendor}:{self.device} class {self.kind}, driver {self.driver or 'none'}"


class PciBus:
    """The PCI part of a sysfs tree."""

    def __init__(self, sysfs_root: Path) -> None:
        self._bus = sysfs_root / "bus/pci"

    def devices(self) -> list[PciDevice]:
        """Return every function, by address; none where the kernel has no PCI."""
        found = []
        for name in _names(self._bus / "devices", self._bus.parent):
            folder = self._bus / "devices" / name
            if _ADDRESS.fullmatch(name):
                with _unless_gone(folder):
                    found.append(self._device(name, folder))
        return found

    def remove(self, device: PciDevice) -> None:
        """Take a device from the kernel."""
        write(self._bus / "devices" / device.address / "remove", "1")

    def rescan(self) -> None:
        """Have the kernel look for what was taken from it."""
        write(self._bus / "rescan", "1")

    def autoprobe(self) -> bool | None:
        """Tell whether a device that comes gets its driver at once; None where there is no such switch."""
        found = text(self._bus / "drivers_autoprobe", missing="")
        return None if not found else found != "0"

    def set_autoprobe(self, on: bool) -> None:
        """Set whether a device that comes gets its driver at once."""
        write(self._bus / "drivers_autoprobe", "1" if on else "0")

    def bind(self, device: PciDevice) -> None:
        """Let the kernel find a driver for a device; that there is none is no error."""
        with suppress(OSError):
            write(self._bus / "drivers_probe", device.address)

    def above(self, places: Iterable[Path]) -> set[str]:
        """Return the addresses of all functions that some places of sysfs lie below: what would go with them."""
        return {part for place in places for part in place.resolve().parts if _ADDRESS.fullmatch(part)}

    def _device(self, name: str, folder: Path) -> PciDevice:
        def number(attribute: str) -> str:
            return text(folder / attribute).removeprefix("0x")

        def optional(attribute: str) -> str:
            return text(folder / attribute, missing="").removeprefix("0x")

        return PciDevice(
            address=name,
            vendor=number("vendor"),
            device=number("device"),
            subsystem=f"{optional('subsystem_vendor')}:{optional('subsystem_device')}",
            kind=number("class"),
            driver=_link(folder / "driver"),
            removable=text(folder / "removable", missing="unknown"),
        )


class ThunderboltDomain(NamedTuple):
    """One host controller."""

    name: str
    security: str
    """`none`, `user`, `secure`, `dponly`, `usbonly`, `nopcie`."""
    dma_protection: bool
    """Whether the IOMMU stands before the memory."""


class ThunderboltDevice(NamedTuple):
    """One device or host router. Texts are the device's own claims, made printable."""

    name: str
    """Place: domain and route, `0-3`; route 0 is the host itself."""
    uuid: str
    vendor: str
    device: str
    vendor_name: str
    device_name: str
    authorized: bool

    def is_host(self) -> bool:
        """True for the machine's own router."""
        return self.name.rpartition("-")[2] == "0"


class ThunderboltBus:
    """The Thunderbolt part of a sysfs tree."""

    def __init__(self, sysfs_root: Path) -> None:
        self._bus = sysfs_root / "bus/thunderbolt"

    def domains(self) -> list[ThunderboltDomain]:
        """Return the host controllers; none where there is no Thunderbolt."""
        found = []
        for name in _names(self._bus / "devices", self._bus.parent):
            folder = self._bus / "devices" / name
            if _DOMAIN.fullmatch(name):
                with _unless_gone(folder):
                    protected = text(folder / "iommu_dma_protection", missing="0") == "1"
                    found.append(ThunderboltDomain(name, text(folder / "security"), protected))
        return found

    def devices(self) -> list[ThunderboltDevice]:
        """Return devices that are plugged in; the machine's own routers are left out."""
        found = []
        for name in _names(self._bus / "devices", self._bus.parent):
            folder = self._bus / "devices" / name
            if _THUNDERBOLT.fullmatch(name):
                with _unless_gone(folder):
                    device = ThunderboltDevice(
                        name=name,
                        uuid=text(folder / "unique_id", missing=""),
                        vendor=text(folder / "vendor", missing="").removeprefix("0x"),
                        device=text(folder / "device", missing="").removeprefix("0x"),
                        vendor_name=text(folder / "vendor_name", missing=""),
                        device_name=text(folder / "device_name", missing=""),
                        authorized=text(folder / "authorized", missing="0") != "0",
                    )
                    if not device.is_host():
                        found.append(device)
        return found

    def authorize(self, device: ThunderboltDevice, allowed: bool) -> None:
        """Open or close a device's tunnel. Closing needs a kernel and a controller that can (`deauthorization`)."""
        write(self._bus / "devices" / device.name / "authorized", "1" if allowed else "0")


class Disk(NamedTuple):
    """One whole block device that has a medium. Texts are printable."""

    name: str
    number: tuple[int, int]
    size_bytes: int
    removable: bool
    read_only: bool
    serial: str
    wwid: str
    model: str
    backing: str
    """Of a loop device: the file."""

    def describe(self) -> str:
        """Return it in words."""
        parts = [self.model or "a disk", f"{self.size_bytes // 1_000_000} MB"]
        parts += [f"{key} {value}" for key, value in (("serial", self.serial), ("wwid", self.wwid)) if value]
        return ", ".join(parts) + (", removable" if self.removable else "")


class Disks:
    """The block devices of a sysfs tree."""

    def __init__(self, sysfs_root: Path) -> None:
        self._sysfs = sysfs_root
        self._blocks = sysfs_root / "block"

    def all(self) -> list[Disk]:
        """Return the whole disks with a medium in them, by name."""
        found = []
        for name in sorted(os.listdir(self._blocks)):  # noqa: PTH208
            folder = self._blocks / name
            with _unless_gone(folder):
                size, (major, _, minor) = text(folder / "size"), text(folder / "dev").partition(":")
                if not all(each.isascii() and each.isdigit() for each in (size, major, minor)):
                    raise OSError(errno.EINVAL, "no numbers in size or dev", str(folder))
                size_bytes = int(size) * _SECTOR_BYTES
                if not size_bytes:
                    continue
                found.append(
                    Disk(
                        name=printable(name),
                        number=(int(major), int(minor)),
                        size_bytes=size_bytes,
                        removable=text(folder / "removable", missing="0") != "0",
                        read_only=text(folder / "ro", missing="0") != "0",
                        serial=_first(folder, "serial", "device/serial") or _page_80(folder),
                        wwid=_first(folder, "wwid", "device/wwid", "dm/uuid", "md/uuid"),
                        model=_first(folder, "device/model", "dm/name"),
                        backing=_first(folder, "loop/backing_file"),
                    )
                )
        return found

    def carrying(self, numbers: Iterable[tuple[int, int]]) -> dict[str, Path]:
        """Return the whole disks under some block devices, through device-mapper and RAID, with their places in sysfs."""
        waiting = [self._sysfs / f"dev/block/{major}:{minor}" for major, minor in numbers]
        found: dict[str, Path] = {}
        while waiting:
            place = waiting.pop().resolve()
            if not place.is_dir():
                continue
            if (place / "partition").exists():
                place = place.parent
            if place.name not in found:
                found[printable(place.name)] = place
                waiting += (place / "slaves").glob("*")
        return found

    def delete(self, disk: Disk) -> None:
        """Take a disk from the kernel. Raises FileNotFoundError where its kind (not SCSI) has no such switch."""
        write(self._blocks / disk.name / "device/delete", "1")


@contextmanager
def _unless_gone(folder: Path) -> Iterator[None]:
    """Pass over a device that went while it was read; what fails in another way is raised."""
    try:
        yield
    except FileNotFoundError:
        if folder.exists():
            raise


def text(path: Path, *, missing: str | None = None) -> str:
    """Return an attribute, stripped and printable. Raises OSError; `missing` stands for one that is not there."""
    try:
        with path.open("rb") as file:
            return printable(file.read(_MAX_ATTRIBUTE_BYTES).decode("utf-8", "backslashreplace").strip())
    except FileNotFoundError:
        if missing is None:
            raise
        return missing


def write(path: Path, value: str) -> None:
    """Write an attribute that is there. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _names(folder: Path, above: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        if above.is_dir():
            return []
        raise


def _link(path: Path) -> str:
    try:
        return printable(os.readlink(path).rpartition("/")[2])  # noqa: PTH115
    except FileNotFoundError:
        return ""


def _first(folder: Path, *attributes: str) -> str:
    for attribute in attributes:
        try:
            if found := text(folder / attribute, missing=""):
                return found
        except OSError:  # a disk that does not answer: it has no such text then
            continue
    return ""


def _page_80(folder: Path) -> str:
    """Return the serial number of a SCSI disk: page 80 of its vital product data, after a head of four bytes (SPC-4, 7.8.17)."""
    try:
        with (folder / "device/vpd_pg80").open("rb") as file:
            raw = file.read(260)
    except OSError:
        return ""
    return printable(raw[4:].decode("ascii", "backslashreplace").strip())
