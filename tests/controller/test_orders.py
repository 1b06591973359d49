"""Orders that are lost, late or made while nobody listens: what was decided reaches the node all the same, and once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
import pytest_asyncio

from contract.envelope import open_directive
from contract.messages import Order
from controller import session, sessions
from controller.policy import FleetSettings
from controller.store import Transaction, holds, nodes
from tests.controller.live import Live, next_message, running
from tests.parts.fleets import ACTOR, T0, FleetLab


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


async def test_c18_a_node_that_was_offline_is_isolated_by_its_first_message(live: Live) -> None:
    node = await live.node("press-1")
    await node.exchange(node.report())
    await node.close()
    status, _ = await live.call("POST", "/api/v1/nodes/press-1/isolate", {"reason": "stolen"})
    assert status == 200
    back = await live.again(node.identity)
    assert back.posture == "isolated"


async def test_c18_a_connected_node_is_told_at_once(live: Live) -> None:
    node = await live.node("press-1")
    await node.exchange(node.report())
    await live.call("POST", "/api/v1/nodes/press-1/isolate", {"reason": "stolen"})
    assert isinstance(await next_message(node), Order)


async def test_c18_every_node_of_a_large_push_gets_one_order_with_the_number_on_record(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PUSH_AT_ONCE", 2)
    names = [f"press-{number}" for number in range(5)]
    fleet = {name: await live.node(name) for name in names}
    for node in fleet.values():
        await node.exchange(node.report())
    before = {name: (await live.fleet.node(name)).directive_number for name in names}
    await live.call("POST", "/api/v1/sites/factory/isolate", {"reason": "stolen"})
    for name, node in fleet.items():
        order = await next_message(node)
        assert isinstance(order, Order)
        said = open_directive(
            order.directive,
            live.services.keys.directive_public,
            node=name,
            now=time.time(),
            highest_number=before[name],
        )
        assert said.posture == "isolated"
        assert said.number == (await live.fleet.node(name)).directive_number > before[name]


async def test_c18_a_node_that_takes_nothing_holds_up_no_order_and_is_dropped(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf, heard = await live.node("press-1"), await live.node("press-2")
    for node in (deaf, heard):
        await node.exchange(node.report())
    stuck = live.services.sessions._open["press-1"]
    monkeypatch.setattr(session, "SEND_S", 6.0)
    stuck.socket._writer._limit = 0  # type: ignore[union-attr]  # aiohttp's writer waits at 64 KiB: here with every frame

    async def fill() -> None:
        while not stuck.socket.closed:  # nobody receives there, so its client stops reading at some length
            await stuck.send_encoded(bytes(30_000))
            await asyncio.sleep(0)

    filling = asyncio.create_task(fill())
    async with asyncio.timeout(60):
        while stuck.has_room():  # noqa: ASYNC110  (aiohttp tells nobody)
            await asyncio.sleep(0.01)
        begun = time.monotonic()
        telling = asyncio.create_task(
            live.call("POST", "/api/v1/sites/factory/isolate", {"reason": "stolen"})
        )
        assert isinstance(await next_message(heard), Order)
        assert time.monotonic() - begun < 4.0
        assert (await telling)[0] == 200
        await filling


async def test_c18_no_report_that_waits_holds_up_an_isolation_or_its_orders(live: Live) -> None:
    node = await live.node("press-1")
    await node.exchange(node.report())
    store, before = live.fleet._store, (await live.fleet.node("press-1")).directive_number

    def isolated(tx: Transaction) -> bool:
        return bool(holds.active_of_site(tx, "factory"))

    def ordered(tx: Transaction) -> bool:
        row = nodes.load(tx, "press-1")
        return row is not None and row.directive_number > before

    async def first(work: Coroutine[None, None, object], seen: Callable[[Transaction], bool]) -> bool:
        """Have something wait while the store is busy, then begin `work`; tell whether that was done first."""
        begun, go_on = threading.Event(), threading.Event()

        def held(tx: Transaction) -> None:
            begun.set()
            assert go_on.wait(60)

        busy = asyncio.ensure_future(store.run(held))
        await asyncio.to_thread(begun.wait, 60)
        waits, urgent = asyncio.ensure_future(store.run(seen)), asyncio.ensure_future(work)
        for _ in range(100):  # it begins, and waits for the store in its turn
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(busy, urgent)
        return await waits

    order = live.fleet.isolate_site("factory", actor=ACTOR, reason="stolen", now=time.time())
    assert await first(order, isolated)
    assert await first(live.services.sessions.tell(["press-1"], time.time()), ordered)
    assert isinstance(await next_message(node), Order)


async def test_c18_an_order_that_was_lost_is_written_again_under_a_higher_number(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("press-1")
    await lab.report("press-1")
    before = (await lab.fleet.node("press-1")).directive_number
    await lab.fleet.isolate_node("press-1", actor=ACTOR, reason="stolen", now=T0)
    lost = await lab.fleet.directive_for("press-1", now=T0)
    assert lost.number > before
    quiet = await lab.report("press-1", now=T0 + 1, obey=False, directive_number=before)
    assert quiet.directive is None, "it may still be on its way"
    late = lost.expires + 1
    again = await lab.report("press-1", now=late, obey=False, directive_number=before)
    assert again.directive is not None
    assert (again.directive.posture, again.directive.number > lost.number) == ("isolated", True)
    assert again.directive.expires > late, "it does not come back expired"


async def test_c19_what_was_released_when_the_controller_died_is_released_when_it_is_back(
    lab: FleetLab,
) -> None:
    await lab.site()
    await lab.enrol("press-1")
    await lab.fleet.isolate_node("press-1", actor=ACTOR, reason="drill", now=T0)
    await lab.report("press-1", now=T0 + 1, posture="isolated")
    await lab.fleet.release_node("press-1", actor=ACTOR, reason="over", now=T0 + 2)
    # Nobody was told: it was killed here. Another process over the same database takes the next report.
    again = FleetLab(lab.store, FleetSettings(started=T0 + 60))
    outcome = await again.report("press-1", now=T0 + 61, posture="isolated")
    assert outcome.directive is not None and outcome.directive.posture == "normal"


async def test_c19_nothing_is_released_by_the_controller_being_away(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("press-1")
    await lab.fleet.isolate_node("press-1", actor=ACTOR, reason="found compromised", now=T0)
    again = FleetLab(lab.store, FleetSettings(started=T0 + 86400))
    outcome = await again.report("press-1", now=T0 + 86401, posture="isolated")
    assert outcome.directive is None or outcome.directive.posture == "isolated"
    assert (await again.held())[0] == {"press-1"}
