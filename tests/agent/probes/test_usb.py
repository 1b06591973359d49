"""USB, on a tree of files that follows the kernel's rules of authorisation (`tests.parts.usbtree`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.devices import MALFORMED, offered_by
from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import usb as usb_probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of
from tests.parts.namespace import Namespace
from tests.parts.usbtree import (
    HUB,
    KEYBOARD,
    KNOWN_KEYBOARD,
    MOUSE,
    STORAGE,
    STORAGE_STICK,
    Device,
    UsbTree,
    descriptors,
)

TOML = """\
[usb]
[[usb.allow]]
vendor = "046d"
product = "c31c"
interfaces = ["03:01:01", "03:00:*"]
reason = "service keyboard"
[[usb.allow]]
vendor = "1d6b"
interfaces = ["09:*:*"]
reason = "hub of the cabinet"
"""
USB_ONLY = {"usb": ["usb"]}
CABINET_HUB = Device(0x1D6B, 0x0104, "Hub", interfaces=(HUB,), device_class=9)
BAD_KEYBOARD = Device(0x046D, 0xC31C, "Keyboard K120", interfaces=(KEYBOARD, STORAGE))
"""The known keyboard's name, with storage in it."""


def _state(tree: UsbTree) -> dict[str, str]:
    names = ("authorized", "authorized_default", "interface_authorized_default", "bConfigurationValue")
    return {str(path): path.read_text().strip() for name in names for path in sorted(tree.root.rglob(name))}


def _trace(tree: UsbTree) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(tree.root.rglob("*"))}


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    tree = UsbTree(folder / "sys", buses=2)
    around = Surroundings(host=Host(sysfs_root=tree.root))
    # A node in force: the kernel's defaults are shut, the known keyboard is in.
    for hub in (folder / "sys/bus/usb/devices").iterdir():
        for name in ("authorized_default", "interface_authorized_default"):
            if (hub / name).exists():
                (hub / name).write_text("0\n")

    (folder / "sys/module/usbcore/parameters/authorized_default").write_text("0\n")

    def spoil() -> None:
        (tree.root / "bus/usb/devices/usb2/authorized_default").write_text("1\n")
        (tree.root / "bus/usb/devices/usb1/interface_authorized_default").write_text("1\n")

    def blind() -> None:
        (tree.root / "bus/usb/devices/usb1/authorized_default").unlink()
        (tree.root / "bus/usb/devices/usb1/authorized_default").mkdir()

    yield Case(
        toml=TOML,
        around=around,
        spoil=spoil,
        blind=blind,
        state=lambda: _state(tree),
        trace=lambda: _trace(tree),
        heirs=(
            '[usb]\ndefault = "allow"\n[[usb.block]]\ninterfaces = ["08:*:*"]\nreason = "no storage"\n',
            '[usb]\ndefault = "allow"\ninserted = "block"\n',
            '[usb]\ndefault = "allow"\nkeyboards = "one"\n',
            "[usb]\n",
        ),
    )


@pytest.fixture
def tree(tmp_path: Path) -> UsbTree:
    return UsbTree(tmp_path / "sys")


def _probe(tree: UsbTree, toml: str = TOML) -> Probe[usb_probe.Section]:
    return probe_of("usb", toml, Surroundings(host=Host(sysfs_root=tree.root)))


def _pass(probe: Probe[usb_probe.Section], tree: UsbTree, now: float = 1.0) -> list[str]:
    """Observe, repair and let the kernel do its part until nothing moves; return the keys of what was seen."""
    keys: list[str] = []
    for _ in range(4):
        probe.settle(now)
        drifts = probe.observe(now)
        keys += [drift.key for drift in drifts]
        probe.repair(drifts, now)
        tree.settle()
    assert probe.observe(now) == []
    return keys


def test_the_known_keyboard_works_and_unknown_storage_does_not(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    stick, keyboard = tree.plug(STORAGE_STICK, port="1"), tree.plug(KNOWN_KEYBOARD, port="2")
    assert not tree.authorized(stick) and not tree.authorized(keyboard)
    _pass(probe, tree)
    assert tree.authorized(keyboard) and all(tree.authorized(name) for name in tree.interfaces(keyboard))
    assert not tree.authorized(stick) and tree.interfaces(stick) == []


def test_an_allowed_device_that_arrives_is_let_in_without_a_drift(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    keyboard = tree.plug(KNOWN_KEYBOARD)
    for _ in range(3):
        probe.settle(1.0)
        tree.settle()
    assert all(tree.authorized(name) for name in [keyboard, *tree.interfaces(keyboard)])
    assert probe.observe(1.0) == []
    assert [each.kind for each in probe.notices(1.0)] == ["usb.admitted"]
    probe.settle(2.0)
    assert probe.observe(2.0) == [] and probe.notices(2.0) == []


def test_in_observe_mode_nothing_is_let_in(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    keyboard = tree.plug(KNOWN_KEYBOARD)
    assert [(drift.wanted, drift.found) for drift in probe.observe(1.0)] == [("authorized", "not authorized")]
    assert not tree.authorized(keyboard)


def test_a_refused_device_is_told_once_and_again_after_replug(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    stick = tree.plug(STORAGE_STICK)
    _pass(probe, tree)
    (notice,) = probe.notices(1.0)
    assert (notice.kind, notice.severity) == ("usb.refused", "warning")
    assert notice.detail["serial"] == STORAGE_STICK.serial and notice.detail["interfaces"] == "08:06:50"
    probe.observe(2.0)
    assert probe.notices(2.0) == []
    tree.unplug(stick)
    probe.observe(3.0)
    assert probe.notices(3.0) == []
    tree.plug(STORAGE_STICK)
    probe.observe(4.0)
    assert [each.kind for each in probe.notices(4.0)] == ["usb.refused"]


def test_d03_a_device_present_at_boot_is_shut_out(tree: UsbTree) -> None:
    stick = tree.plug(STORAGE_STICK)
    assert tree.authorized(stick) and tree.interfaces(stick) != []
    assert "1-1 0951:1666" in _pass(_probe(tree), tree)
    assert not tree.authorized(stick) and tree.interfaces(stick) == []


def test_d03_behind_an_allowed_hub_the_same_rules_hold(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    tree.plug(CABINET_HUB, port="3")
    _pass(probe, tree)
    stick, keyboard = tree.plug(STORAGE_STICK, port="3.1"), tree.plug(KNOWN_KEYBOARD, port="3.2")
    _pass(probe, tree)
    assert tree.authorized(keyboard) and not tree.authorized(stick)


def test_d02_an_allowed_device_gets_only_its_listed_interfaces(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    name = tree.plug(BAD_KEYBOARD)
    _pass(probe, tree)
    assert tree.authorized(name)
    assert tree.authorized(f"{name}:1.0") and not tree.authorized(f"{name}:1.1")
    told = [(each.kind, each.detail["interfaces"]) for each in probe.notices(1.0)]
    assert told == [("usb.refused", "08:06:50"), ("usb.admitted", "03:01:01 08:06:50")]


def test_a_block_rule_is_stronger_than_an_allow_rule(tree: UsbTree) -> None:
    toml = TOML + '[[usb.block]]\ninterfaces = ["08:*:*"]\nreason = "no storage, whoever brings it"\n'
    probe = _probe(tree, toml)
    _pass(probe, tree)
    name = tree.plug(BAD_KEYBOARD)
    _pass(probe, tree)
    assert not tree.authorized(name)


def test_default_allow_shuts_out_only_what_is_blocked(tree: UsbTree) -> None:
    toml = '[usb]\ndefault = "allow"\n[[usb.block]]\ninterfaces = ["08:*:*"]\nreason = "no storage"\n'
    probe = _probe(tree, toml)
    mouse = tree.plug(Device(0x1111, 0x2222, "Mouse", interfaces=(MOUSE,)), port="1")
    stick = tree.plug(STORAGE_STICK, port="2")
    _pass(probe, tree)
    assert tree.authorized(mouse) and not tree.authorized(stick)
    # A stick must wait for its verdict as well: it would be read before anyone has looked.
    assert (tree.root / "bus/usb/devices/usb1/authorized_default").read_text() == "0"


def test_root_hubs_are_never_shut_out(tree: UsbTree) -> None:
    _pass(_probe(tree, "[usb]\n"), tree)
    assert tree.authorized("usb1") and tree.authorized("1-0:1.0")


@pytest.mark.parametrize(
    ("key", "value"), [("serial", "other"), ("port", "1-9"), ("vendor", "046e"), ("product", "c31d")]
)
def test_every_key_of_a_rule_must_match(key: str, value: str, tree: UsbTree) -> None:
    rule = {"vendor": "046d", "product": "c31c", "serial": "S1", "port": "1-1"}
    device = Device(0x046D, 0xC31C, "Keyboard", "S1", (KEYBOARD,))
    for changed, wanted in (({}, True), ({key: value}, False)):
        text = "".join(f'{name} = "{given}"\n' for name, given in {**rule, **changed}.items())
        toml = f'[usb]\n[[usb.allow]]\n{text}interfaces = ["03:01:01"]\nreason = "why"\n'
        name = tree.plug(device)
        _pass(_probe(tree, toml), tree)
        assert tree.authorized(name) is wanted
        tree.unplug(name)


def test_hostile_descriptors_are_refused_even_with_an_allowed_interface_in_them(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    name = tree.plug(KNOWN_KEYBOARD)
    raw = tree.root / f"bus/usb/devices/{name}/descriptors"
    raw.write_bytes(descriptors(KNOWN_KEYBOARD) + b"\x00\x04\x03")
    _pass(probe, tree)
    assert not tree.authorized(name)


def test_hostile_text_cannot_break_a_line(tree: UsbTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    name = tree.plug(STORAGE_STICK)
    (tree.root / f"bus/usb/devices/{name}/product").write_bytes(b"a\nb\x1b[2J\xff" + b"A" * 5000)
    probe.observe(1.0)
    (notice,) = probe.notices(1.0)
    assert "\n" not in notice.summary and "\x1b" not in notice.summary
    assert len(notice.detail["label"]) <= 2048


@given(st.binary(max_size=300))
def test_no_bytes_of_a_device_break_the_descriptor_walk(untrusted: bytes) -> None:
    assert all(each.kind == MALFORMED or len(each.kind) == 8 for each in offered_by(untrusted))


def test_descriptors_cut_short_at_every_byte_are_malformed_or_offer_less() -> None:
    whole = descriptors(KNOWN_KEYBOARD)
    assert offered_by(whole) == ((0, "03:01:01"), (1, "03:00:00"))
    for length in range(len(whole)):
        kinds = [each.kind for each in offered_by(whole[:length])]
        assert MALFORMED in kinds or len(kinds) < 2


@pytest.mark.parametrize(
    "rule",
    [
        '[[usb.allow]]\nvendor = "046d"\nreason = "no interfaces: never means all"',
        '[[usb.allow]]\nvendor = "046D"\ninterfaces = ["03:01:01"]\nreason = "capitals"',
        '[[usb.allow]]\nvendor = "046d"\ninterfaces = ["3:1:1"]\nreason = "short"',
        '[[usb.allow]]\nvendor = "046d"\ninterfaces = []\nreason = "empty"',
        '[[usb.allow]]\nvendor = "046d"\ninterfaces = ["03:01:01"]',
        '[[usb.block]]\nreason = "names nothing: never means all"',
    ],
)
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected) as refused:
        section_of("usb", "[usb]\n" + rule + "\n")
    assert refused.value.code == "baseline.key"


def test_a_device_that_comes_wakes_the_agent_within_a_second(tree: UsbTree) -> None:
    woken = threading.Event()
    events = Host(sysfs_root=tree.root).watch_devices(USB_ONLY, lambda section: woken.set())
    try:
        time.sleep(0.1)
        assert not woken.is_set()
        tree.plug(STORAGE_STICK)
        assert woken.wait(3)
    finally:
        events.stop()


def test_uevents_that_are_not_of_usb_do_not_wake_the_agent(tree: UsbTree) -> None:
    woken = threading.Event()
    kernel = Namespace("uevents")
    try:
        events = kernel.inside(
            lambda: Host(sysfs_root=tree.root).watch_devices(USB_ONLY, lambda section: woken.set())
        )
        for _ in range(20):
            kernel.uevent()
        time.sleep(0.3)
        events.stop()
        assert not woken.is_set()
    finally:
        kernel.remove()
