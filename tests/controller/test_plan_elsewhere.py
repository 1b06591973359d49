"""A plan made at one controller asks nodes that are connected to another, and says in words why it does not know of one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import insert, select

from contract.messages import BaselineRef, Order, SocketsWanted
from contract.sockets import Connection, SocketReport
from contract.wire import encode
from controller import asking
from controller import session as sessions
from controller.permissions import EVERYWHERE
from controller.store import StoreUnavailable, Transaction
from controller.store.schema import socket_questions
from tests.agent.wholenode import until
from tests.controller.live import Live, answer_to, next_message
from tests.controller.several import DEADLINE_S, at, heard, two_over
from tests.controller.test_plan_connections import RULES, SAID, tell
from tests.parts.postgres import Postgres
from tests.parts.simulator import Node

NODE_S = 1.5
ANSWERS_S = 4.0


@pytest_asyncio.fixture
async def two(
    tmp_path: Path, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Live, Live]]:
    """Two controllers that hear each other, and a baseline to plan: it closes port 8080."""
    for module in (sessions, asking):
        monkeypatch.setattr(module, "SOCKETS_S", NODE_S)
    monkeypatch.setattr(asking, "ANSWERS_S", ANSWERS_S)
    monkeypatch.setattr(sessions, "SOCKETS_FRESH_S", DEADLINE_S)  # each node is asked once
    async with two_over(postgres_server, tmp_path) as (one, other):
        await one.assign(2, extra=RULES.format(port=8080))
        await one.push(3, extra=RULES.format(port=8081))
        await heard(one)
        yield one, other


async def node(two: tuple[Live, Live], name: str, *, here: bool = False, new: bool = True) -> Node:
    """A node that holds factory/2, connected to the second controller; `here`: to the first. `new`: its agent tells."""
    one, other = two
    made = await at(one if here else other, (await one.node(name, connect=False)).identity)
    wanted = next(b for b in (await one.fleet.list_baselines(scope=EVERYWHERE)).items if b.version == 2)
    made.baseline = BaselineRef(name="factory", version=2, sha256=bytes.fromhex(wanted.sha256))
    for named in (b"", b"n" * 32 if new else b""):
        await answer_to(made, made.report(inventory_sha256=named))
    return made


async def planned(live: Live, query: str = "") -> dict[str, object]:
    """What a plan made at this controller says of connections."""
    status, plan = await live.call(
        "POST", f"/api/v1/plans{query}", {"baseline": "factory", "selector": "all"}
    )
    assert status in (200, 201), plan
    impact = plan["impact"]
    assert isinstance(impact, dict)
    return impact


def unknown(impact: dict[str, object]) -> dict[str, list[str]]:
    """Nodes by why nothing is known of them."""
    found = impact["unknown"]
    assert isinstance(found, list)
    return {each["why"]: each["nodes"] for each in found}


async def questions(live: Live) -> list[tuple[str, str]]:
    """Rows that are there."""
    columns = socket_questions.c.question, socket_questions.c.node
    return await live.controller._store.run(lambda tx: [(q, n) for q, n in tx.execute(select(*columns))])


@contextlib.contextmanager
def mute(live: Live) -> Iterator[None]:
    """A controller that hears no question, as one of a version before: all else goes on."""
    own, live.services.asking._own = live.services.asking._own, "nobody"
    try:
        yield
    finally:
        live.services.asking._own = own


async def test_a_plan_asks_nodes_wherever_they_are_connected(
    two: tuple[Live, Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWERS_S", DEADLINE_S)
    monkeypatch.setattr(asking, "LOOK_AGAIN_S", DEADLINE_S)  # what is told counts, not what is looked up
    one, other = two
    here, there = await node(two, "press-1", here=True), await node(two, "press-2")
    begun = time.monotonic()
    telling = asyncio.gather(tell(here, encode(SAID)), tell(there, encode(SAID)))
    impact = await planned(one)
    await telling
    assert (impact["known"], impact["unknown"], impact["cut"]) == (2, [], 2)
    assert time.monotonic() - begun < DEADLINE_S  # nobody waits when all have told
    assert await questions(one) == []
    impact = await planned(other)  # and the other way round, with the same answers
    assert (impact["known"], impact["cut"]) == (2, 2)


async def test_what_a_node_elsewhere_does_not_tell_is_said_in_the_same_words(two: tuple[Live, Live]) -> None:
    one, _ = two
    silent, liar = await node(two, "press-1"), await node(two, "press-2")
    old, away = await node(two, "press-3", new=False), await node(two, "press-4")
    long = await node(two, "press-5")
    await away.close()

    async def gone() -> bool:
        return not (await one.fleet.node("press-4")).summary.connected

    await until("it has gone", gone, within_s=60)
    shown = SocketReport(connections=[Connection("tcp", "here", 1, "10.0.0.1", 1, program="\x1b[2J")])
    telling = asyncio.gather(tell(liar, b"\xc1"), tell(long, encode(shown)))
    impact = await planned(one)
    await telling
    assert unknown(impact) == {
        "it did not answer in time": ["press-1"],
        "what it told was refused: sockets.malformed": ["press-2", "press-5"],
        "its agent does not tell, or not yet": ["press-3"],
        "it is not connected": ["press-4"],
    }
    for each in (silent, liar, old, long):  # nobody's session has suffered
        assert (await one.fleet.node(each.identity.name)).summary.connected


async def test_a_controller_that_does_not_answer_is_not_waited_for_long(two: tuple[Live, Live]) -> None:
    one, other = two
    here, there = await node(two, "press-1", here=True), await node(two, "press-2")
    begun = time.monotonic()
    with mute(other):
        telling = asyncio.create_task(tell(here, encode(SAID)))
        async with asyncio.timeout(DEADLINE_S):
            impact = await planned(one)
        await telling
    assert time.monotonic() - begun >= ANSWERS_S
    assert impact["known"] == 1
    assert unknown(impact) == {"the controller that it is connected to did not answer in time": ["press-2"]}
    assert await questions(one) == []
    assert (await one.fleet.node(there.identity.name)).summary.connected


async def test_two_plans_at_once_are_answered_each_its_own(two: tuple[Live, Live]) -> None:
    one, other = two
    here, there = await node(two, "press-1", here=True), await node(two, "press-2")
    telling = asyncio.gather(tell(here, encode(SocketReport())), tell(there, encode(SAID)))
    plans = await asyncio.gather(planned(one), planned(one), planned(other))
    await telling
    for impact in plans:
        shown = impact["nodes"]
        assert isinstance(shown, list)
        assert (impact["known"], impact["cut"]) == (2, 1)
        assert [each["node"] for each in shown if each["cut"]] == ["press-2"]
    assert await questions(one) == []


async def test_an_answer_of_a_node_that_was_not_asked_is_left_out(two: tuple[Live, Live]) -> None:
    one, other = two
    there = await node(two, "press-1")

    async def asked() -> bool:
        return bool(await questions(one))

    with mute(other):
        asking_ = asyncio.create_task(one.services.asking.sockets_of(["press-1"]))
        await until("the question", asked, within_s=DEADLINE_S)
        ((question, name),) = await questions(one)

        def forge(tx: Transaction) -> None:
            rows = {"question": question, "holder": "x", "expires_at": time.time() + 60}
            tx.execute(insert(socket_questions).values(**rows, node="press-9", report=encode(SAID)))

        await one.controller._store.run(forge)
        said = await asking_
    assert name == "press-1" and list(said) == ["press-1"]
    assert await questions(one) == []
    await there.close()


async def test_an_order_does_not_wait_for_a_node_that_is_asked(two: tuple[Live, Live]) -> None:
    one, _ = two
    silent = await node(two, "press-1")
    planning = asyncio.create_task(planned(one))
    while not isinstance(await next_message(silent), SocketsWanted):
        pass
    await one.fleet.isolate_site("factory", actor="tester", reason="test", now=time.time())
    while not isinstance(await next_message(silent), Order):
        pass
    assert not planning.done()
    await planning


async def test_in_a_dry_run_nobody_is_asked_elsewhere_either(two: tuple[Live, Live]) -> None:
    one, _ = two
    await node(two, "press-1")
    assert unknown(await planned(one, "?dry_run=true")) == {"not asked in a dry run": ["press-1"]}
    assert await questions(one) == []


async def test_an_answer_that_the_database_did_not_take_is_written_when_it_is_asked_for_again(
    two: tuple[Live, Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    there = await node(two, "press-1")
    answer_question, tries = other.fleet.answer_question, 0

    async def not_yet(question: str, told: dict[str, bytes | str]) -> None:
        nonlocal tries
        tries += bool(told)
        if tries == 1:
            raise StoreUnavailable("away for a moment")
        await answer_question(question, told)

    monkeypatch.setattr(other.fleet, "answer_question", not_yet)
    telling = asyncio.create_task(tell(there, encode(SAID)))
    planning = asyncio.create_task(planned(one))
    await telling

    async def failed() -> bool:
        return tries > 0

    await until("the first try", failed, within_s=DEADLINE_S)
    other.services.asking._asked.set()  # as any notice does, and each reconnection
    assert (await planning)["known"] == 1
