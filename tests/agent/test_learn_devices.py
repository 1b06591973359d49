"""`devices list` and `devices learn`: the draft is a baseline, and the machine it was learned from has no drift under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import learn_devices, probes
from agent.host import Host
from agent.probes import Surroundings
from contract.baseline import parse_baseline
from tests.agent.probes.case import HEAD
from tests.agent.probes.nodecase import Machine
from tests.parts.bustree import BRIDGE, GPU, NVME, PciTree, ThunderboltTree
from tests.parts.usbtree import HUB, KEYBOARD, KNOWN_KEYBOARD, STORAGE, STORAGE_STICK, Device, UsbTree

DEVICE_SECTIONS = {"usb", "thunderbolt", "pci", "blocks", "netdevs", *learn_devices.NODE_SECTIONS}


@pytest.fixture
def machine(tmp_path: Path) -> tuple[UsbTree, Machine]:
    made = Machine(tmp_path)
    tree = UsbTree(made.sysfs)
    tree.plug(STORAGE_STICK, port="1")
    tree.plug(Device(0x0424, 0x2514, "Hub", interfaces=(HUB,), device_class=9), port="3")
    tree.plug(KNOWN_KEYBOARD, port="3.2")
    pci = PciTree(made.sysfs)
    for address, card in (("0000:00:01.0", BRIDGE), ("0000:01:00.0", NVME), ("0000:02:00.0", GPU)):
        pci.plug(address, card)
    ThunderboltTree(made.sysfs).plug("0-1", "Dock", "c4010000-0000-7508-2314-c1e1a1c01921", authorized="1")
    disk = made.sysfs / "block/sda"
    (disk / "device").mkdir(parents=True)
    for name, value in {"dev": "8:0", "size": "2048", "removable": "0", "ro": "0", "wwid": "naa.5"}.items():
        (disk / name).write_text(value + "\n")
    made.node("/dev/video0")
    made.node("/dev/dri/renderD128", (1, 5), 0o666)
    return tree, made


def _config(folder: Path, machine: Machine) -> list[str]:
    """Return options that make the command look at the test's machine."""
    file = folder / "agent.toml"
    file.write_text(
        'node = "n1"\n[controller]\nurl = "https://192.0.2.1:8440"\nca = "/etc/ringfence/ca.pem"\n'
        f'[roots]\nroot = "{machine.root}"\nsysfs = "{machine.sysfs}"\n'
    )
    return ["--config", str(file)]


def test_the_machine_a_draft_was_learned_from_has_no_drift_under_it(machine: tuple[UsbTree, Machine]) -> None:
    _, made = machine
    text = learn_devices.draft(made.host)
    sections = probes.parse_sections(parse_baseline((HEAD + text).encode(), file="draft.toml"))
    assert set(sections) == DEVICE_SECTIONS
    for name, section in sections.items():
        probe = probes.sections()[name].Probe(section, Surroundings(host=made.host))
        keys = [drift.key for drift in probe.observe(1.0)]
        # The kernel's own defaults are open on a machine that nobody has held yet.
        assert [key for key in keys if "authorized_default" not in key] == [], name


def test_a_draft_lets_in_nothing_else(machine: tuple[UsbTree, Machine]) -> None:
    tree, made = machine
    text = learn_devices.draft(made.host)
    section = probes.parse_sections(parse_baseline((HEAD + text).encode()))["usb"]
    clone = Device(0x0951, 0x1666, "DataTraveler 3.0", STORAGE_STICK.serial, (STORAGE, KEYBOARD))
    name = tree.plug(clone, port="5")
    moved = tree.plug(KNOWN_KEYBOARD, port="6")
    probe = probes.sections()["usb"].Probe(section, Surroundings(host=made.host))
    for _ in range(3):
        probe.repair(probe.observe(1.0), 1.0)
        tree.settle()
    assert not tree.authorized(name) and not tree.authorized(moved) and tree.authorized("1-1")


def test_a_draft_says_what_can_be_cloned_and_what_it_is(machine: tuple[UsbTree, Machine]) -> None:
    tree, made = machine
    tree.plug(Device(0x1A86, 0x7523, "USB Serial", interfaces=((0xFF, 1, 2),)), port="7")
    text = learn_devices.draft(made.host)
    for words in (
        "no serial number",
        "anybody's",
        "it can type",
        "it is storage",
        "it is a hub",
        "everybody may open it",
    ):
        assert words in text


def test_hostile_names_stay_in_their_comment(machine: tuple[UsbTree, Machine]) -> None:
    tree, made = machine
    name = tree.plug(Device(1, 2, "x", "s", (KEYBOARD,)), port="7")
    for attribute in ("product", "manufacturer", "serial"):
        path = tree.root / f"bus/usb/devices/{name}/{attribute}"
        path.write_bytes(b'a"\n[[usb.allow]]\nvendor = "6666"\n\x1b[2J\xe2\x80\xa8\xff')
    text = learn_devices.draft(made.host)
    section = probes.parse_sections(parse_baseline((HEAD + text).encode()))["usb"]
    assert len(section.allow) == 4  # type: ignore[attr-defined]
    assert all(line.isprintable() for line in text.splitlines())


def test_a_device_whose_descriptors_do_not_parse_gets_no_rule(machine: tuple[UsbTree, Machine]) -> None:
    tree, made = machine
    (tree.root / "bus/usb/devices/1-1/descriptors").write_bytes(b"\0\0\0")
    assert STORAGE_STICK.serial not in learn_devices.draft(made.host)


def test_list_and_learn_as_commands(machine: tuple[UsbTree, Machine], tmp_path: Path) -> None:
    _, made = machine
    options = _config(tmp_path, made)
    shown = CliRunner().invoke(learn_devices.devices, ["list", "--json", *options])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert set(found) == DEVICE_SECTIONS
    assert [each["port"] for each in found["usb"]] == ["1-1", "1-3", "1-3.2"]
    assert found["cameras"][0]["node"] == "/dev/video0" and len(found["usb"][0]["digest"]) == 64
    plain = CliRunner().invoke(learn_devices.devices, ["list", *options])
    assert plain.exit_code == 0 and "usb  port=1-1  vendor=0951" in plain.output
    output = tmp_path / "draft.toml"
    assert (
        CliRunner().invoke(learn_devices.devices, ["learn", "--output", str(output), *options]).exit_code == 0
    )
    assert output.read_text() == learn_devices.draft(made.host)


def test_the_machine_itself_can_be_listed() -> None:
    assert set(learn_devices.listing(Host())) == DEVICE_SECTIONS
