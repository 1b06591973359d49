"""Silence: who is overdue or unreachable, how many at a time, and what silence does not change; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from controller.fleet import nodes
from controller.permissions import EVERYWHERE
from controller.policy import FleetSettings, SitePolicy
from controller.standing import SILENCE_INTERVALS
from controller.store import Store
from controller.store import nodes as rows
from tests.parts.fleets import T0, FleetLab, evidence, finding


async def test_a05_an_agent_that_was_stopped_is_named_within_two_intervals(lab: FleetLab) -> None:
    await lab.populate(2, policy=SitePolicy(interval_s=60))
    await lab.fleet.end_session("factory-1", epoch=1)

    async def standing() -> str:
        return (await lab.fleet.node("factory-1")).summary.standing

    assert await lab.fleet.sweep(now=T0 + 89) == []
    [change] = [c for c in await lab.fleet.sweep(now=T0 + 91) if c.node == "factory-1"]
    assert (change.before, change.after) == ("healthy", "overdue")
    await lab.report("factory-2", now=T0 + 100)
    [change] = await lab.fleet.sweep(now=T0 + 120)
    assert (change.node, change.after, await standing()) == ("factory-1", "unreachable", "unreachable")
    assert await lab.fleet.sweep(now=T0 + 121) == []
    events = [e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.node == "factory-1"]
    assert [e.kind for e in events][-2:] == ["node.overdue", "node.unreachable"]
    assert (await lab.fleet.node("factory-1")).summary.tier == "affirming"
    await lab.report("factory-1", now=T0 + 200)
    assert await standing() == "healthy"


async def test_a05_silence_while_the_controller_was_down_is_not_the_nodes(
    open_store: Callable[[], Store],
) -> None:
    await FleetLab(open_store()).populate(1)
    later = FleetLab(open_store(), FleetSettings(started=T0 + 3600))
    await later.fleet.start(now=T0 + 3600)
    assert await later.fleet.sweep(now=T0 + 3601) == []
    [change] = await later.fleet.sweep(now=T0 + 3600 + 120)
    assert change.after == "unreachable"


async def test_where_a_whole_site_falls_silent_reports_have_their_turn_in_between(
    lab: FleetLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SWEEP_NODES", 2)
    await lab.populate(8, policy=SitePolicy(interval_s=60))
    sweep = asyncio.create_task(lab.fleet.sweep(now=T0 + 91))
    await asyncio.sleep(0)
    await lab.fleet.take_report("factory-8", evidence("factory-8", now=T0 + 91), now=T0 + 91)
    assert not sweep.done()
    assert {change.node for change in await sweep} == {f"factory-{n}" for n in range(1, 8)}


async def test_a_sweep_reads_the_nodes_whose_standing_changes_and_no_others(lab: FleetLab) -> None:
    await lab.populate(3, policy=SitePolicy(interval_s=60))

    async def silent(at: float) -> list[str]:
        return await lab.store.run(
            lambda tx: rows.silent(tx, now=at, started=0.0, intervals=SILENCE_INTERVALS, limit=2)
        )

    await lab.report("factory-3", now=T0 + 1)
    assert await silent(T0 + 89) == []
    assert await silent(T0 + 92) == ["factory-1", "factory-2"]  # the longest silent first
    await lab.fleet.sweep(now=T0 + 92)
    assert await silent(T0 + 119) == []
    assert await silent(T0 + 120) == ["factory-1", "factory-2"]


async def test_silence_changes_neither_distrust_nor_isolation(lab: FleetLab) -> None:
    await lab.populate(2, policy=SitePolicy(isolate_node_on=(), isolate_site_on=()))
    await lab.report("factory-1", findings=[finding("1234")])
    await lab.fleet.isolate_node("factory-2", actor="ann", reason="drill", now=T0)
    assert await lab.fleet.sweep(now=T0 + 10_000) == []
    standings = {n.node: n.standing for n in (await lab.fleet.list_nodes(scope=EVERYWHERE)).items}
    assert standings == {"factory-1": "untrusted", "factory-2": "isolated"}
