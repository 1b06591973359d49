"""Wakes by uevents, with real ones: the kernel passes on what root sends in a network namespace of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import probes
from agent.host import Host
from agent.uevents import DeviceEvents
from tests.parts.namespace import Namespace
from tests.parts.uevents import Announcer
from tests.parts.usbtree import STORAGE_STICK, UsbTree

SUBSYSTEMS = {"usb": ["usb"], "block": ["blocks"], "tty": ["serials"]}


@pytest.fixture
def kernel() -> Iterator[Namespace]:
    made = Namespace("uevents")
    yield made
    made.remove()


class Wakes:
    """A started listener, and when it called for what."""

    def __init__(self, kernel: Namespace, host: Host, *, hold: threading.Event | None = None) -> None:
        self.seen: list[tuple[float, str]] = []
        self._hold = hold

        def note(section: str) -> None:
            self.seen.append((time.monotonic(), section))
            if self._hold is not None:
                self._hold.wait(10)

        self.events: DeviceEvents = kernel.inside(lambda: host.watch_devices(SUBSYSTEMS, note))

    def wait(self, section: str, after: float, within_s: float = 2.0) -> float:
        while time.monotonic() < after + within_s:
            for at, name in list(self.seen):
                if name == section and at >= after:
                    return at - after
            time.sleep(0.001)
        raise AssertionError(f"no wake for {section} within {within_s} s")


def test_each_subsystem_wakes_its_own_sections(kernel: Namespace, tmp_path: Path) -> None:
    wakes, sender = Wakes(kernel, Host(sysfs_root=UsbTree(tmp_path / "sys").root)), Announcer(kernel)
    try:
        for subsystem, section in (("tty", "serials"), ("block", "blocks"), ("usb", "usb")):
            before = time.monotonic()
            sender.send("mem")
            sender.send(subsystem)
            wakes.wait(section, before)
        assert {name for _, name in wakes.seen} == {"serials", "blocks", "usb"}
    finally:
        wakes.events.stop()
        sender.close()


def test_every_device_section_names_its_subsystems() -> None:
    assert {"usb"} <= {section for sections in probes.subsystems().values() for section in sections}


def test_d04_thousands_of_uevents_are_a_few_calls_and_the_last_is_not_lost(
    kernel: Namespace, tmp_path: Path
) -> None:
    wakes, sender = Wakes(kernel, Host(sysfs_root=UsbTree(tmp_path / "sys").root)), Announcer(kernel)
    try:
        begun = time.monotonic()
        sender.send("usb", times=4000, per_s=2000)
        ended = time.monotonic()
        assert ended - begun < 10, "this machine could not send 2,000 a second"
        wakes.wait("usb", ended - 0.01)
        time.sleep(1.2)
        calls = len(wakes.seen)
        assert 5 <= calls <= 40
        # Quiet again: no call without an event, and the next event is passed on at once.
        time.sleep(0.6)
        assert len(wakes.seen) == calls
        before = time.monotonic()
        sender.send("usb")
        assert wakes.wait("usb", before) < 0.1
    finally:
        wakes.events.stop()
        sender.close()


def test_d04_a_device_that_comes_in_the_storm_is_looked_at_within_a_second(
    kernel: Namespace, tmp_path: Path
) -> None:
    tree = UsbTree(tmp_path / "sys")
    wakes, sender = Wakes(kernel, Host(sysfs_root=tree.root)), Announcer(kernel)
    storm = threading.Thread(target=lambda: sender.send("tty", times=3000, per_s=1000))
    try:
        storm.start()
        time.sleep(1.5)
        before = time.monotonic()
        tree.plug(STORAGE_STICK)
        sender.send("usb")
        assert wakes.wait("usb", before) < 1.0
    finally:
        storm.join()
        wakes.events.stop()
        sender.close()


def test_d04_what_the_socket_could_not_hold_wakes_everything(kernel: Namespace, tmp_path: Path) -> None:
    hold = threading.Event()
    wakes = Wakes(kernel, Host(sysfs_root=UsbTree(tmp_path / "sys").root), hold=hold)
    sender = Announcer(kernel)
    try:
        began = time.monotonic()
        sender.send("usb")
        wakes.wait("usb", began)
        sender.send("mem", times=20_000)  # none of these is anybody's, but what was lost may have been
        before = time.monotonic()
        hold.set()
        for section in ("usb", "blocks", "serials"):
            wakes.wait(section, before)
    finally:
        hold.set()
        wakes.events.stop()
        sender.close()
