"""Devices that a rule names and that went, in every section that has such: told once, and nothing of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.host import Host
from agent.probes import Surroundings
from agent.probes._gone import MAX_TOLD, Departures
from tests.agent.probes.case import probe_of
from tests.agent.probes.nodecase import OTHER, Machine
from tests.parts.bustree import Card, PciTree, ThunderboltTree
from tests.parts.namespace import Namespace

UUID = "c4010000-0000-7508-2314-c1e1a1c01921"
Made = tuple[str, Surroundings, Callable[[], object], Callable[[Callable[[], Any]], Any]]


def _here(work: Callable[[], Any]) -> Any:
    return work()


def _pci(folder: Path, stack: ExitStack) -> Made:
    tree = PciTree(folder)
    for address in ("0000:01:00.0", "0000:02:00.0"):
        tree.plug(address, Card("10de", "2204", "030000", driver="nvidia"))
    toml = '[pci]\n[[pci.allow]]\nslot = "0000:01:*.*"\nreason = "the GPU"\n'

    def unplug() -> None:
        for address in ("0000:01:00.0", "0000:02:00.0"):
            shutil.rmtree(tree.bus / "devices" / address)

    return toml, Surroundings(host=Host(sysfs_root=folder)), unplug, _here


def _thunderbolt(folder: Path, stack: ExitStack) -> Made:
    tree = ThunderboltTree(folder)
    for place, uuid in (("0-1", UUID), ("0-3", UUID.replace("c4", "d4", 1))):
        tree.plug(place, "Dock", uuid)
    toml = f'[thunderbolt]\n[[thunderbolt.allow]]\nuuid = "{UUID}"\nreason = "the desk\'s dock"\n'

    def unplug() -> None:
        for place in ("0-1", "0-3"):
            shutil.rmtree(tree.devices / place)

    return toml, Surroundings(host=Host(sysfs_root=folder)), unplug, _here


def _cameras(folder: Path, stack: ExitStack) -> Made:
    machine = Machine(folder)
    nodes = [machine.node("/dev/video0"), machine.node("/dev/video1", OTHER)]
    toml = '[cameras]\n[[cameras.allow]]\nnodes = ["/dev/video0"]\nopened_by = ["anybody"]\nreason = "line"\n'
    return toml, machine.around, lambda: [each.unlink() for each in nodes], _here


def _blocks(folder: Path, stack: ExitStack) -> Made:
    for name in ("sda", "sdb"):
        disk = folder / "block" / name
        (disk / "device").mkdir(parents=True)
        for attribute, value in (("dev", "8:0"), ("size", "2048"), ("ro", "0"), ("removable", "0")):
            (disk / attribute).write_text(value + "\n")
    toml = '[blocks]\n[[blocks.allow]]\nnames = ["sda"]\nreason = "the system"\n'

    def unplug() -> None:
        for name in ("sda", "sdb"):
            shutil.rmtree(folder / "block" / name)

    return toml, Surroundings(host=Host(sysfs_root=folder)), unplug, _here


def _netdevs(folder: Path, stack: ExitStack) -> Made:
    kernel = Namespace("gone")
    stack.callback(kernel.remove)
    for name in ("line0", "tun7"):
        kernel.ip("link", "add", name, "type", "ifb")
    toml = (
        '[netdevs]\nremoved = "tell"\n[[netdevs.allow]]\nnames = ["line*"]\nkind = "ifb"\nreason = "line"\n'
    )

    def unplug() -> None:
        for name in ("line0", "tun7"):
            kernel.ip("link", "del", name)
        assert {each["ifname"] for each in json.loads(kernel.ip("-j", "link"))} == {"lo"}

    return toml, Surroundings(host=Host()), unplug, kernel.inside


@pytest.mark.parametrize("make", [_pci, _thunderbolt, _cameras, _blocks, _netdevs])
def test_d05_a_device_that_a_rule_names_and_that_went_is_told_once(
    tmp_path: Path, make: Callable[[Path, ExitStack], Made]
) -> None:
    with ExitStack() as stack:
        toml, around, unplug, run = make(tmp_path, stack)
        name = toml[1 : toml.index("]")]
        probes = {
            said: probe_of(
                name,
                toml.replace('removed = "tell"\n', "").replace("]\n", f']\nremoved = "{said}"\n', 1),
                around,
            )
            for said in ("tell", "warn", "ignore")
        }
        for probe in probes.values():
            run(lambda each=probe: each.observe(1.0))
            probe.notices(1.0)
        unplug()
        found = {}
        for said, probe in probes.items():
            run(lambda each=probe: each.observe(2.0))
            found[said] = [
                (each.kind, each.severity) for each in probe.notices(2.0) if each.kind.endswith(".gone")
            ]
            run(lambda each=probe: each.observe(3.0))
            assert [each for each in probe.notices(3.0) if each.kind.endswith(".gone")] == []
        assert found == {
            "tell": [(f"{name}.gone", "info")],
            "warn": [(f"{name}.gone", "warning")],
            "ignore": [],
        }


def test_many_that_go_at_once_are_counted() -> None:
    departures = Departures("pci", "tell")
    departures.look({str(number): f"device {number}" for number in range(MAX_TOLD + 5)})
    departures.look({})
    told = departures.take()
    assert len(told) == MAX_TOLD + 1 and told[-1].detail == {"more": "5"}
    assert departures.take() == []
