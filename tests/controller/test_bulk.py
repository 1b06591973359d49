"""Acts on many: each item has its own answer, one bad item does not fail the rest, and nothing named never means everything (c16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controller.permissions import EVERYWHERE, Right
from controller.policy import SitePolicy
from tests.controller.live import Live, running
from tests.controller.twosites import token_of

DIGEST = "ab" * 32


@pytest_asyncio.fixture
async def live(tmp_path: Path, database_url: str) -> AsyncIterator[Live]:
    async with running(tmp_path, database=database_url) as controller:
        for site in ("shop", "mill"):
            await controller.fleet.create_site(site, SitePolicy(), actor="tester", now=1.0)
        for number in (1, 2, 3):
            await controller.node(f"press-{number}", connect=False)
        await controller.node("till-1", site="shop", connect=False)
        yield controller


async def labels(live: Live) -> dict[str, dict[str, str]]:
    page = await live.fleet.list_nodes(scope=EVERYWHERE)
    return {view.node: dict(view.labels) for view in page.items}


async def relabel(
    live: Live, headers: dict[str, str] | None = None, **body: object
) -> tuple[int, dict[str, object]]:
    sent = {"reason": "moved", **body}
    role = None if headers else "admin"
    return await live.call("POST", "/api/v1/labels", sent, role=role, headers=headers)


def told(answer: dict[str, object]) -> dict[str, str | None]:
    """The problem of each item."""
    items = answer["items"]
    assert isinstance(items, list)
    assert all((each["done"] is None) != (each["problem"] is None) for each in items)
    return {each["item"]: each["problem"] and each["problem"]["code"] for each in items}


async def test_one_bad_node_does_not_fail_the_rest(live: Live) -> None:
    assert (await relabel(live, nodes=["press-1"], set={"line": "1", "old": "x"}))[0] == 200
    names = ["till-1", "nobody", "press-1"]
    status, answer = await relabel(live, nodes=names, set={"line": "3"}, remove=["old"])
    assert (status, answer["done"], answer["refused"]) == (200, 2, 1)
    assert told(answer) == {"nobody": "node.unknown", "press-1": None, "till-1": None}
    [problem] = [each["problem"] for each in answer["items"] if each["problem"]]  # type: ignore[attr-defined]
    assert problem["status"] == 404 and problem["type"].endswith("node.unknown")
    after = await labels(live)
    assert after["press-1"] == after["till-1"] == {"line": "3"} and after["press-2"] == {}
    assert (await live.kinds()).count("node.labelled") == 3


async def test_of_a_refused_item_nothing_is_left(live: Live) -> None:
    many = {f"key-{n}": "x" for n in range(32)}
    await relabel(live, nodes=["press-1"], set=many)
    before = await labels(live)
    status, answer = await relabel(live, selector="site=factory", set={"more": "x"})
    assert status == 200 and answer["refused"] in (0, 1)  # where there are too many labels for one
    if answer["refused"]:
        assert (await labels(live))["press-1"] == before["press-1"]
    assert (await labels(live))["press-2"] == {"more": "x"}


async def test_c09_items_out_of_scope_are_unknown_and_a_selector_means_nodes_in_scope(live: Live) -> None:
    here = await token_of(live, "admin", "factory")
    status, answer = await relabel(live, here, nodes=["press-1", "till-1"], set={"line": "3"})
    assert status == 200 and told(answer) == {"press-1": None, "till-1": "node.unknown"}
    status, answer = await relabel(live, here, selector="all", set={"line": "4"})
    assert status == 200 and told(answer) == dict.fromkeys(("press-1", "press-2", "press-3"))
    assert (await labels(live))["till-1"] == {}
    viewer = await live.token(
        "only-looks", "rfa_only-looks".ljust(47, "x"), Right(role="viewer", sites="all")
    )
    assert (await relabel(live, viewer, selector="all", set={"line": "5"}))[0] == 403


@pytest.mark.parametrize(
    "meant",
    [{}, {"selector": ""}, {"selector": " "}, {"nodes": []}, {"nodes": None}, {"selector": None}, {"nodes": [""]},
     {"nodes": ["*"]}, {"selector": "*"}, {"nodes": ["press-1"], "selector": "all"}, {"selector": "site=nowhere"}],
)  # fmt: skip
async def test_c16_nothing_named_changes_nothing(live: Live, meant: dict[str, object]) -> None:
    status, answer = await relabel(live, set={"line": "3"}, **meant)
    assert status in (400, 422), answer
    assert set(map(str, (await labels(live)).values())) == {"{}"}


async def test_each_announcement_is_on_its_own_and_held_against_the_scope(live: Live) -> None:
    here = await token_of(live, "admin", "factory")
    sets = [
        {"site": site, "values": {"kernel": [DIGEST]}, "valid_from": 1.0}
        for site in ("factory", "nowhere", "shop", "factory")
    ]
    body = {"references": sets, "reason": "update"}
    status, answer = await live.call("POST", "/api/v1/references", body, role=None, headers=here)
    assert status == 200
    assert told(answer) == {"0": None, "1": "site.unknown", "2": "site.unknown", "3": None}
    found = await live.fleet.list_references(scope=EVERYWHERE)
    assert {view.reference.site for view in found.items} == {"factory"} and len(found.items) == 2
    status, answer = await live.call("POST", "/api/v1/references", body)
    assert (status, answer["done"], answer["refused"]) == (200, 3, 1)


async def test_two_bulk_acts_at_once_do_not_wait_for_each_other_for_ever(live: Live) -> None:
    names = ["press-1", "press-2", "press-3", "till-1"]
    asked = [relabel(live, nodes=names[:: 1 if n % 2 else -1], set={"line": str(n)}) for n in range(8)]
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 8
    assert len({str(each) for each in (await labels(live)).values()}) == 1
