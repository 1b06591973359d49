"""What no device section takes away: the system's disk and the way to the controller."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import ControllerEndpoint, Surroundings
from agent.probes._vital import Vital, vital_parts
from tests.agent.probes.case import probe_of
from tests.parts.bustree import SPY, PciTree
from tests.parts.namespace import Namespace
from tests.parts.ondisk import on_disk

CONTROLLER = (ControllerEndpoint("10.9.0.1", 8440),)
DOWN = '[netdevs]\nunknown = "down"\n'


@pytest.fixture
def kernel() -> Iterator[Namespace]:
    made = Namespace("vital")
    yield made
    made.remove()


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    with on_disk() as folder:
        yield folder


def _up(kernel: Namespace) -> set[str]:
    return {each["ifname"] for each in json.loads(kernel.ip("-j", "link")) if "UP" in each["flags"]}


def _way_over_a_bridge(kernel: Namespace) -> None:
    kernel.batch(
        [
            "link add br0 type bridge",
            "link add port0 type veth peer name far0",
            "link set port0 master br0",
            "link add evil type ifb",
            *(f"link set {name} up" for name in ("br0", "port0", "far0", "evil")),
            "address add 10.9.0.7/24 dev br0",
        ]
    )


def test_d05_the_way_to_the_controller_stays_up_and_is_told(kernel: Namespace) -> None:
    _way_over_a_bridge(kernel)
    probe = probe_of("netdevs", DOWN, Surroundings(host=Host(), controller=CONTROLLER))
    for _ in range(2):
        kernel.inside(lambda: probe.repair(probe.observe(1.0), 1.0))
    # The other end of the port's own cable is here too: without it the port has no carrier.
    assert _up(kernel) == {"lo", "br0", "port0", "far0"}
    keys = kernel.inside(lambda: [drift.key for drift in probe.observe(2.0)])
    assert set(keys) == {"br0", "port0", "far0"}


def test_d05_another_route_frees_the_old_one(kernel: Namespace) -> None:
    _way_over_a_bridge(kernel)
    around = Surroundings(host=Host(), controller=CONTROLLER)
    before = kernel.inside(lambda: vital_parts(around)).links
    kernel.ip("address", "add", "10.9.0.8/32", "dev", "evil")
    kernel.ip("route", "add", "10.9.0.1/32", "dev", "evil")
    after = kernel.inside(lambda: vital_parts(around)).links
    assert len(before) == 3 and len(after) == 1 and not before & after


def test_hardware_stays_up_while_there_is_no_way_to_the_controller() -> None:
    link = Host().links.all()[0]
    nowhere, somewhere = (
        Vital(frozenset(), frozenset(numbers), frozenset()) for numbers in ((), (link.number + 1,))
    )
    assert nowhere.keeps(link._replace(kind="")) and not nowhere.keeps(link._replace(kind="veth"))
    assert not somewhere.keeps(link._replace(kind=""))


class SystemDisk:
    """A SCSI disk behind a PCI card, on whose second partition the test's root lies, through device-mapper."""

    def __init__(self, folder: Path) -> None:
        self.tree = PciTree(folder)
        self.tree.plug("0000:05:00.0", SPY)
        self.tree.plug("0000:06:00.0", SPY)
        bus = self.tree.bus / "devices"
        place = folder / "devices/pci0000:00/0000:05:00.0"
        place.parent.mkdir(parents=True)
        (bus / "0000:05:00.0").rename(place)
        (bus / "0000:05:00.0").symlink_to(place)
        self.disk = place / "block/sda"
        facts = {
            "dev": "8:0",
            "size": "2048",
            "removable": "0",
            "ro": "0",
            "device/delete": "",
            "sda2/partition": "2",
        }
        for name, value in facts.items():
            (self.disk / name).parent.mkdir(parents=True, exist_ok=True)
            (self.disk / name).write_text(value)
        mapped = folder / "devices/virtual/block/dm-0"
        (mapped / "slaves").mkdir(parents=True)
        (mapped / "slaves/sda2").symlink_to(self.disk / "sda2")
        (folder / "block").mkdir()
        (folder / "block/sda").symlink_to(self.disk)
        number = os.stat(folder).st_dev  # noqa: PTH116
        (folder / "dev/block").mkdir(parents=True)
        (folder / f"dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(mapped)
        self.around = Surroundings(host=Host(root=folder, sysfs_root=folder))


@pytest.mark.parametrize("unknown", ["remove", "read-only"])
def test_d05_the_systems_own_disk_is_told_and_stays(disk_folder: Path, unknown: str) -> None:
    system = SystemDisk(disk_folder)
    probe = probe_of("blocks", f'[blocks]\nunknown = "{unknown}"\n', system.around)
    drifts = probe.observe(1.0)
    assert [drift.key for drift in drifts] == ["sda"]
    probe.repair(drifts, 1.0)
    assert (system.disk / "device/delete").read_text() == ""
    assert dict(system.around.remembered) == {}


def test_d05_the_card_before_the_systems_disk_is_told_and_stays(disk_folder: Path) -> None:
    system = SystemDisk(disk_folder)
    probe = probe_of("pci", '[pci]\nunknown = "remove"\n', system.around)
    drifts = probe.observe(1.0)
    assert {drift.key for drift in drifts} == {"0000:05:00.0", "0000:06:00.0"}
    probe.repair(drifts, 1.0)
    bus = system.tree.bus / "devices"
    assert (bus / "0000:05:00.0/remove").read_text() == "" and (
        bus / "0000:06:00.0/remove"
    ).read_text() == "1"
