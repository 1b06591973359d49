"""PCI on a tree of files (`tests.parts.bustree`): the machine's own devices are only read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.sysfsbuses import PciBus
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.bustree import BRIDGE, GPU, NVME, SPY, PciTree

TOML = """\
[pci]
unknown = "remove"
arrivals = "wait"
[[pci.allow]]
kind = "06*"
reason = "bridges"
[[pci.allow]]
vendor = "144d"
device = "a80a"
slot = "0000:01:*.*"
drivers = ["nvme"]
reason = "the system disk"
[[pci.allow]]
vendor = "10de"
kind = "03*"
reason = "the model's GPU"
"""


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    tree = _tree(folder / "sys")
    (tree.bus / "drivers_autoprobe").write_text("0")

    def blind() -> None:
        (tree.bus / "devices/0000:01:00.0/vendor").unlink()
        (tree.bus / "devices/0000:01:00.0/vendor").mkdir()

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(sysfs_root=folder / "sys")),
        spoil=lambda: (tree.bus / "drivers_autoprobe").write_text("1") and None,
        blind=blind,
        state=lambda: tree_state(tree.bus),
        trace=lambda: tree_trace(tree.bus),
        heirs=(TOML.replace('unknown = "remove"\n', ""), '[pci]\narrivals = "wait"\n'),
    )


def _tree(sysfs: Path) -> PciTree:
    tree = PciTree(sysfs)
    tree.plug("0000:00:01.0", BRIDGE)
    tree.plug("0000:01:00.0", NVME)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    return _tree(tmp_path)


def _probe(tree: PciTree, toml: str = TOML) -> Probe:  # type: ignore[type-arg]
    return probe_of("pci", toml, Surroundings(host=Host(sysfs_root=tree.bus.parent.parent)))


def _pass(probe: Probe, tree: PciTree) -> list[str]:  # type: ignore[type-arg]
    seen: list[str] = []
    for _ in range(4):
        probe.settle(1.0)
        drifts = probe.observe(1.0)
        seen += [drift.key for drift in drifts]
        probe.repair(drifts, 1.0)
        tree.settle()
    assert probe.observe(1.0) == []
    return seen


def test_d05_a_hot_plugged_card_gets_no_driver_and_is_taken_away(tree: PciTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    tree.plug("0000:05:00.0", SPY)
    assert tree.driver("0000:05:00.0") == ""
    assert "0000:05:00.0" in _pass(probe, tree)
    assert "0000:05:00.0" not in tree.there()
    assert [each.kind for each in probe.notices(1.0)] == ["pci.removed"]


def test_d05_an_allowed_card_that_waits_gets_its_driver(tree: PciTree) -> None:
    probe = _probe(tree)
    _pass(probe, tree)
    tree.plug("0000:06:00.0", GPU)
    assert tree.driver("0000:06:00.0") == ""
    assert _pass(probe, tree) == []
    assert tree.driver("0000:06:00.0") == "nvidia"


def test_d05_the_same_card_in_another_slot_is_unknown(tree: PciTree) -> None:
    probe = _probe(tree, TOML.replace('unknown = "remove"', 'unknown = "report"'))
    tree.plug("0000:07:00.0", NVME)
    drifts = probe.observe(1.0)
    assert "0000:07:00.0" in [drift.key for drift in drifts]
    probe.repair(drifts, 1.0)
    tree.settle()
    assert "0000:07:00.0" in tree.there()


def test_a_bridge_is_reported_and_never_taken_away(tree: PciTree) -> None:
    probe = _probe(tree, TOML.replace('kind = "06*"', 'kind = "0601*"'))
    for _ in range(2):
        drifts = probe.observe(1.0)
        probe.repair(drifts, 1.0)
        tree.settle()
    assert "0000:00:01.0" in tree.there() and "0000:00:01.0" in [drift.key for drift in drifts]


def test_another_driver_is_a_drift(tree: PciTree) -> None:
    link = tree.bus / "devices/0000:01:00.0/driver"
    link.unlink()
    link.symlink_to("../../drivers/vfio-pci")
    found = {drift.key: (drift.wanted, drift.found) for drift in _probe(tree).observe(1.0)}
    assert found["0000:01:00.0 driver"] == ("nvme", "vfio-pci")


def test_undo_has_the_bus_looked_through(tree: PciTree) -> None:
    probe = _probe(tree)
    tree.plug("0000:05:00.0", SPY)
    _pass(probe, tree)
    probe.undo()
    tree.settle()
    assert "0000:05:00.0" in tree.there()
    assert (tree.bus / "drivers_autoprobe").read_text() == "1"


def test_the_machines_own_bus_can_be_read() -> None:
    listed = {path.name for path in Path("/sys/bus/pci/devices").glob("*")}
    assert {each.address for each in PciBus(Path("/sys")).devices()} == listed


@pytest.mark.parametrize("rule", ['device = "a80a"', 'vendor = "144D"', 'kind = "*"', 'slot = "*"', ""])
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected):
        section_of("pci", f'[pci]\n[[pci.allow]]\n{rule}\nreason = "why not"\n')
