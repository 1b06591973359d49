"""One whole node and a real controller: its inventory is there, an upgrade becomes a line of its history, at rest nothing is sent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent import stocktaking
from contract.messages import Inventory, Report
from contract.sockets import SocketReport
from contract.wire import decode
from controller.session import Session
from controller.stocktaking import Stocktaking
from tests.agent.wholenode import NODE, WholeNode, until
from tests.controller.live import EVENT_LOG, Live, running
from tests.parts.packagekit import Dpkg
from tests.parts.swtpm import SoftwareTpm


async def versions(live: Live) -> set[str]:
    view = await live.fleet.inventory(NODE, kind="package")
    return {fact.value for fact in view.items if fact.name == "tool"}


async def test_an_upgrade_is_in_the_history_and_a_node_at_rest_names_its_inventory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[bytes] = []
    brought: list[Inventory] = []
    judge, take = Session.appraised, Stocktaking.take

    async def noted(session: Session, report: Report, *rest: object) -> object:
        class Body(msgspec.Struct):
            inventory_sha256: bytes = b""

        named.append(decode(report.body, Body, max_bytes=2**20).inventory_sha256)
        return await judge(session, report, *rest)  # type: ignore[arg-type]

    async def taken(stock: Stocktaking, node: str, message: Inventory) -> None:
        brought.append(message)
        await take(stock, node, message)

    monkeypatch.setattr(Session, "appraised", noted)
    monkeypatch.setattr(Stocktaking, "take", taken)
    monkeypatch.setattr(stocktaking, "SETTLED_S", 0.1)
    monkeypatch.setattr("controller.fleet.inventories.MIN_GAP_S", 0.0)
    machine = SoftwareTpm.manufacture(tmp_path / "tpm")
    machine.reboot(EVENT_LOG.read_bytes())
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", {"usr/bin/tool": b"one"})
    async with running(tmp_path, interval_s=0.3) as live:
        node = WholeNode(tmp_path / "disk", live, machine)
        roots = msgspec.structs.replace(node.config.roots, root=str(dpkg.root))
        node.config = msgspec.structs.replace(node.config, roots=roots)
        await node.expected(node=NODE)
        await node.enrol()

        async def has(*wanted: str) -> bool:
            return await versions(live) == set(wanted)

        async with node.running():
            await until("the inventory", lambda: has("1.0"), within_s=60)
            reports = len(named)
            await until("four more reports", lambda: len(named) >= reports + 4, within_s=60)
            assert not any(named[reports + 1 :])
            assert len(brought) == 1
            dpkg.install("tool", "2.0", {"usr/bin/tool": b"two"})
            await until("the upgrade", lambda: has("2.0"), within_s=60)
            told = await live.services.asking.sockets_of([NODE, "nobody"])
            assert isinstance(told[NODE], SocketReport)
            assert told["nobody"] == "it is not connected"
        page = await live.fleet.inventory_history(NODE, kind="package")
        await node.close()
    machine.close()
    one, two = sorted((fact for fact in page.items if fact.name == "tool"), key=lambda fact: fact.value)
    assert one.seen_until == two.seen_from
    assert two.seen_until is None
