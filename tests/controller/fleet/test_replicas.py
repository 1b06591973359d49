"""Several controllers over one database: who holds a session, who is dead, who sweeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import sqlalchemy

from controller.permissions import EVERYWHERE
from controller.policy import FleetSettings, SitePolicy
from controller.store import Store, Transaction, hearing, notices, replicas
from controller.store.notices import Notice
from tests.parts.fleets import ACTOR, T0, FleetLab

OpenStore = Callable[[], Store]


async def _two(open_store: OpenStore) -> tuple[FleetLab, FleetLab]:
    one, two = FleetLab(open_store()), FleetLab(open_store())
    await one.site("factory", SitePolicy(interval_s=60))
    await one.enrol("press-1")
    await one.enrol("press-2")
    return one, two


async def _open(lab: FleetLab, node: str) -> int:
    """Open a session as the node would; returns its epoch."""
    bound = bytes.fromhex((await lab.fleet.node(node)).certificate_sha256)
    return (await lab.fleet.open_session(node, bound, now=T0)).epoch


async def _connected(lab: FleetLab, node: str) -> bool:
    return (await lab.fleet.node(node)).summary.connected


async def test_c03_the_late_end_of_a_session_ends_no_later_one_elsewhere(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    first = await _open(one, "press-1")
    await _open(two, "press-1")
    await one.fleet.end_session("press-1", epoch=first)
    assert await _connected(one, "press-1")


async def test_c03_the_late_end_of_a_session_ends_no_later_one_of_the_same_controller(lab: FleetLab) -> None:
    await lab.site("factory", SitePolicy(interval_s=60))
    await lab.enrol("press-1")
    first = await _open(lab, "press-1")
    second = await _open(lab, "press-1")
    await lab.fleet.end_session("press-1", epoch=first)
    assert await _connected(lab, "press-1")
    await lab.fleet.end_session("press-1", epoch=second)
    assert not await _connected(lab, "press-1")


async def test_a_controller_writes_no_directive_for_a_session_that_another_one_holds(
    open_store: OpenStore,
) -> None:
    one, two = await _two(open_store)
    old = await _open(one, "press-1")
    new = await _open(two, "press-1")
    await one.fleet.isolate_node("press-1", actor=ACTOR, reason="test", now=T0)
    assert await one.fleet.directives_to({"press-1": old}, now=T0) == {}
    made = await two.fleet.directives_to({"press-1": new}, now=T0, only_due=True)
    assert made["press-1"].posture == "isolated"
    assert await two.fleet.directives_to({"press-1": new}, now=T0, only_due=True) == {}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_starting_a_second_controller_ends_no_session_of_the_first(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await one.fleet.start(name="one", now=T0)
    await _open(one, "press-1")
    await two.fleet.start(name="two", now=T0)
    await two.fleet.beat({}, now=T0)
    assert await _connected(one, "press-1")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_on_sqlite_whatever_was_open_before_the_start_is_gone(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await one.fleet.start(name="one", now=T0)
    await _open(one, "press-1")
    await two.fleet.start(name="one", now=T0)
    assert not await _connected(two, "press-1")


def _age(tx: Transaction) -> None:
    tx.execute(sqlalchemy.text("UPDATE controllers SET seen_at = seen_at - 60 WHERE name = 'one'"))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_sessions_of_a_dead_controller_are_ended_by_another_and_come_back_with_it(
    open_store: OpenStore,
) -> None:
    one, two = await _two(open_store)
    await one.fleet.start(name="one", now=T0)
    await two.fleet.start(name="two", now=T0)
    held = {node: await _open(one, node) for node in ("press-1", "press-2")}
    await two.store.run(_age)
    await two.fleet.beat({}, now=T0)
    assert not await _connected(two, "press-1")
    lost = [
        e for e in await two.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "controller.lost"
    ]
    assert len(lost) == 1 and "one" in lost[0].summary
    # It was only cut off; press-2 has gone to the other one meanwhile.
    await _open(two, "press-2")
    assert await one.fleet.lost_sessions(held) == ["press-2"]
    await one.fleet.beat(held, now=T0)
    assert await _connected(one, "press-1")
    await one.fleet.leave()
    assert not await _connected(one, "press-1") and await _connected(one, "press-2")
    assert await two.store.run(replicas.count) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a05_two_controllers_that_sweep_at_once_tell_of_a_silence_once(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    for node in ("press-1", "press-2"):
        await one.report(node)
    for _ in range(3):
        found = await asyncio.gather(*(lab.fleet.sweep(now=T0 + 300) for lab in (one, two, one, two)))
    told = [
        e.node
        for e in await one.fleet.list_events(scope=EVERYWHERE, limit=500)
        if e.kind == "node.unreachable"
    ]
    assert sorted(told) == ["press-1", "press-2"], found


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a05_a_sweep_does_not_begin_while_another_controller_sweeps(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await one.report("press-1")
    engine = sqlalchemy.create_engine(two.store.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as other:
        assert replicas.leads(other)
        assert await one.fleet.sweep(now=T0 + 300) == []
    engine.dispose()
    assert [change.node for change in await one.fleet.sweep(now=T0 + 300)] == ["press-1"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_one_controller_does_is_told_to_the_others_when_it_is_stored(
    open_store: OpenStore,
) -> None:
    one, two = await _two(open_store)
    old = await _open(one, "press-1")
    heard: asyncio.Queue[Notice] = asyncio.Queue()

    async def listen() -> None:
        async for notice in hearing.hear(one.store.url, own=one.store.identity):
            await heard.put(notice)

    listening = asyncio.create_task(listen())
    try:
        assert (await asyncio.wait_for(heard.get(), 30)).everything  # what was told before is looked up
        epoch = await _open(two, "press-1")
        assert (await asyncio.wait_for(heard.get(), 30)).taken == {"press-1": epoch} and epoch > old
        await one.fleet.isolate_node("press-2", actor=ACTOR, reason="one's own", now=T0)
        with pytest.raises(ZeroDivisionError):
            await two.store.run(lambda tx: notices.due(tx, ["press-1"]) or 1 // 0)  # type: ignore[func-returns-value]
        await two.fleet.isolate_site("factory", actor=ACTOR, reason="test", now=T0)
        notice = await asyncio.wait_for(heard.get(), 30)
        assert sorted(notice.due) == ["press-1", "press-2"] and notice.by == two.store.identity
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_more_names_than_a_notice_holds_become_a_look_at_everything(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    listening = hearing.hear(one.store.url, own=one.store.identity)
    assert (await anext(listening)).everything
    names = [f"press-{n:05}" for n in range(2000)]
    await two.store.run(lambda tx: notices.due(tx, names))
    notice = await asyncio.wait_for(anext(listening), 30)
    assert notice.everything and not notice.due
    await two.store.run(
        lambda tx: tx.execute(sqlalchemy.text("SELECT pg_notify('ringfence', 'no notice')")) and None
    )
    await two.store.run(lambda tx: notices.due(tx, ["press-1"]))
    assert (await asyncio.wait_for(anext(listening), 30)).due == ["press-1"]
    await listening.aclose()  # type: ignore[attr-defined]


async def test_a_list_of_due_nodes_names_only_ones_own(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await one.fleet.start(now=time.time())
    held = {"press-1": await _open(one, "press-1")}
    await _open(two, "press-2")
    await one.fleet.isolate_site("factory", actor=ACTOR, reason="test", now=T0)
    assert await one.fleet.beat(held, now=time.time()) == ["press-1"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_suspect_that_claims_another_controllers_address_does_not_get_it_fenced(
    open_store: OpenStore,
) -> None:
    one, _ = await _two(open_store)
    two = FleetLab(open_store(), FleetSettings(protected_addresses=("10.0.0.9",)))
    await one.fleet.start(now=time.time())
    await two.fleet.start(now=time.time())
    await one.report("press-1", addresses=["10.0.0.9", "10.0.0.5"])
    await one.fleet.isolate_node("press-1", actor=ACTOR, reason="test", now=T0)
    told = await one.fleet.directive_for("press-2", now=T0)
    assert [response.addresses for response in told.responses] == [["10.0.0.5"]]
