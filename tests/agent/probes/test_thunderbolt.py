"""Thunderbolt on a tree of files (`tests.parts.bustree`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.bustree import ThunderboltTree

KNOWN, OTHER = "c4010000-0000-7508-2314-c1e1a1c01921", "d4010000-0000-7508-2314-c1e1a1c01921"
TOML = f"""\
[thunderbolt]
dma_protection = "required"
[[thunderbolt.allow]]
uuid = "{KNOWN}"
vendor = "d4"
reason = "the dock of the service desk"
"""


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    tree = ThunderboltTree(folder / "sys")
    tree.plug("0-1", "Dock", KNOWN, authorized="1")

    def blind() -> None:
        (tree.devices / "domain0/security").unlink()
        (tree.devices / "domain0/security").mkdir()

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(sysfs_root=folder / "sys")),
        spoil=lambda: tree.plug("0-3", "Dock", OTHER, authorized="1") and None,
        blind=blind,
        state=lambda: tree_state(tree.devices),
        trace=lambda: tree_trace(tree.devices),
        undoes=False,  # a tunnel that was closed stays closed: the next baseline judges it
    )


@pytest.fixture
def tree(tmp_path: Path) -> ThunderboltTree:
    return ThunderboltTree(tmp_path)


def _probe(tree: ThunderboltTree, toml: str = TOML) -> Probe:  # type: ignore[type-arg]
    return probe_of("thunderbolt", toml, Surroundings(host=Host(sysfs_root=tree.devices.parents[2])))


def test_d05_only_the_dock_that_is_meant_gets_its_tunnel(tree: ThunderboltTree) -> None:
    probe = _probe(tree)
    tree.plug("0-1", "Dock", KNOWN)
    tree.plug("0-3", "Dock", OTHER)
    probe.settle(1.0)
    assert probe.observe(1.0) == []
    assert tree.authorized("0-1") and not tree.authorized("0-3")
    told = [(each.kind, each.detail["uuid"]) for each in probe.notices(1.0)]
    assert told == [("thunderbolt.refused", OTHER), ("thunderbolt.admitted", KNOWN)]
    probe.observe(2.0)
    assert probe.notices(2.0) == []


def test_d05_a_tunnel_that_somebody_opened_is_closed(tree: ThunderboltTree) -> None:
    probe = _probe(tree)
    tree.plug("0-3", "Dock", OTHER, authorized="1")
    drifts = probe.observe(1.0)
    assert [(drift.key, drift.found) for drift in drifts] == [("0-3", "authorized")]
    probe.repair(drifts, 1.0)
    assert not tree.authorized("0-3") and probe.observe(2.0) == []


def test_d05_a_controller_that_opens_every_tunnel_is_a_drift(tmp_path: Path) -> None:
    tree = ThunderboltTree(tmp_path, security="none", protected=False)
    found = {drift.key: drift.found for drift in _probe(tree).observe(1.0)}
    assert found == {"domain0 security": "none", "domain0 iommu_dma_protection": "0"}


def test_no_thunderbolt_is_no_drift(tmp_path: Path) -> None:
    (tmp_path / "bus").mkdir()
    around = Surroundings(host=Host(sysfs_root=tmp_path))
    assert probe_of("thunderbolt", TOML, around).observe(1.0) == []


@pytest.mark.parametrize(
    "rule", ["", 'device = "b070"', 'uuid = "C401"', 'place = "usb1"', 'vendor = "0xd4"']
)
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected):
        section_of("thunderbolt", f'[thunderbolt]\n[[thunderbolt.allow]]\n{rule}\nreason = "why not"\n')
