"""Questions between controllers: of whom one is asked, who may answer, and that none is left."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import sqlalchemy
from msgspec import Struct

from controller.fleet import replicating
from controller.policy import SitePolicy
from controller.store import Store, Transaction, notices
from controller.store.notices import Notice
from controller.store.questions import TAKEN_AT_ONCE
from tests.parts.fleets import T0, FleetLab

OpenStore = Callable[[], Store]
only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def _two(open_store: OpenStore, nodes: int = 2) -> tuple[FleetLab, FleetLab]:
    """Two that are there, and nodes of which none is connected."""
    one, two = FleetLab(open_store()), FleetLab(open_store())
    await one.site("factory", SitePolicy(interval_s=60))
    for number in range(1, nodes + 1):
        await one.enrol(f"press-{number}")
    await one.fleet.start(name="one", now=T0)
    await two.fleet.start(name="two", now=T0)
    return one, two


async def _open(lab: FleetLab, *nodes: str) -> None:
    for node in nodes:
        bound = bytes.fromhex((await lab.fleet.node(node)).certificate_sha256)
        await lab.fleet.open_session(node, bound, now=T0)


async def _rows(lab: FleetLab) -> int:
    def count(tx: Transaction) -> int:
        return int(tx.execute(sqlalchemy.text("SELECT count(*) FROM socket_questions")).scalar_one())

    return await lab.store.run(count)


def _old(tx: Transaction) -> None:
    tx.execute(sqlalchemy.text("UPDATE socket_questions SET expires_at = expires_at - 60"))


@only_postgresql
async def test_only_nodes_whose_session_another_living_controller_holds_are_asked(
    open_store: OpenStore,
) -> None:
    one, two = await _two(open_store, 4)
    dead = FleetLab(open_store())
    await dead.fleet.start(name="dead", now=T0)
    await _open(one, "press-1")
    await _open(two, "press-2")
    await _open(dead, "press-3")

    def age(tx: Transaction) -> None:
        tx.execute(sqlalchemy.text("UPDATE controllers SET seen_at = seen_at - 60 WHERE name = 'dead'"))

    await two.store.run(age)
    names = [f"press-{number}" for number in range(1, 6)]
    assert await one.fleet.ask_elsewhere("q", names, now=T0) == {"press-2"}
    assert await two.fleet.asked_here(now=T0) == {"q": ["press-2"]}
    assert await one.fleet.asked_here(now=T0) == await dead.fleet.asked_here(now=T0) == {}


@only_postgresql
async def test_only_who_was_asked_can_answer_and_each_answer_is_had_once(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    other = FleetLab(open_store())
    await _open(two, "press-1", "press-2")
    for question in ("q", "r"):
        await one.fleet.ask_elsewhere(question, ["press-1"], now=T0)
    await other.fleet.answer_question("q", {"press-1": b"forged"})
    await two.fleet.answer_question("q", {"press-2": b"not asked"})
    assert await one.fleet.take_answers("q") == {}
    await two.fleet.answer_question("q", {"press-1": b"told"})
    assert await two.fleet.asked_here(now=T0) == {"r": ["press-1"]}
    assert await one.fleet.take_answers("r") == {}
    assert await one.fleet.take_answers("q") == {"press-1": b"told"}
    assert await one.fleet.take_answers("q") == {}
    await two.fleet.answer_question("r", {"press-1": "it did not answer in time"})
    assert await one.fleet.take_answers("r") == {"press-1": "it did not answer in time"}
    assert await _rows(one) == 0


@only_postgresql
async def test_many_and_long_answers_are_written_and_taken_in_parts(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicating, "WRITTEN_AT_ONCE", 1000)
    number = 2 * TAKEN_AT_ONCE + 1
    one, two = await _two(open_store, number)
    names = [f"press-{each}" for each in range(1, number + 1)]
    await _open(two, *names)
    assert await one.fleet.ask_elsewhere("q", names, now=T0) == set(names)
    wanted: dict[str, bytes | str] = {name: name.encode() * 90 for name in names}
    parts = list(replicating._portions(wanted))
    assert max(sum(len(each) for each in part.values()) for part in parts) <= 1000
    await two.fleet.answer_question("q", wanted)
    found: dict[str, bytes | str] = {}
    while some := await one.fleet.take_answers("q"):
        assert len(some) <= TAKEN_AT_ONCE and not some.keys() & found.keys()
        found |= some
    assert found == wanted


@only_postgresql
async def test_what_one_asked_who_died_is_forgotten(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await _open(two, "press-1", "press-2")
    await one.fleet.ask_elsewhere("q", ["press-1", "press-2"], now=T0)
    await two.store.run(_old)
    assert await two.fleet.asked_here(now=T0) == {}
    await one.fleet.ask_elsewhere("r", ["press-1"], now=T0)  # the next question drops it
    assert await _rows(one) == 1
    await two.store.run(_old)
    await two.fleet.forget_questions(now=T0)  # and so does the hour
    assert await _rows(one) == 0
    await one.fleet.ask_elsewhere("s", ["press-1"], now=T0)
    await one.fleet.drop_question("s")
    assert await _rows(one) == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_on_sqlite_there_is_nobody_to_ask(open_store: OpenStore) -> None:
    one, two = await _two(open_store)
    await _open(two, "press-1")
    assert await one.fleet.ask_elsewhere("q", ["press-1"], now=T0) == set()
    assert await _rows(one) == 0
    await one.fleet.forget_questions(now=T0)


def test_a_controller_of_the_version_before_hears_the_rest_of_a_notice() -> None:
    class Before(Struct, omit_defaults=True):
        by: str
        due: list[str] = []
        everything: bool = False

    told = msgspec.json.encode(Notice(by="one", due=["press-1"], asked=["two"], told=["q"]))
    assert msgspec.json.decode(told, type=Before) == Before(by="one", due=["press-1"])
    assert notices.read(msgspec.json.encode(Before(by="one")).decode()) == Notice(by="one")
