"""Two controllers over one PostgreSQL, real sockets on both: an order raised on one reaches the socket on the other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from contract.messages import Challenge, Order
from controller.permissions import EVERYWHERE
from controller.store import StoreUnavailable
from tests.controller.live import Live, answer_to, next_message
from tests.controller.several import DEADLINE_S, at, heard, two_over
from tests.parts.postgres import Postgres
from tests.parts.simulator import Node


@pytest_asyncio.fixture
async def two(
    tmp_path: Path, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Live, Live]]:
    monkeypatch.setattr(
        "controller.app.BEAT_S", 1000.0
    )  # what is told counts, not what is looked up now and then
    async with two_over(postgres_server, tmp_path) as both:
        yield both


async def told(node: Node) -> Order:
    """The next order; anything else before it is left out."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            message = await next_message(node)
        except TimeoutError:  # nothing for a while: a database that was away is found again in its own time
            assert time.monotonic() < end, "no order came"
            continue
        if isinstance(message, Order):
            node._obey(message.directive)
            return message


async def there_is_a_database(live: Live) -> None:
    """Wait until this controller's database answers it again."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            await live.fleet.counts(scope=EVERYWHERE)
            return
        except StoreUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def test_an_isolation_ordered_at_one_controller_reaches_the_socket_at_the_other(
    two: tuple[Live, Live],
) -> None:
    one, other = two
    nodes = [await one.node(f"press-{n}", connect=False) for n in range(1, 4)]
    there = [await at(other, node.identity) for node in nodes]
    for node in there:
        await answer_to(node, node.report())
    status, _ = await one.call("POST", "/api/v1/sites/factory/isolate", {"reason": "test"})
    assert status == 200
    await asyncio.gather(*(told(node) for node in there))
    assert [node.posture for node in there] == ["isolated"] * 3


async def test_a_node_that_moved_is_let_go_by_the_one_and_told_by_the_other(two: tuple[Live, Live]) -> None:
    one, other = two
    node = await one.node("press-1")
    await answer_to(node, node.report())
    moved = await at(other, node.identity)
    await answer_to(moved, moved.report())
    with pytest.raises(ConnectionError):  # the old controller closes what it holds no more
        while True:
            await asyncio.wait_for(next_message(node), DEADLINE_S)
    assert (await one.fleet.node("press-1")).summary.connected
    status, _ = await one.call("POST", "/api/v1/nodes/press-1/isolate", {"reason": "test"})
    assert status == 200
    await told(moved)
    assert moved.posture == "isolated"


async def test_a_boot_accepted_at_one_controller_asks_for_a_report_at_the_other(
    two: tuple[Live, Live],
) -> None:
    one, other = two
    node = await one.node("press-1", connect=False)
    there = await at(other, node.identity)
    await answer_to(there, there.report())
    there.pcrs = {**there.pcrs, 9: bytes(31) + b"\x01"}
    there.log_wanted = True
    await answer_to(there, there.report())
    status, told_ = await one.call("POST", "/api/v1/nodes/press-1/accept-boot", {"reason": "test"})
    assert status == 200, told_
    while not isinstance(await asyncio.wait_for(next_message(there), DEADLINE_S), Challenge):
        pass


async def test_an_event_stored_by_one_controller_wakes_who_waits_at_the_other(
    two: tuple[Live, Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr("controller.api.events.LOOK_AGAIN_S", 1000.0)
    await heard(other)
    last = (await one.fleet.counts(scope=EVERYWHERE)).last_event
    waiting = asyncio.create_task(other.call("GET", f"/api/v1/events?after={last}&wait_s=30"))
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await one.fleet.isolate_site("factory", actor="tester", reason="test", now=time.time())
    _, found = await waiting
    assert [e["kind"] for e in found["items"]] == ["site.isolated"]  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 20


async def test_c03_what_was_ordered_while_the_database_was_away_is_sent_when_it_is_back(
    two: tuple[Live, Live], postgres_server: Postgres
) -> None:
    one, other = two
    node = await one.node("press-1", connect=False)
    there = await at(other, node.identity)
    await answer_to(there, there.report())
    await asyncio.to_thread(postgres_server.restart)
    end = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            status, _ = await one.call("POST", "/api/v1/sites/factory/isolate", {"reason": "test"})
            if status == 200:
                break
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    await told(there)
    assert there.posture == "isolated"


async def test_c03_a_look_that_failed_because_the_database_was_still_starting_is_taken_again(
    two: tuple[Live, Live], postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    node = await one.node("press-1", connect=False)
    there = await at(other, node.identity)
    await answer_to(there, there.report())
    looks = 0
    lost_sessions = other.fleet.lost_sessions

    async def not_yet(held: Mapping[str, int]) -> list[str]:
        nonlocal looks
        looks += 1
        if looks <= 2:
            raise StoreUnavailable("the database system is starting up")
        return await lost_sessions(held)

    monkeypatch.setattr(other.fleet, "lost_sessions", not_yet)
    await asyncio.to_thread(postgres_server.stop)
    await asyncio.to_thread(postgres_server.start)
    await there_is_a_database(one)
    await one.fleet.isolate_site("factory", actor="tester", reason="test", now=time.time())
    await told(there)
    assert looks >= 3
