"""USB before the agent (ATTACKS d03): state folders of every kind, and a tree that follows the kernel's rules as witness.

The last tests run in a process of their own under `umockdev-wrapper`; `test_d03_under_umockdev` starts it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import early, earlyusb
from agent.config import load_config
from agent.devices import UsbTree as Switches
from agent.host import Host
from agent.probes import Surroundings
from agent.probes.usb import Probe
from agent.store import Slot, State, Store, fresh_state
from contract.messages import BaselineRef
from tests.parts.signing import minimal_baseline
from tests.parts.umockdev import Testbed, under_umockdev
from tests.parts.usbtree import KNOWN_KEYBOARD, STORAGE, STORAGE_STICK, Device, UsbTree

TREE = Path(__file__).resolve().parents[2]
NODE = "early-usb"
RULES = TREE / "packaging/udev/60-ringfence-usb.rules"
KEYBOARDS = """
[[usb.allow]]
interfaces = ["03:01:01", "03:00:*"]
reason = "whoever has to work at the node's console"
"""
USB = '[usb]\nmode = "enforce"\n' + KEYBOARDS
TYPING_STICK = Device(0x0951, 0x1666, "DataTraveler 3.0", interfaces=(STORAGE, (0x03, 0x01, 0x01)))
LATE = Device(0x046D, 0xC077, "Another keyboard")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[UsbTree]:
    made = UsbTree(tmp_path / "sys")
    made.run()
    yield made
    made.close()


def slot(usb: str) -> Slot:
    raw = minimal_baseline("factory", 1, extra=usb)
    return Slot(ref=BaselineRef(name="factory", version=1, sha256=hashlib.sha256(raw).digest()), raw=raw)


def at_boot(tree: UsbTree, device: Device, port: str) -> str:
    """Plug in what the kernel says was there from its start on."""
    return tree.plug(device, port=port, connected_ms=int(time.monotonic() * 1000))


def defaults(tree: UsbTree) -> list[str]:
    hub = tree.root / "bus/usb/devices/usb1"
    files = (
        hub / "authorized_default",
        hub / "interface_authorized_default",
        tree.root / "module/usbcore/parameters/authorized_default",
    )
    return [file.read_text().strip() for file in files]


class Kernel(Switches):
    """Switches that do at once what they do, as the kernel's own: a device has its interfaces when the write returns."""

    def __init__(self, tree: UsbTree) -> None:
        super().__init__(tree.root)
        self._tree = tree

    def authorize(self, device: str, allowed: bool) -> None:
        super().authorize(device, allowed)
        self._tree.settle()


def configured(folder: Path, state: State | None) -> None:
    (folder / "agent.toml").write_text(
        f'node = "{NODE}"\nstate_dir = "{folder}/state"\n[controller]\nurl = "https://192.0.2.1:8443"\n'
        f'ca = "/nowhere"\n[roots]\nsysfs = "{folder}/sys"\n'
    )
    if state is not None:
        Store(folder / "state", NODE).save_state(state)


def run(folder: Path, state: State | None) -> str:
    """Run the very command in an empty network namespace; return what it said."""
    configured(folder, state)
    command = [sys.executable, "-m", "agent.start", "early", "--config", folder / "agent.toml"]
    done = subprocess.run(["unshare", "--net", *command], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def confirmed(usb: str) -> State:
    return replace(fresh_state(1.0), last_good=slot(usb))


def test_d03_what_is_there_at_boot_is_decided_before_the_agent(tree: UsbTree, tmp_path: Path) -> None:
    keyboard, stick = at_boot(tree, KNOWN_KEYBOARD, "1"), at_boot(tree, STORAGE_STICK, "2")
    assert tree.authorized(stick), "as a stock kernel starts"
    said = run(tmp_path, confirmed(USB))
    assert defaults(tree) == ["0", "0", "0"]
    assert not tree.authorized(stick)
    assert tree.authorized(keyboard)
    assert all(tree.authorized(each) for each in tree.interfaces(keyboard))
    assert "0951:1666 (DataTraveler 3.0) at 1-2 is refused: no rule allows it" in said


def test_d03_what_enumerates_afterwards_waits_for_the_agent(tree: UsbTree, tmp_path: Path) -> None:
    run(tmp_path, confirmed(USB))
    for port, device in (("1", STORAGE_STICK), ("2", LATE)):
        assert not tree.authorized(tree.plug(device, port=port))


def test_d03_keyboards_work_under_the_kernels_own_parameter_as_the_rules_say(
    tree: UsbTree, tmp_path: Path
) -> None:
    """`usbcore.authorized_default=0` on the command line: the kernel has let nothing in."""
    (tree.root / "module/usbcore/parameters/authorized_default").write_text("0\n")
    (tree.root / "bus/usb/devices/usb1/authorized_default").write_text("0\n")
    keyboard, stick = at_boot(tree, KNOWN_KEYBOARD, "1"), at_boot(tree, STORAGE_STICK, "2")
    typing = at_boot(tree, TYPING_STICK, "3")
    late = tree.plug(LATE, port="4")
    assert not tree.authorized(keyboard)
    blocked = '[[usb.block]]\ninterfaces = ["08:*:*"]\nreason = "no storage"\n'
    configured(tmp_path, confirmed(USB.replace("[usb]", '[usb]\nkeyboards = "boot"') + blocked))
    made = early.rules(load_config(tmp_path / "agent.toml"))
    assert made.usb is not None
    host = Host(sysfs_root=tree.root)
    host.usb = Kernel(tree)
    earlyusb.decide(made.usb, host, 1.0)
    assert tree.authorized(keyboard)
    assert [tree.authorized(each) for each in tree.interfaces(keyboard)] == [True, True]
    assert not tree.authorized(stick)
    assert not tree.authorized(typing)
    assert not tree.authorized(late), "a keyboard that came after the start"


def test_d03_the_agent_finds_nothing_to_change_after_it(tree: UsbTree, tmp_path: Path) -> None:
    at_boot(tree, KNOWN_KEYBOARD, "1"), at_boot(tree, STORAGE_STICK, "2")
    run(tmp_path, confirmed(USB))
    tree.settle()
    written = {path: path.lstat().st_mtime_ns for path in tree.root.rglob("authorized*")}
    run(tmp_path, None)
    assert {path: path.lstat().st_mtime_ns for path in tree.root.rglob("authorized*")} == written
    made = early.rules(load_config(tmp_path / "agent.toml"))
    assert made.usb is not None
    assert Probe(made.usb, Surroundings(host=Host(sysfs_root=tree.root))).observe(1.0) == []


@pytest.mark.parametrize(
    "state",
    [
        None,
        fresh_state(1.0),
        confirmed(""),
        confirmed('[usb]\nmode = "observe"\n'),
        confirmed(USB.replace('mode = "enforce"', 'mode = "observe"')),
        replace(confirmed(USB), last_good=None, pending=slot(USB)),
        replace(confirmed(USB), last_good=replace(slot(USB), raw=slot("").raw)),
    ],
    ids=["no state", "fresh", "no section", "observed", "observed rules", "only pending", "another baseline"],
)
def test_what_no_confirmed_baseline_enforces_is_left_as_it_is(
    tree: UsbTree, tmp_path: Path, state: State | None
) -> None:
    stick = at_boot(tree, STORAGE_STICK, "1")
    run(tmp_path, state)
    assert defaults(tree) == ["1", "1", "-1"]
    assert tree.authorized(stick)


def test_d03_a_hub_that_cannot_be_set_is_said_and_the_rules_stand(tree: UsbTree, tmp_path: Path) -> None:
    stick = at_boot(tree, STORAGE_STICK, "2")
    default = tree.root / "bus/usb/devices/usb1/authorized_default"
    default.unlink()
    default.mkdir()
    said = run(tmp_path, confirmed(USB))
    assert "factory/1 in posture normal" in said
    assert "usb: usb1 authorized_default: wanted 0 (could not look" in said
    assert not tree.authorized(stick)


def test_d03_without_usb_there_is_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "sys/bus").mkdir(parents=True)
    assert "usb" not in run(tmp_path, confirmed(USB))


def test_the_grub_setting_adds_to_what_is_there() -> None:
    text = (
        f'GRUB_CMDLINE_LINUX="quiet"; . {TREE}/packaging/grub.d/ringfence-usb.cfg; echo "$GRUB_CMDLINE_LINUX"'
    )
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["quiet", "usbcore.authorized_default=0"]


# ---- under umockdev

inside = pytest.mark.skipif(not under_umockdev(), reason="runs in the process that another test starts")


def udev_plays() -> bool:
    """Whether `udevadm test` writes what its rules say: from systemd 257 on it only tells."""
    if shutil.which("udevadm") is None:
        return False
    return (
        int(subprocess.run(["udevadm", "--version"], capture_output=True, text=True).stdout.split()[0]) < 257
    )


needs_udev = pytest.mark.skipif(not udev_plays(), reason="there is no udev, or none that can be tried")
HUB = "devices/pci0000:00/0000:00:14.0/usb1"


@pytest.mark.skipif(under_umockdev(), reason="the others do the work")
def test_d03_under_umockdev() -> None:
    done = subprocess.run(
        ["umockdev-wrapper", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-k", "mocked", __file__],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert (".." if udev_plays() else ".") in done.stdout


@pytest.fixture
def bed() -> Iterator[Testbed]:
    made = Testbed()
    made.root_hub()
    yield made
    made.close()


@inside
def test_d03_mocked_devices_are_decided_on_the_machines_own_sysfs(bed: Testbed) -> None:
    keyboard = bed.plug("1-1", KNOWN_KEYBOARD, number=2)
    stick = bed.plug("1-2", STORAGE_STICK, number=3)
    (bed.root / "sys" / stick.lstrip("/") / "authorized").write_text("1")
    section = earlyusb.enforced(early.parse_baseline(slot(USB).raw))
    assert section is not None
    said = earlyusb.decide(section, Host(), 1.0)
    assert bed.read(f"{HUB}/authorized_default") == bed.read(f"{HUB}/interface_authorized_default") == "0"
    assert (bed.read(f"{keyboard}/authorized"), bed.read(f"{stick}/authorized")) == ("1", "0")
    assert [line for line in said if "is refused" in line]


def udev(path: str, *, rule: bool = True) -> None:
    """Let udev itself play its rules, ours among them, for one device that appears; the machine's own udev sees nothing of it."""
    install = f"mkdir /run/udev/rules.d; cp {RULES} /run/udev/rules.d/" if rule else ":"
    script = f"mkdir -p /run/udev; mount -t tmpfs rules /run/udev; {install}; exec udevadm test --action=add /sys/{path}"
    subprocess.run(["unshare", "--mount", "sh", "-ec", script], capture_output=True, check=True)


@inside
@needs_udev
def test_d03_mocked_root_hub_is_shut_by_the_udev_rule(bed: Testbed) -> None:
    udev(HUB)
    assert bed.read(f"{HUB}/authorized_default") == bed.read(f"{HUB}/interface_authorized_default") == "0"
    assert bed.read(f"{HUB}/authorized") == "1"


@inside
@needs_udev
def test_d03_mocked_device_is_not_what_the_udev_rule_speaks_of(bed: Testbed) -> None:
    stick = bed.plug("1-2", STORAGE_STICK, number=3)
    udev(stick.lstrip("/"))
    assert bed.read(f"{HUB}/authorized_default") == "1"


@inside
@needs_udev
def test_d03_mocked_root_hub_without_the_rule_stays_open(bed: Testbed) -> None:
    udev(HUB, rule=False)
    assert bed.read(f"{HUB}/authorized_default") == "1"
