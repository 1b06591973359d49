"""What an intruder adds to a machine, or plugs into it, under each shipped baseline: none of it goes untold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from agent import probes
from agent.host import Host
from agent.probes import Surroundings, mode_of
from contract.baseline import Baseline, parse_baseline
from contract.messages import Drift
from tests.parts.bustree import BRIDGE, NVME, Card, PciTree
from tests.parts.usbtree import KNOWN_KEYBOARD, STORAGE_STICK, Device, UsbTree

SHIPPED = sorted((Path(__file__).parents[2] / "baselines").glob("*.toml"))
UNIT = "[Service]\nExecStart=/opt/evil\n[Install]\nWantedBy=multi-user.target\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKRlc8uYmJHhEsP7hTgRw0LEm5bUcCk1jGxqKmiS0d2q eve\n"
FIREWIRE = Card("104c", "8023", "0c0010", "firewire_ohci")
SECOND_KEYBOARD = Device(0x1B1C, 0x1B2D, "Keyboard")
every_baseline = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)

ADDED = {
    "accounts": {
        "etc/sudoers.d/eve": "eve ALL=(ALL) NOPASSWD: ALL\n",
        "etc/pam.d/eve": "auth sufficient pam_permit.so\n",
        "root/.ssh/authorized_keys": KEY,
    },
    "services": {
        "etc/systemd/system/eve.service": UNIT,
        "etc/systemd/system/eve.timer": "[Timer]\nOnBootSec=1\n",
        "etc/systemd/system/ssh.service.d/eve.conf": "[Service]\nExecStartPre=/opt/evil\n",
        "etc/cron.d/eve": "* * * * * root /opt/evil\n",
        "etc/crontab": "* * * * * root /opt/evil\n",
        "var/spool/cron/crontabs/root": "* * * * * /opt/evil\n",
        "etc/rc.local": "/opt/evil\n",
    },
}


def section_of(path: Path, name: str, host: Host) -> tuple[Baseline, probes.Probe[Any]]:
    baseline = parse_baseline(path.read_bytes(), file=path.name)
    section = probes.parse_sections(baseline)[name]
    return baseline, probes.sections()[name].Probe(section, Surroundings(host=host))


def told(path: Path, name: str, host: Host) -> list[Drift]:
    _, probe = section_of(path, name, host)
    return probe.observe(1.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with nobody but root in it, and then what is added."""
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    (made / "etc/group").write_text("root:x:0:\nsudo:x:27:\n")
    (made / "etc/shadow").write_text("root:*:19800::::::\n")
    return made


def add(root: Path) -> None:
    for files in ADDED.values():
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "eve.service").symlink_to("../eve.service")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\neve:x:1000:1000::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nsudo:x:27:eve\n")


@every_baseline
def test_d10_what_an_intruder_adds_is_told_under_every_shipped_baseline(path: Path, root: Path) -> None:
    before = {n: {drift.key for drift in told(path, n, Host(root=root))} for n in ADDED}
    add(root)
    found = {n: {drift.key for drift in told(path, n, Host(root=root))} - before[n] for n in ADDED}
    for name, files in ADDED.items():
        for file in files:
            assert any(key == f"/{file}" or key.startswith(f"/{file} ") for key in found[name]), file
    assert {"user eve", "group sudo members"} <= found["accounts"]
    assert "/etc/systemd/system/multi-user.target.wants/eve.service" in found["services"]


def test_d10_strict_takes_out_keys_and_rules_of_sudo_that_nobody_listed(root: Path) -> None:
    add(root)
    strict = next(path for path in SHIPPED if path.stem == "strict")
    baseline, probe = section_of(strict, "accounts", Host(root=root))
    assert mode_of(probe.section, baseline.head) == "enforce"
    probe.repair(probe.observe(1.0), 1.0)
    assert not (root / "etc/sudoers.d/eve").exists()
    assert KEY not in (root / "root/.ssh/authorized_keys").read_text()
    assert (root / "etc/pam.d/eve").exists(), "a wrong repair of PAM locks everybody out"
    probe.undo()
    assert KEY in (root / "root/.ssh/authorized_keys").read_text()


@every_baseline
def test_d02_d03_a_stick_and_a_second_keyboard_are_refused_under_every_shipped_baseline(
    path: Path, tmp_path: Path
) -> None:
    tree = UsbTree(tmp_path / "sys")
    tree.plug(KNOWN_KEYBOARD, connected_ms=int(time.monotonic() * 1000))
    stick = tree.plug(STORAGE_STICK, port="2")
    second = tree.plug(SECOND_KEYBOARD, port="3")
    _, probe = section_of(path, "usb", Host(sysfs_root=tree.root))
    keys = {drift.key for drift in probe.observe(1.0)}
    assert {f"{stick} 0951:1666", f"{second} 1b1c:1b2d"} <= keys
    refused = {each.detail["port"] for each in probe.notices(1.0) if each.kind == "usb.refused"}
    assert {stick, second} <= refused


@every_baseline
def test_d05_a_disk_that_can_be_taken_out_and_a_card_that_no_board_has_are_told(
    path: Path, tmp_path: Path
) -> None:
    sysfs = tmp_path / "sys"
    cards = PciTree(sysfs)
    for number, card in enumerate((BRIDGE, NVME, FIREWIRE)):
        cards.plug(f"0000:00:{number:02x}.0", card)
    for name, removable in (("nvme0n1", "0"), ("sdb", "1")):
        folder = sysfs / "block" / name
        folder.mkdir(parents=True)
        for file, value in {"size": "2048", "dev": "8:16", "removable": removable, "ro": "0"}.items():
            (folder / file).write_text(value + "\n")
    host = Host(root=tmp_path, sysfs_root=sysfs)
    assert {drift.key.partition(" ")[0] for drift in told(path, "blocks", host)} == {"sdb"}
    if path.stem != "legacy":
        assert {drift.key for drift in told(path, "pci", host)} == {"0000:00:02.0"}
