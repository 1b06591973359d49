"""USB devices judged together: seats and keyboards, whatever is plugged in and in whatever order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.devices import Offered, UsbDevice, UsbInterface
from agent.probes import usb as usb_probe
from agent.usbrules import Allow, Policy, judge
from tests.agent.probes.test_usb_rules import KEYBOARD_RULE, SINCE_BOOT_MS, _pass, _probe
from tests.parts.usbtree import HUB, KEYBOARD, KNOWN_KEYBOARD, MOUSE, STORAGE, Device, UsbTree


@pytest.fixture
def tree(tmp_path: Path) -> UsbTree:
    return UsbTree(tmp_path / "sys")


def _policy(allow: list[Allow]) -> Policy:
    return Policy(
        allow=allow,
        block=[],
        default="block",
        present="apply",
        inserted="apply",
        keyboards="one",
        boot_s=usb_probe.Section().boot_s,
    )


@given(st.lists(st.tuples(st.sampled_from([KEYBOARD, STORAGE, MOUSE, HUB]), st.booleans()), max_size=6))
def test_whatever_is_plugged_in_one_keyboard_types_and_no_rule_has_more_than_its_seats(
    plugged: list[tuple[tuple[int, int, int], bool]],
) -> None:
    rule = Allow(interfaces=["*:*:*"], max=3, reason="all sorts")
    devices = [
        UsbDevice(
            name=f"1-{n}",
            number=str(n),
            vendor="0001",
            product="0002",
            serial="",
            label="",
            manufacturer="",
            authorized=working,
            offered=(Offered(0, bytes(kind).hex(":")),),
            interfaces=(UsbInterface(f"1-{n}:1.0", 0, bytes(kind).hex(":"), working),),
            hub=("root", "root"),
            connect="unknown",
            connected_s=None,
            digest=None,
        )
        for n, (kind, working) in enumerate(plugged)
    ]
    verdicts = judge(_policy([rule]), devices)
    let_in = [each for each in devices if verdicts[each.name].allowed]
    assert len(let_in) <= 3
    assert sum(each.offered[0].kind == "03:01:01" for each in let_in) <= 1
    # What is decided stays decided: the same look again, after the switches were set, changes nothing.
    after = [each._replace(authorized=verdicts[each.name].allowed) for each in devices]
    after = [
        each._replace(interfaces=tuple(part._replace(authorized=each.authorized) for part in each.interfaces))
        for each in after
    ]
    again = judge(_policy([rule]), after)
    assert {name: each.allowed for name, each in again.items()} == {
        name: each.allowed for name, each in verdicts.items()
    }


@pytest.mark.parametrize("present", ["keep", "allow", "apply"])
def test_d02_the_keyboard_of_boot_is_the_one_keyboard_whatever_let_it_in(tree: UsbTree, present: str) -> None:
    tree.plug(KNOWN_KEYBOARD, port="2", connected_ms=SINCE_BOOT_MS)
    probe = _probe(tree, f'present = "{present}"\nkeyboards = "one"\n' + KEYBOARD_RULE)
    _pass(probe, tree)
    late = tree.plug(Device(1, 2, "New", interfaces=(KEYBOARD,)), port="1")
    _pass(probe, tree)
    assert tree.authorized("1-2:1.0") and not tree.authorized(late)
