"""Device nodes for tests: real ones (mknod) of devices that every kernel has, in a /dev of the test's own.

Number 1:7 (`full`) can be opened and hardly anybody has it open; sysfs is a small tree in which it is what the test says.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.host import Host
from agent.probes import Surroundings
from tests.agent.probes.case import Case

OPENABLE = (1, 7)
OTHER = (1, 5)
_HOLD = "import os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR); os.setuid(int(sys.argv[2])); print('open', flush=True); time.sleep(60)"


class Machine:
    """A /dev and a /sys; /proc is the machine's own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.sysfs = folder / "root", folder / "sys"
        (self.root / "dev").mkdir(parents=True)
        (self.sysfs / "dev/char").mkdir(parents=True)
        self.host = Host(root=self.root, sysfs_root=self.sysfs)
        self.around = Surroundings(host=self.host)

    def node(self, path: str, number: tuple[int, int] = OPENABLE, mode: int = 0o660) -> Path:
        """Make a character device."""
        at = self.root / path.removeprefix("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(at, stat.S_IFCHR, os.makedev(*number))
        at.chmod(mode)
        return at

    def usb(self, number: tuple[int, int], vendor: str, product: str, serial: str, driver: str) -> None:
        """Say that a number is a USB device's."""
        device = self.sysfs / f"devices/usb1/1-1/1-1:1.0/class{number[0]}_{number[1]}"
        device.mkdir(parents=True)
        for name, value in (("idVendor", vendor), ("idProduct", product), ("serial", serial)):
            (self.sysfs / "devices/usb1/1-1" / name).write_text(value + "\n")
        drivers = self.sysfs / "bus/usb/drivers" / driver
        drivers.mkdir(parents=True)
        (self.sysfs / "devices/usb1/1-1/1-1:1.0/driver").symlink_to(drivers)
        (device / "device").symlink_to("../../1-1:1.0")
        (self.sysfs / f"dev/char/{number[0]}:{number[1]}").symlink_to(device)


def facts(folder: Path) -> dict[str, object]:
    """Return owner, mode and list of everything in a folder, as `stat` and `getfattr` would show them."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        one = path.lstat()
        lists = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path)}
        found[str(path)] = (oct(one.st_mode), one.st_uid, one.st_gid, one.st_rdev, lists)
    return found


@contextmanager
def holding(path: Path, *, uid: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has a device open."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _HOLD, str(path), str(uid)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@contextmanager
def case_of(section: str, path: str, folder: Path) -> Iterator[Case]:
    """Yield the case of a section whose nodes stand under `path` with a number after it."""
    machine = Machine(folder)
    machine.node(f"{path}0")
    toml = f"""\
[{section}]
unknown = "close"
[[{section}.allow]]
nodes = ["{path}0"]
owner = "root"
group = "0"
mode = "0660"
opened_by = []
reason = "the one that is meant"
"""

    def spoil() -> None:
        (machine.root / f"{path}0".removeprefix("/")).chmod(0o666)
        machine.node(f"{path}1", OTHER, 0o666)

    def blind() -> None:
        held = machine.root / "dev"
        held.rename(machine.root / "gone")
        held.write_text("no folder")

    yield Case(
        toml=toml,
        around=machine.around,
        spoil=spoil,
        blind=blind,
        state=lambda: facts(machine.root),
        trace=lambda: {str(each): each.lstat().st_ctime_ns for each in sorted(machine.root.rglob("*"))},
        heirs=(f'[{section}]\nunknown = "close"\n', toml.replace('"0660"', '"0600"')),
    )
