"""What happens with every report costs the same however many nodes show the same: counted in the database's own steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from typing import get_args

import pytest
from sqlalchemy import func, insert, select, text

from controller.fleet import isolation
from controller.judge import COUNTED
from controller.permissions import EVERYWHERE, Scope, at_sites
from controller.records import Standing
from controller.store import Transaction, counting, neighbours
from controller.store import incidents as rows
from controller.store import nodes as node_rows
from controller.store.schema import incident_nodes, nodes, sites
from controller.store.selecting import SortKey
from tests.parts.fleets import ACTOR, T0, FleetLab, finding

_INCIDENT = 1
_serial = itertools.count()


async def _crowd(lab: FleetLab, count: int) -> None:
    """So many more nodes have shown what the first incident is about."""
    names = [f"crowd-{next(_serial):06}" for _ in range(count)]

    def add(tx: Transaction) -> None:
        [key] = {key for _, key in rows.active(tx, _INCIDENT)}
        some = {"incident": _INCIDENT, "key": key, "since": T0, "active": True}
        tx.execute(insert(incident_nodes), [some | {"node": name} for name in names])
        if tx.dialect.name == "postgresql":
            tx.execute(text("ANALYZE incident_nodes"))

    await lab.store.run(add)


async def _steps(lab: FleetLab, node: str, *, findings: Sequence[object], now: float) -> int:
    """Steps of SQLite's machine that one report takes, in hundreds."""
    return await _counted(lab, lambda: lab.report(node, findings=findings, obey=False, reset=2, now=now))


async def _counted(lab: FleetLab, what: Callable[[], Awaitable[object]]) -> int:
    seen = 0

    def count() -> int:
        nonlocal seen
        seen += 1
        return 0

    def listen(tx: Transaction) -> None:
        tx.connection.driver_connection.set_progress_handler(count, 100)

    await lab.store.run(listen)
    await what()
    return seen


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_c17_a_report_costs_the_same_with_ten_times_as_many_nodes_in_its_incident(
    lab: FleetLab,
) -> None:
    await lab.site()
    for number in range(4):
        await lab.enrol(f"n-{number}")
        await lab.report(f"n-{number}", reference=b"x")
    await lab.report("n-0", findings=[finding("new")], obey=False, reset=2, now=T0 + 60)
    await _crowd(lab, 1500)
    costs = []
    for number in (1, 2):
        shown = await _steps(lab, f"n-{number}", findings=[finding("new")], now=T0 + 60 + number)
        gone = await _steps(lab, f"n-{number}", findings=[], now=T0 + 120 + number)
        costs.append(shown + gone)
        await _crowd(lab, 13_500)
    assert costs[1] < 1.5 * costs[0], costs
    assert (await lab.fleet.incident(_INCIDENT, scope=EVERYWHERE)).nodes_total == 3 + 1500 + 2 * 13_500


async def test_c17_others_are_counted_up_to_a_bound_and_the_newest_incident_is_found(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("n-0")
    await lab.report("n-0", findings=[finding("new")], now=T0 + 60)
    [key] = {key for _, key in await lab.store.run(lambda tx: rows.active(tx, _INCIDENT))}
    await _crowd(lab, COUNTED + 5)

    def look(tx: Transaction) -> tuple[dict[str, int], dict[str, int]]:
        others = rows.others(tx, [key], without="n-0", since=T0 - 1, limit=COUNTED)
        return others, rows.standing_for(tx, [key, "no"], reopened_since=T0)

    others, there = await lab.store.run(look)
    assert others == {key: COUNTED}
    assert there == {key: _INCIDENT}


async def _more_nodes(lab: FleetLab, count: int) -> Scope:
    """So many more nodes like the first, 25 to a site; few are anything but healthy. Returns every other site."""

    def add(tx: Transaction) -> Scope:
        first = dict(tx.execute(select(nodes).limit(1)).mappings().one())
        site = dict(tx.execute(select(sites).limit(1)).mappings().one())
        there = tx.execute(select(func.count()).select_from(nodes)).scalar_one()
        made = []
        for number in range(there, there + count):
            own = {name: f"{name}-{number:06}" for name in ("node", "ek_id", "ak_name")}
            since, last = T0 + number * 7919 % 9973, T0 + number * 6007 % 9973
            made.append(
                first
                | own
                | {"standing_since": since, "last_report_at": last, "certificate_sha256": None}
                | {"site": f"site-{number // 25:04}"}
                | {"standing": "healthy" if number % 20 else ("overdue", "untrusted")[number // 20 % 2]}
            )
        tx.execute(insert(sites), [site | {"site": name} for name in sorted({each["site"] for each in made})])
        tx.execute(insert(nodes), made)
        return at_sites(*tx.execute(select(sites.c.site)).scalars().all()[::2])

    return await lab.store.run(add)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_page_of_nodes_in_any_order_costs_the_same_with_ten_times_as_many_nodes(
    lab: FleetLab,
) -> None:
    await lab.site()
    await lab.enrol("first")
    asked = list(product(get_args(SortKey), (False, True), ("whole", "half"), (None, "healthy")))

    async def cost(half: Scope, sort: SortKey, descending: bool, part: str, standing: Standing | None) -> int:
        """Of the second page."""
        list_ = functools.partial(
            lab.fleet.list_nodes,
            scope=half if part == "half" else EVERYWHERE,
            standing=standing,
            sort=sort,
            descending=descending,
            limit=20,
        )
        page = await list_()
        assert len(page.items) == 20
        return await _counted(lab, lambda: list_(after=page.next))

    costs = []
    for more in (999, 9000):
        half = await _more_nodes(lab, more)
        costs.append([await cost(half, *each) for each in asked])
    grown = {
        each: (small, large)
        for each, small, large in zip(asked, *costs, strict=True)
        if large > 3 * small + 5
    }
    # By name, within some sites: found by their site and sorted, which is little where sites are few.
    assert grown.keys() <= {("node", False, "half", None), ("node", True, "half", None)}, grown


async def test_a_fence_follows_what_changed_in_the_same_transaction(lab: FleetLab) -> None:
    await lab.site()
    for name, address in (("a", "198.51.100.1"), ("b", "198.51.100.2")):
        await lab.enrol(name)
        await lab.report(name, addresses=[address])

    def change(tx: Transaction) -> list[list[str]]:
        first = [each.addresses for each in neighbours.of_site(tx, "factory")]
        row = node_rows.load(tx, "b")
        assert row is not None
        state = row.state.__class__(addresses=["198.51.100.9"])
        node_rows.write(
            tx, row, tier="affirming", standing="healthy", standing_since=T0, last_report_at=T0,
            last_drift_at=None, directive=(1, T0, False), state=state,
        )  # fmt: skip
        return [*first, *(each.addresses for each in neighbours.of_site(tx, "factory"))]

    assert await lab.store.run(change) == [
        ["198.51.100.1"], ["198.51.100.2"], ["198.51.100.1"], ["198.51.100.9"]
    ]  # fmt: skip
    later = await lab.store.run(lambda tx: neighbours.of_site(tx, "factory"))
    assert [each.addresses for each in later] == [["198.51.100.1"], ["198.51.100.9"]]


async def test_the_breakers_count_of_nodes_is_kept_and_sees_new_ones(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("a")
    counted = [await lab.store.run(lambda tx: counting.count(tx, T0)) for _ in range(2)]
    await lab.enrol("b")
    counted.append(await lab.store.run(lambda tx: counting.count(tx, T0 + 1)))

    def taken_back(tx: Transaction) -> None:
        counting.added(tx)
        counting.count(tx, T0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await lab.store.run(taken_back)
    counted.append(await lab.store.run(lambda tx: counting.count(tx, T0 + 1)))
    assert counted == [1, 1, 2, 2]


async def test_more_nodes_are_ordered_at_once_than_a_statement_holds(lab: FleetLab) -> None:
    """A driver takes 65,535 values at most, SQLite fewer: nothing is asked of a database in one list."""
    await lab.site()
    await lab.enrol("a")
    names = ["a", *(f"gone-{n}" for n in range(70_000))]
    await lab.store.run(lambda tx: node_rows.set_due(tx, names))
    made = await lab.store.run(lambda tx: isolation.directives(tx, lab.fleet._settings, ["a"], now=T0))
    assert set(made) == {"a"}
    await lab.fleet.isolate_node("a", actor=ACTOR, reason="test", now=T0)
