"""A USB tree as sysfs shows it, in plain files, with the kernel's side of the authorisation rules.

What the kernel does (Documentation/usb/authorization.rst, drivers/usb/core): a new device takes `authorized` from
`authorized_default` of its bus; an unauthorised device has no configuration and therefore no interfaces; writing 1
configures it, and its interfaces take `authorized` from `interface_authorized_default`; writing 0 takes them away.
`UsbTree.run` (a thread) or `UsbTree.settle` plays that part. Device directories are links below `bus/usb/devices`, as
in sysfs. Raw descriptors are there from the start, as in sysfs, so interfaces can be judged before they exist.
"""

from __future__ import annotations

import shutil
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

Interface = tuple[int, int, int]
"""Class, subclass, protocol."""

KEYBOARD: Interface = (0x03, 0x01, 0x01)
MOUSE: Interface = (0x03, 0x01, 0x02)
STORAGE: Interface = (0x08, 0x06, 0x50)
HUB: Interface = (0x09, 0x00, 0x00)

_POLL_S = 0.01


@dataclass(frozen=True)
class Device:
    """What is plugged in."""

    vendor: int
    product: int
    name: str
    serial: str = ""
    interfaces: tuple[Interface, ...] = (KEYBOARD,)
    device_class: int = 0
    manufacturer: str = ""


KNOWN_KEYBOARD = Device(0x046D, 0xC31C, "Keyboard K120", interfaces=(KEYBOARD, (0x03, 0x00, 0x00)))
STORAGE_STICK = Device(0x0951, 0x1666, "DataTraveler 3.0", "60A44C413FAEE2B1", (STORAGE,))


def descriptors(device: Device) -> bytes:
    """Return device and configuration descriptors (USB 2.0, clause 9.6), as sysfs `descriptors` holds them."""
    body = b"".join(
        struct.pack("<9B", 9, 4, number, 0, 0, *kind, 0) for number, kind in enumerate(device.interfaces)
    )
    head = struct.pack("<BBHBBBBB", 9, 2, 9 + len(body), len(device.interfaces), 1, 0, 0xA0, 50)
    return (
        struct.pack(
            "<BBHBBBBHHHBBBB",
            18, 1, 0x0200, device.device_class, 0, 0, 64, device.vendor, device.product, 0x0100,
            1, 2, 3 if device.serial else 0, 1,
        )
        + head
        + body
    )  # fmt: skip


class UsbTree:
    """A fake `/sys` with USB buses in it."""

    def __init__(self, root: Path, buses: int = 1) -> None:
        """Make the buses with their root hubs, everything authorised, as a stock kernel starts."""
        self.root = root
        self._links = root / "bus/usb/devices"
        self._links.mkdir(parents=True)
        self._devices: dict[str, Device] = {}
        self._numbers: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        parameters = root / "module/usbcore/parameters"
        parameters.mkdir(parents=True)
        _put(parameters, authorized_default="-1")
        for bus in range(1, buses + 1):
            self._root_hub(bus)

    def _root_hub(self, bus: int) -> None:
        at = self.root / f"devices/pci0000:00/0000:00:{0x13 + bus:02x}.0/usb{bus}"
        hub = Device(0x1D6B, 0x0002, "xHCI Host Controller", f"0000:00:{0x13 + bus:02x}.0", (HUB,), 9)
        self._write_device(at, hub, bus, 1, "0")
        _put(at, authorized="1", authorized_default="1", interface_authorized_default="1")
        self._link(at)
        self._numbers[bus] = 1
        self._configure(at, hub, f"{bus}-0", "1")

    def plug(
        self,
        device: Device,
        *,
        bus: int = 1,
        port: str = "1",
        connect: str = "hotplug",
        connected_ms: int = 0,
    ) -> str:
        """Plug a device in; `port` "1.4" is port 4 of the hub in port 1. Return its name in sysfs ("1-1.4").

        `connect` is what the firmware says of the port; `connected_ms` for how long the kernel says that it is there.
        """
        with self._lock:
            parent = self._links / (f"{bus}-{port.rpartition('.')[0]}" if "." in port else f"usb{bus}")
            hub = (self._links / f"usb{bus}").resolve()
            name = f"{bus}-{port}"
            at = parent.resolve() / name
            self._numbers[bus] += 1
            self._write_device(at, device, bus, self._numbers[bus], port)
            (at / "power").mkdir()
            _put(at / "power", connected_duration=str(connected_ms))
            (at / "port").mkdir()
            _put(at / "port", connect_type=connect)
            allowed = _get(hub, "authorized_default") != "0"
            _put(at, authorized="1" if allowed else "0")
            self._devices[name] = device
            if allowed:
                self._configure(at, device, name, _get(hub, "interface_authorized_default"))
            self._link(at)
            return name

    def unplug(self, name: str) -> None:
        """Pull a device out, with everything behind it."""
        with self._lock:
            at = (self._links / name).resolve()
            for link in list(self._links.iterdir()):
                if at in (link.resolve(), *link.resolve().parents):
                    link.unlink()
                    self._devices.pop(link.name, None)
            shutil.rmtree(at)

    def authorized(self, name: str) -> bool:
        """Say whether a device (or interface, "1-1:1.0") may be used."""
        at = self._links / name
        return at.exists() and _get(at, "authorized") == "1"

    def interfaces(self, name: str) -> list[str]:
        """Return the names of the interfaces a device has now: none while it is not authorised."""
        return sorted(path.name for path in self._links.glob(f"{name}:*"))

    def settle(self) -> None:
        """Do once what the kernel does about `authorized` files written since."""
        with self._lock:
            for name, device in self._devices.items():
                at = (self._links / name).resolve()
                allowed, configured = _get(at, "authorized") == "1", bool(_get(at, "bConfigurationValue"))
                if allowed and not configured:
                    hub = self._links / f"usb{name.partition('-')[0]}"
                    self._configure(at, device, name, _get(hub, "interface_authorized_default"))
                elif configured and not allowed:
                    self._unconfigure(at, name)

    def run(self) -> None:
        """Settle every 10 ms in a thread, until `close`."""
        self._thread = threading.Thread(target=self._loop, name="usb", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread. The files stay."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _loop(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.settle()

    def _write_device(self, at: Path, device: Device, bus: int, number: int, port: str) -> None:
        at.mkdir(parents=True)
        _put(
            at,
            idVendor=f"{device.vendor:04x}",
            idProduct=f"{device.product:04x}",
            product=device.name,
            bDeviceClass=f"{device.device_class:02x}",
            bDeviceSubClass="00",
            bDeviceProtocol="00",
            bConfigurationValue="",
            bNumInterfaces="",
            busnum=str(bus),
            devnum=str(number),
            devpath=port,
            speed="480",
            removable="unknown",
            uevent=f"DEVTYPE=usb_device\nBUSNUM={bus:03}\nDEVNUM={number:03}",
        )
        if device.serial:
            _put(at, serial=device.serial)
        if device.manufacturer:
            _put(at, manufacturer=device.manufacturer)
        (at / "descriptors").write_bytes(descriptors(device))

    def _configure(self, at: Path, device: Device, name: str, allowed: str) -> None:
        _put(at, bConfigurationValue="1", bNumInterfaces=f"{len(device.interfaces):2}")
        for number, (base, sub, protocol) in enumerate(device.interfaces):
            interface = at / f"{name}:1.{number}"
            interface.mkdir()
            _put(
                interface,
                authorized=allowed,
                bInterfaceNumber=f"{number:02x}",
                bInterfaceClass=f"{base:02x}",
                bInterfaceSubClass=f"{sub:02x}",
                bInterfaceProtocol=f"{protocol:02x}",
            )
            self._link(interface)

    def _unconfigure(self, at: Path, name: str) -> None:
        _put(at, bConfigurationValue="", bNumInterfaces="")
        for interface in at.glob(f"{name}:*"):
            (self._links / interface.name).unlink()
            shutil.rmtree(interface)

    def _link(self, at: Path) -> None:
        depth = Path("../../..")
        (self._links / at.name).symlink_to(depth / at.relative_to(self.root))


def _put(at: Path, **files: str) -> None:
    for name, value in files.items():
        (at / name).write_text(value + "\n")


def _get(at: Path, name: str) -> str:
    try:
        return (at / name).read_text().strip()
    except OSError:
        return ""
