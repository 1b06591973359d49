"""Inventories over real sessions: asked for once, only what a verified report named, and bad ones hurt nothing else."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.inventory import Fact, Taken, packed
from contract.messages import Answer, Inventory, Message, Refused
from contract.wire import encode
from controller import stocktaking
from tests.controller.live import Live, answer_to, running
from tests.parts.simulator import Node

STOCK = packed([Fact("package", "bash", "5.2"), Fact("system", "kernel", "6.1")])


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


async def wanted(node: Node, named: bytes = b"") -> bool:
    """Report, and whether the answer wants the inventory."""
    answer = await answer_to(node, node.report(inventory_sha256=named))
    assert isinstance(answer, Answer), answer
    assert answer.tier == "affirming"
    return answer.inventory_wanted


async def bring(node: Node, message: Message) -> None:
    """Send what no answer comes to."""
    assert node._socket is not None
    await node._socket.send_bytes(encode(message))


async def names(live: Live, node: str = "press-1") -> set[str]:
    return {fact.name for fact in (await live.fleet.inventory(node)).items}


async def test_it_is_asked_for_once_and_again_when_it_has_changed(live: Live) -> None:
    node = await live.node("press-1")
    assert not await wanted(node)
    assert await wanted(node, STOCK.sha256)
    await bring(node, Inventory(packed=STOCK.packed))
    assert not await wanted(node)
    assert await names(live) == {"bash", "kernel"}
    again = await live.again(node.identity)
    assert not await wanted(again, STOCK.sha256)
    assert await wanted(again, packed([Fact("package", "bash", "5.3")]).sha256)


async def test_q21_only_what_the_quoted_report_named_is_taken(live: Live) -> None:
    node = await live.node("press-1")
    other = packed([Fact("package", "bash", "6.6.6")])
    assert await wanted(node, STOCK.sha256)
    await bring(node, Inventory(packed=other.packed))
    assert not await wanted(node)  # the session goes on, and it is not asked for again
    assert await names(live) == set()
    told = [event for event in await live.events("press-1") if event.kind == "inventory.refused"]
    assert [event.detail["code"] for event in told] == ["inventory.differs"]


async def test_q21_what_an_unverified_report_names_is_not_asked_for(live: Live) -> None:
    node = await live.node("press-1")
    report = node.report(inventory_sha256=STOCK.sha256)
    body = report.body.replace(STOCK.sha256, packed([]).sha256)
    assert body != report.body
    answer = await answer_to(node, encode(type(report)(**{**_fields(report), "body": body})))
    assert isinstance(answer, Answer)
    assert answer.tier == "contraindicated"
    assert not answer.inventory_wanted


async def test_c06_bombs_and_what_nobody_asked_for(live: Live) -> None:
    node = await live.node("press-1")
    bomb = zlib.compress(bytes(100 * 1024 * 1024))
    assert await wanted(node, hashlib.sha256(b"x").digest())
    await bring(node, Inventory(packed=bomb))
    assert not await wanted(node)
    told = [event for event in await live.events("press-1") if event.kind == "inventory.refused"]
    assert [event.detail["code"] for event in told] == ["inventory.too-large"]
    refused = await answer_to(node, Inventory(packed=STOCK.packed))
    assert isinstance(refused, Refused)
    assert refused.code == "inventory.unasked"
    assert await names(live) == set()


async def test_c05_a_few_bring_it_at_a_time_and_each_comes_to_its_turn(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stocktaking, "AT_ONCE", 1)
    one, two = await live.node("press-1"), await live.node("press-2")
    assert await wanted(one, STOCK.sha256)
    assert not await wanted(two, STOCK.sha256)
    assert await wanted(one)  # it has not come yet
    await bring(one, Inventory(packed=STOCK.packed))
    assert not await wanted(one)
    assert await wanted(two)
    await bring(two, Inventory(packed=STOCK.packed))
    assert not await wanted(two)
    assert await names(live, "press-2") == {"bash", "kernel"}


async def test_who_leaves_without_bringing_it_holds_up_nobody(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stocktaking, "AT_ONCE", 1)
    one, two = await live.node("press-1"), await live.node("press-2")
    assert await wanted(one, STOCK.sha256)
    await one.close()
    again = await live.again(one.identity)
    assert not await wanted(again)
    assert await wanted(two, STOCK.sha256)


async def test_one_that_comes_too_soon_is_asked_for_later(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await live.node("press-1")
    later = packed([Fact("package", "bash", "5.3")])

    async def change(stock: Taken) -> None:
        assert await wanted(node, stock.sha256)
        await bring(node, Inventory(packed=stock.packed))

    await change(STOCK)
    await change(later)
    assert await wanted(node)
    monkeypatch.setattr("controller.fleet.inventories.MIN_GAP_S", 0.0)
    await bring(node, Inventory(packed=later.packed))
    assert not await wanted(node)
    assert await names(live) == {"bash"}


async def test_it_is_shown_over_the_api(live: Live) -> None:
    node = await live.node("press-1")
    assert await wanted(node, STOCK.sha256)
    await bring(node, Inventory(packed=STOCK.packed))
    assert not await wanted(node)
    status, view = await live.call("GET", "/api/v1/nodes/press-1/inventory?kind=package", role="viewer")
    assert status == 200
    assert view["sha256"] == STOCK.sha256.hex()
    assert [fact["value"] for fact in view["items"]] == ["5.2"]  # type: ignore[attr-defined, index]
    status, view = await live.call("GET", "/api/v1/nodes/press-1/inventory?at=1", role="viewer")
    assert (status, view["items"]) == (200, [])
    status, view = await live.call("GET", "/api/v1/nodes/press-1/inventory/history?limit=1", role="viewer")
    assert len(view["items"]) == 1  # type: ignore[arg-type]
    assert view["next"] is not None
    status, view = await live.call("GET", "/api/v1/inventory/packages?name=bash&version=5.2", role="viewer")
    assert [(one["node"], one["site"]) for one in view["items"]] == [("press-1", "factory")]  # type: ignore[attr-defined, index]
    for bad in ("?kind=secret", "?at=-1", "?cursor=x"):
        status, _ = await live.call("GET", f"/api/v1/nodes/press-1/inventory{bad}", role="viewer")
        assert status == (422 if "cursor" in bad else 400), bad
    assert (await live.call("GET", "/api/v1/inventory/packages", role="viewer"))[0] == 400
    assert (await live.call("GET", "/api/v1/nodes/none/inventory", role="viewer"))[0] == 404


def _fields(message: Message) -> dict[str, object]:
    return {name: getattr(message, name) for name in message.__struct_fields__}
