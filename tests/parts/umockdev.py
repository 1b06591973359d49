"""Devices that a process takes for the machine's own: umockdev's testbed, through its C library.

Works only in a process that `umockdev-wrapper` has started: `under_umockdev` tells. Paths below /sys are then led into the
testbed, and kernel uevents come from it. The testbed plays no kernel: what is written to a switch stays what was written.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tests.parts.usbtree import Device, descriptors


def under_umockdev() -> bool:
    """Tell whether this process was started by `umockdev-wrapper`."""
    return "libumockdev-preload" in os.environ.get("LD_PRELOAD", "")


class Testbed:
    """A /sys of our own."""

    __test__ = False

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libumockdev.so.0")
        for name in ("new", "get_root_dir"):
            getattr(self._library, f"umockdev_testbed_{name}").restype = ctypes.c_void_p
        self._bed = ctypes.c_void_p(self._library.umockdev_testbed_new())
        root = self._library.umockdev_testbed_get_root_dir(self._bed)
        self.root = Path(ctypes.string_at(root).decode())
        """Where it really lies: for witnesses."""

    def close(self) -> None:
        """Remove it; umockdev deletes its folder with its object."""
        ctypes.CDLL("libgobject-2.0.so.0").g_object_unref(self._bed)

    def add(self, description: str) -> None:
        """Add devices in umockdev's own words (P: path, E: property, A: attribute, H: attribute in hexadecimal)."""
        error = ctypes.c_void_p()
        if not self._library.umockdev_testbed_add_from_string(
            self._bed, description.encode(), ctypes.byref(error)
        ):
            raise ValueError(f"umockdev does not take this:\n{description}")

    def uevent(self, path: str, action: str) -> None:
        """Announce a device, as the kernel does."""
        self._library.umockdev_testbed_uevent(self._bed, f"/sys{path}".encode(), action.encode())

    def remove(self, path: str) -> None:
        """Take a device away."""
        self._library.umockdev_testbed_remove_device(self._bed, f"/sys{path}".encode())

    def set_attribute(self, path: str, name: str, value: str) -> None:
        """Make an attribute of a device show a value."""
        at = f"/sys{path}".encode()
        self._library.umockdev_testbed_set_attribute(self._bed, at, name.encode(), f"{value}\n".encode())

    def read(self, path: str) -> str:
        """Return a file below /sys as it really is on disk; does not go through the library's eyes."""
        return (self.root / "sys" / path.removeprefix("/")).read_text().strip()

    def root_hub(self) -> None:
        """Add one USB bus."""
        self.add(_usb(_HUB_PATH, Device(0x1D6B, 2, "xHCI", device_class=9), "1", 1, _HUB_DEFAULTS))

    def plug(self, name: str, device: Device, *, number: int) -> str:
        """Plug a USB device into the bus; it waits, as under `authorized_default` 0. Return its path below /sys."""
        path = f"{_HUB_PATH}/{name}"
        self.add(_usb(path, device, "0", number, "A: power/connected_duration=0\\n\n"))
        self.uevent(path, "add")
        return path


_HUB_PATH = "/devices/pci0000:00/0000:00:14.0/usb1"
_HUB_DEFAULTS = "A: authorized_default=1\\n\nA: interface_authorized_default=1\\n\n"


def _usb(path: str, device: Device, authorized: str, number: int, more: str) -> str:
    return f"""\
P: {path}
E: SUBSYSTEM=usb
E: DEVTYPE=usb_device
A: idVendor={device.vendor:04x}\\n
A: idProduct={device.product:04x}\\n
A: product={device.name}\\n
A: serial={device.serial}\\n
A: devnum={number}\\n
A: bDeviceClass={device.device_class:02x}\\n
A: authorized={authorized}\\n
H: descriptors={descriptors(device).hex().upper()}
{more}
"""
