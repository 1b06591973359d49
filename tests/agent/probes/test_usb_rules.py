"""What a USB rule can say, and what a device can pretend; on the tree of `tests.parts.usbtree`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.devices import UsbTree as Sysfs
from agent.grants import OpenGrant
from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import usb as usb_probe
from contract.errors import Rejected
from tests.agent.probes.case import probe_of, section_of
from tests.parts.usbtree import (
    HUB,
    KEYBOARD,
    KNOWN_KEYBOARD,
    MOUSE,
    STORAGE,
    STORAGE_STICK,
    Device,
    UsbTree,
)

SINCE_BOOT_MS = 10**12
"""Longer than any machine is up: plugged in before the kernel started."""
HUB_DEVICE = Device(0x0424, 0x2514, "Hub", interfaces=(HUB,), device_class=9)
HUB_RULE = '[[usb.allow]]\ninterfaces = ["09:*:*"]\nreason = "hubs"\n'
STICK_RULE = '[[usb.allow]]\nvendor = "0951"\ninterfaces = ["08:*:*"]\nreason = "the stick"\n'
KEYBOARD_RULE = '[[usb.allow]]\ninterfaces = ["03:*:*"]\nreason = "keyboards and mice"\n'


@pytest.fixture
def tree(tmp_path: Path) -> UsbTree:
    return UsbTree(tmp_path / "sys")


def _probe(tree: UsbTree, toml: str) -> Probe[usb_probe.Section]:
    return probe_of("usb", "[usb]\n" + toml, Surroundings(host=Host(sysfs_root=tree.root)))


def _pass(probe: Probe[usb_probe.Section], tree: UsbTree) -> None:
    for _ in range(4):
        probe.settle(1.0)
        probe.repair(probe.observe(1.0), 1.0)
        tree.settle()


def _digest(tree: UsbTree, name: str) -> str:
    device = Sysfs(tree.root).device(name)
    assert device is not None and device.digest is not None
    return device.digest


def _known(tree: UsbTree, device: Device) -> str:
    """Return the digest of a device, as a person learns it from a good one."""
    name = tree.plug(device, port="8")
    digest = _digest(tree, name)
    tree.unplug(name)
    return digest


@pytest.mark.parametrize(
    "clone",
    [
        Device(0x0951, 0x1666, "DataTraveler 3.0", STORAGE_STICK.serial, (STORAGE, KEYBOARD)),
        Device(0x0951, 0x1666, "DataTraveler 3.0", STORAGE_STICK.serial, (STORAGE,), device_class=0xEF),
        Device(0x0951, 0x1666, "DataTraveler 3.0", STORAGE_STICK.serial, (STORAGE,), manufacturer="X"),
        Device(0x0951, 0x1666, "DataTraveler", STORAGE_STICK.serial, (STORAGE,)),
    ],
    ids=["more-interfaces", "device-class", "manufacturer", "name"],
)
def test_d01_a_cloned_id_and_serial_with_anything_else_changed_is_refused(
    tree: UsbTree, clone: Device
) -> None:
    digest = _known(tree, STORAGE_STICK)
    rule = f'serial = "{STORAGE_STICK.serial}"\nproduct = "1666"\ndigest = "{digest}"\n'
    probe = _probe(tree, STICK_RULE.replace('vendor = "0951"\n', 'vendor = "0951"\n' + rule))
    _pass(probe, tree)
    real, cloned = tree.plug(STORAGE_STICK, port="1"), tree.plug(clone, port="2")
    _pass(probe, tree)
    assert tree.authorized(real)
    assert not tree.authorized(cloned) and tree.interfaces(cloned) == []
    told = [each.detail for each in probe.notices(1.0) if each.kind == "usb.refused"]
    assert [each["port"] for each in told] == [cloned] and told[0]["digest"] not in ("", digest)


def test_d01_a_digest_has_no_two_readings(tree: UsbTree) -> None:
    one = Device(0x0951, 0x1666, "ab", "c", (STORAGE,))
    other = Device(0x0951, 0x1666, "a", "bc", (STORAGE,))
    assert _known(tree, one) != _known(tree, other)


def test_d01_a_device_without_descriptors_matches_no_digest(tree: UsbTree) -> None:
    digest = _known(tree, STORAGE_STICK)
    probe = _probe(tree, STICK_RULE + f'digest = "{digest}"\n')
    _pass(probe, tree)
    name = tree.plug(STORAGE_STICK)
    (tree.root / f"bus/usb/devices/{name}/descriptors").unlink()
    _pass(probe, tree)
    assert not tree.authorized(name)


def test_d02_a_stick_that_is_a_keyboard_too_gets_no_keyboard(tree: UsbTree) -> None:
    probe = _probe(tree, STICK_RULE)
    _pass(probe, tree)
    name = tree.plug(Device(0x0951, 0x1666, "DataTraveler 3.0", interfaces=(STORAGE, KEYBOARD)))
    _pass(probe, tree)
    assert tree.authorized(f"{name}:1.0") and not tree.authorized(f"{name}:1.1")


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ('exactly = ["08:06:50"]', [True, False, False]),
        ('exactly = ["08:06:50", "03:01:01"]', [False, True, False]),
        ('exactly = ["08:06:50", "03:01:01", "03:01:01"]', [False, False, True]),
        ('all_of = ["08:*:*", "03:01:*"]', [False, True, True]),
        ('one_of = ["03:01:01", "0e:*:*"]', [False, True, True]),
        ('none_of = ["03:*:*"]', [True, False, False]),
    ],
)
def test_d02_what_a_composite_device_offers_decides(
    tree: UsbTree, condition: str, wanted: list[bool]
) -> None:
    probe = _probe(tree, STICK_RULE + condition + "\n")
    _pass(probe, tree)
    offers = ((STORAGE,), (STORAGE, KEYBOARD), (STORAGE, KEYBOARD, KEYBOARD))
    names = [
        tree.plug(Device(0x0951, 0x1666, "D", interfaces=each), port=str(n + 1))
        for n, each in enumerate(offers)
    ]
    _pass(probe, tree)
    assert [tree.authorized(name) for name in names] == wanted


def test_d02_a_keyboard_that_comes_beside_another_stays_shut(tree: UsbTree) -> None:
    probe = _probe(tree, 'keyboards = "one"\n' + KEYBOARD_RULE + STICK_RULE)
    _pass(probe, tree)
    first = tree.plug(KNOWN_KEYBOARD, port="5")
    _pass(probe, tree)
    second = tree.plug(Device(0x0951, 0x1666, "D", interfaces=(STORAGE, KEYBOARD)), port="1")
    mouse = tree.plug(Device(1, 2, "Mouse", interfaces=(MOUSE,)), port="2")
    _pass(probe, tree)
    assert all(tree.authorized(name) for name in tree.interfaces(first)) and tree.interfaces(first)
    assert tree.authorized(f"{second}:1.0") and not tree.authorized(f"{second}:1.1")
    assert tree.authorized(mouse)
    # Its place is free again once it has gone.
    tree.unplug(first)
    _pass(probe, tree)
    assert tree.authorized(f"{second}:1.1")


def test_d02_a_keyboard_that_comes_after_boot_stays_shut_unless_its_rule_excepts_it(tree: UsbTree) -> None:
    excepted = (
        '[[usb.allow]]\nproduct = "c31c"\ninterfaces = ["03:*:*"]\nlate_keyboard = true\nreason = "spare"\n'
    )
    probe = _probe(tree, 'keyboards = "boot"\n' + KEYBOARD_RULE + excepted)
    of_boot = tree.plug(Device(1, 2, "Old", interfaces=(KEYBOARD,)), port="1", connected_ms=SINCE_BOOT_MS)
    _pass(probe, tree)
    late = tree.plug(Device(1, 2, "New", interfaces=(KEYBOARD,)), port="2")
    spare = tree.plug(KNOWN_KEYBOARD, port="3")
    _pass(probe, tree)
    assert [tree.authorized(name) for name in (of_boot, late, spare)] == [True, False, True]
    assert any("a keyboard that comes late" in each.summary for each in probe.notices(1.0))


def test_d03_replugged_on_another_port_the_rule_no_longer_speaks_for_it(tree: UsbTree) -> None:
    probe = _probe(tree, STICK_RULE + 'port = "1-4"\n')
    _pass(probe, tree)
    name = tree.plug(STORAGE_STICK, port="4")
    _pass(probe, tree)
    assert tree.authorized(name)
    tree.unplug(name)
    other = tree.plug(STORAGE_STICK, port="5")
    _pass(probe, tree)
    assert not tree.authorized(other)


@pytest.mark.parametrize(
    ("hub", "wanted"),
    [("root", [True, False]), ("1-3", [False, True]), ("0424:2514", [False, True]), ("1-2", [False, False])],
)
def test_d03_a_rule_may_name_the_hub(tree: UsbTree, hub: str, wanted: list[bool]) -> None:
    probe = _probe(tree, STICK_RULE + f'hub = "{hub}"\n' + HUB_RULE)
    _pass(probe, tree)
    tree.plug(HUB_DEVICE, port="3")
    _pass(probe, tree)
    names = [tree.plug(STORAGE_STICK, port="1"), tree.plug(STORAGE_STICK, port="3.1")]
    _pass(probe, tree)
    assert [tree.authorized(name) for name in names] == wanted


def test_d03_a_host_controller_that_comes_later_is_shut_from_its_first_moment(tree: UsbTree) -> None:
    parameter = tree.root / "module/usbcore/parameters/authorized_default"
    probe = _probe(tree, STICK_RULE)
    assert "usbcore authorized_default" in [drift.key for drift in probe.observe(1.0)]
    _pass(probe, tree)
    assert parameter.read_text() == "0"
    probe.undo()
    assert parameter.read_text() == "-1"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("", [True, True, False, False]),
        ('present = "keep"', [True, True, True, False]),
        ('present = "allow"', [True, True, True, False]),
        ('present = "block"', [False, True, False, False]),
        ('inserted = "block"', [True, False, False, False]),
        ('present = "allow"\ninserted = "block"', [True, False, True, False]),
    ],
)
def test_d03_present_and_inserted_devices_have_their_own_default(
    tree: UsbTree, keys: str, wanted: list[bool]
) -> None:
    old_stick = tree.plug(STORAGE_STICK, port="1", connected_ms=SINCE_BOOT_MS)
    old_mouse = tree.plug(Device(1, 2, "Mouse", interfaces=(MOUSE,)), port="2", connected_ms=SINCE_BOOT_MS)
    probe = _probe(tree, keys + "\n" + STICK_RULE)
    _pass(probe, tree)
    stick, mouse = (
        tree.plug(STORAGE_STICK, port="3"),
        tree.plug(Device(1, 2, "Mouse", interfaces=(MOUSE,)), port="4"),
    )
    _pass(probe, tree)
    assert [tree.authorized(name) for name in (old_stick, stick, old_mouse, mouse)] == wanted


def test_d03_what_is_blocked_is_blocked_though_it_was_there_at_boot(tree: UsbTree) -> None:
    stick = tree.plug(STORAGE_STICK, connected_ms=SINCE_BOOT_MS)
    block = '[[usb.block]]\ninterfaces = ["08:*:*"]\nreason = "no storage"\n'
    for present in ("keep", "allow"):
        _pass(_probe(tree, f'present = "{present}"\n' + block), tree)
        assert not tree.authorized(stick)


def test_d03_a_device_whose_age_nobody_tells_counts_as_inserted(tree: UsbTree) -> None:
    stick = tree.plug(STORAGE_STICK, connected_ms=SINCE_BOOT_MS)
    (tree.root / f"bus/usb/devices/{stick}/power/connected_duration").unlink()
    _pass(_probe(tree, 'present = "allow"\n'), tree)
    assert not tree.authorized(stick)


@pytest.mark.parametrize(
    ("removed", "wanted"),
    [("ignore", []), ("tell", [("usb.removed", "info")]), ("warn", [("usb.removed", "warning")])],
)
def test_d03_a_removed_device_is_told_as_the_section_says(
    tree: UsbTree, removed: str, wanted: list[tuple[str, str]]
) -> None:
    probe = _probe(tree, f'removed = "{removed}"\n' + STICK_RULE)
    name = tree.plug(STORAGE_STICK)
    _pass(probe, tree)
    probe.notices(1.0)
    tree.unplug(name)
    for _ in range(2):
        probe.observe(2.0)
    assert [(each.kind, each.severity) for each in probe.notices(2.0)] == wanted


def test_no_more_devices_of_a_rule_than_it_says(tree: UsbTree) -> None:
    probe = _probe(tree, STICK_RULE + "max = 2\n")
    _pass(probe, tree)
    names = [tree.plug(STORAGE_STICK, port=port) for port in ("7", "6", "5")]
    _pass(probe, tree)
    assert sum(tree.authorized(name) for name in names) == 2
    later = tree.plug(STORAGE_STICK, port="1")
    before = [tree.authorized(name) for name in names]
    _pass(probe, tree)
    assert not tree.authorized(later) and [tree.authorized(name) for name in names] == before


def test_a_required_device_that_is_not_there_is_a_drift(tree: UsbTree) -> None:
    probe = _probe(tree, STICK_RULE + "required = true\n")
    _pass(probe, tree)
    assert [(drift.key, drift.found) for drift in probe.observe(1.0)] == [("allow 0", "not there")]
    tree.plug(STORAGE_STICK)
    _pass(probe, tree)
    assert probe.observe(1.0) == []


def test_one_interface_may_be_named_by_its_number(tree: UsbTree) -> None:
    probe = _probe(tree, '[[usb.allow]]\ninterfaces = ["03:01:01@1"]\nreason = "its second"\n')
    _pass(probe, tree)
    name = tree.plug(Device(1, 2, "Two", interfaces=(KEYBOARD, KEYBOARD)))
    _pass(probe, tree)
    assert [tree.authorized(each) for each in tree.interfaces(name)] == [False, True]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ('connect = ["hardwired"]', [True, False]),
        ('connect = ["hotplug", "unknown"]', [False, True]),
        ('name = "DataTraveler 3.0"', [True, True]),
        ('name = "Other"', [False, False]),
        ('serial = ""', [False, False]),
    ],
)
def test_connect_type_and_texts(tree: UsbTree, condition: str, wanted: list[bool]) -> None:
    probe = _probe(tree, STICK_RULE + condition + "\n")
    _pass(probe, tree)
    names = [
        tree.plug(STORAGE_STICK, port=n, connect=how) for n, how in (("1", "hardwired"), ("2", "hotplug"))
    ]
    _pass(probe, tree)
    assert [tree.authorized(name) for name in names] == wanted


@pytest.mark.parametrize(
    "key",
    [
        'digest = "abc"',
        'hub = "usb1"',
        'connect = ["soldered"]',
        "connect = []",
        "exactly = []",
        'exactly = ["08:*:*"]',
        "max = 0",
        'interfaces = ["08:06:50@1000"]',
    ],
)
def test_rules_that_could_mean_more_than_they_say_are_refused(key: str) -> None:
    with pytest.raises(Rejected):
        section_of("usb", '[usb]\n[[usb.allow]]\nreason = "why not"\n' + key + "\n")
    with pytest.raises(Rejected):
        section_of("usb", "[usb]\n" + STICK_RULE + key + "\n")


def test_d02_a_grant_lets_a_device_in_with_the_interfaces_of_its_bound_and_out_again(tree: UsbTree) -> None:
    tree.run()
    stick = Device(0x0951, 0x1666, "DataTraveler 3.0", STORAGE_STICK.serial, (STORAGE, KEYBOARD))
    probe = _probe(tree, 'default = "block"\n')
    name = tree.plug(stick)
    _pass(probe, tree)
    assert not tree.authorized(name)
    probe.notices(1.0)
    grant = OpenGrant(id=7, ends_s=1e9, usb=(("0951:1666", ("08:*:*",)),))
    closed, probe.around = probe.around, replace(probe.around, grants=(grant,))
    _pass(probe, tree)
    assert tree.authorized(name)
    assert tree.authorized(f"{name}:1.0"), "storage"
    assert not tree.authorized(f"{name}:1.1"), "the keyboard in it stays shut"
    told = {notice.kind: notice for notice in probe.notices(1.0)}
    assert set(told) == {"grant.used", "usb.admitted", "usb.refused"}
    assert {notice.detail["grant"] for notice in told.values()} == {"7"}, "every event names the grant"
    used = told["grant.used"].detail["source"]
    assert used == f"USB 0951:1666 at {name}, serial {stick.serial}"
    _pass(probe, tree)
    assert probe.notices(1.0) == [], "once"
    probe.around = closed
    _pass(probe, tree)
    assert not tree.authorized(name)
    (over,) = probe.notices(1.0)
    assert over.kind == "usb.refused" and "grant 7 is over" in over.summary


def test_a_device_that_a_rule_lets_in_uses_no_grant(tree: UsbTree) -> None:
    tree.run()
    probe = _probe(tree, 'default = "block"\n' + STICK_RULE)
    other = OpenGrant(id=7, ends_s=1e9, usb=(("1234:5678", ("08:*:*",)),))
    probe.around = replace(probe.around, grants=(other,))
    _pass(probe, tree)
    name = tree.plug(STORAGE_STICK)
    _pass(probe, tree)
    assert tree.authorized(name)
    assert [(n.kind, n.detail.get("grant")) for n in probe.notices(1.0)] == [("usb.admitted", None)]
