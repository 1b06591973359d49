"""Inventories in the store: what is so, what was so and until when, who has a package. On SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from contract.errors import Rejected
from contract.inventory import Fact, Facts, Kind
from controller.fleet import inventories
from controller.inventory_records import FactView
from controller.permissions import EVERYWHERE, NOWHERE, at_sites
from tests.parts.fleets import T0, FleetLab, digest

HOUR, DAY = 3600.0, 86400.0
KERNEL = Fact("system", "kernel", "6.1")


def package(name: str, version: str) -> Fact:
    return Fact("package", name, version)


async def take(lab: FleetLab, node: str, *facts: Fact, now: float = T0, left_out: int = 0) -> bool:
    said = Facts(facts=list(facts), left_out=left_out)
    return await lab.fleet.take_inventory(node, digest(repr(said)), said, now=now)


async def said(
    lab: FleetLab, node: str, *, at: float | None = None, kind: Kind | None = None
) -> set[tuple[str, str]]:
    view = await lab.fleet.inventory(node, at=at, kind=kind, limit=5000)
    return {(fact.name, fact.value) for fact in view.items}


async def history(lab: FleetLab, node: str, *, limit: int = 500) -> list[FactView]:
    found: list[FactView] = []
    after = None
    while True:
        page = await lab.fleet.inventory_history(node, after=after, limit=limit)
        found += page.items
        after = page.next
        if after is None:
            return found


@pytest.fixture
async def fleet(lab: FleetLab) -> FleetLab:
    await lab.site()
    await lab.enrol("press-1")
    await lab.enrol("press-2")
    return lab


async def test_what_changed_is_known_with_the_time_it_was_so(fleet: FleetLab) -> None:
    empty = await fleet.fleet.inventory("press-1")
    assert (empty.sha256, empty.since, empty.items) == ("", None, [])
    await take(fleet, "press-1", KERNEL, package("bash", "1"), package("old", "1"), left_out=3)
    await take(fleet, "press-1", KERNEL, package("bash", "2"), now=T0 + HOUR)
    view = await fleet.fleet.inventory("press-1")
    assert (view.since, view.left_out) == (T0 + HOUR, 0)
    assert await said(fleet, "press-1") == {("kernel", "6.1"), ("bash", "2")}
    assert await said(fleet, "press-1", kind="package") == {("bash", "2")}
    assert await said(fleet, "press-1", at=T0 + 60) == {("kernel", "6.1"), ("bash", "1"), ("old", "1")}
    assert await said(fleet, "press-1", at=T0 + HOUR) == {("kernel", "6.1"), ("bash", "2")}
    assert await said(fleet, "press-1", at=T0 - 1) == set()
    for limit in (1, 2, 500):
        rows = [
            (f.name, f.value, f.seen_from, f.seen_until) for f in await history(fleet, "press-1", limit=limit)
        ]
        assert set(rows[:3]) == {
            ("bash", "2", T0 + HOUR, None),
            ("bash", "1", T0, T0 + HOUR),
            ("old", "1", T0, T0 + HOUR),
        }
        assert rows[3:] == [("kernel", "6.1", T0, None)]
    assert await said(fleet, "press-2") == set()


async def test_the_same_inventory_changes_nothing_and_one_too_soon_waits(fleet: FleetLab) -> None:
    assert await take(fleet, "press-1", KERNEL)
    named = digest(repr(Facts(facts=[KERNEL])))
    assert not await fleet.fleet.inventory_wanted("press-1", named)
    assert await fleet.fleet.inventory_wanted("press-1", digest("other"))
    assert await fleet.fleet.inventory_wanted("press-2", named)
    assert await take(fleet, "press-1", KERNEL, now=T0 + HOUR)
    assert (await fleet.fleet.inventory("press-1")).since == T0
    assert await take(fleet, "press-1", package("a", "1"), now=T0 + HOUR)
    assert not await take(fleet, "press-1", package("a", "2"), now=T0 + HOUR + 1)
    assert await said(fleet, "press-1") == {("a", "1")}


async def test_what_comes_back_is_so_from_then_on(fleet: FleetLab) -> None:
    for at, version in enumerate(["1", "2", "1"]):
        await take(fleet, "press-1", package("bash", version), now=T0 + at * HOUR)
    rows = [(f.value, f.seen_from, f.seen_until) for f in await history(fleet, "press-1")]
    assert rows == [("1", T0 + 2 * HOUR, None), ("2", T0 + HOUR, T0 + 2 * HOUR), ("1", T0, T0 + HOUR)]


async def test_c09_who_has_a_package_within_the_scope_page_by_page(fleet: FleetLab) -> None:
    await fleet.site("lyon")
    for n in range(5):
        await fleet.enrol(f"saw-{n}", site="lyon")
        await take(
            fleet, f"saw-{n}", package("bash", str(n % 2)), package("kernel", "1"), package("kernel", "2")
        )
    await take(fleet, "press-1", package("bash", "1"))
    await take(fleet, "press-2", package("bash", "1"))
    await take(fleet, "press-2", package("dash", "1"), now=T0 + HOUR)

    async def holders(name: str, version: str | None = None, **more: object) -> list[tuple[str, str, str]]:
        found, after = [], None
        while True:
            page = await fleet.fleet.package_holders(
                name,
                version=version,
                after=after,
                limit=2,
                **{"scope": EVERYWHERE, **more},  # type: ignore[arg-type]
            )
            found += [(one.node, one.site, one.version) for one in page.items]
            after = page.next
            if after is None:
                return found

    assert [node for node, _, _ in await holders("bash")] == ["press-1", *(f"saw-{n}" for n in range(5))]
    assert await holders("bash", "0") == [(f"saw-{n}", "lyon", "0") for n in (0, 2, 4)]
    assert len(await holders("kernel")) == 10
    assert await holders("bash", scope=at_sites("factory")) == [("press-1", "factory", "1")]
    assert await holders("bash", scope=NOWHERE) == []
    assert await holders("BASH") == await holders("bash%") == []
    for cursor in ("saw-1", "saw-1:x", ":", "saw-1:-1"):
        with pytest.raises(Rejected, match=r"cursor\.invalid"):
            await fleet.fleet.package_holders("bash", version=None, scope=EVERYWHERE, after=cursor)
    for cursor in ("", "1", "nan:x", "0x1p0:", "x:1"):
        with pytest.raises(Rejected, match=r"cursor\.invalid"):
            await fleet.fleet.inventory_history("press-1", after=cursor)


async def test_what_ended_long_ago_is_forgotten_and_what_is_so_never(fleet: FleetLab) -> None:
    await take(fleet, "press-1", package("a", "1"), KERNEL)
    await take(fleet, "press-1", package("a", "2"), KERNEL, now=T0 + DAY)
    await take(fleet, "press-2", package("a", "1"), now=T0)
    assert await fleet.fleet.prune_inventories(now=T0 + 365 * DAY) == 0
    assert await fleet.fleet.prune_inventories(now=T0 + 367 * DAY) == 1
    assert {f.value for f in await history(fleet, "press-1")} == {"2", "6.1"}
    assert await said(fleet, "press-2") == {("a", "1")}
    await take(fleet, "press-1", package("a", "3"), KERNEL, now=T0 + 400 * DAY)
    await take(fleet, "press-1", package("a", "2"), KERNEL, now=T0 + 401 * DAY)
    assert await said(fleet, "press-1") == {("a", "2"), ("kernel", "6.1")}


async def test_c06_a_node_that_says_another_thing_each_time_fills_nothing(
    fleet: FleetLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "MAX_ENDED", 10)
    for turn in range(6):
        facts = [package(f"p{n}", str(turn)) for n in range(4)]
        await take(fleet, "press-1", *facts, now=T0 + turn * HOUR)
    ended = [fact for fact in await history(fleet, "press-1") if fact.seen_until is not None]
    assert len(ended) == 10
    assert min(fact.seen_until or 0 for fact in ended) == T0 + 3 * HOUR
    assert await said(fleet, "press-1") == {(f"p{n}", "5") for n in range(4)}


async def test_a_controller_that_dies_half_way_goes_on_where_it_was(
    fleet: FleetLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "STEP", 2)
    many = [package(f"p{n}", "1") for n in range(9)]
    save = inventories._save
    monkeypatch.setattr(inventories, "_save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await take(fleet, "press-1", *many)
    monkeypatch.setattr(inventories, "_save", save)
    assert await fleet.fleet.inventory_wanted("press-1", digest(repr(Facts(facts=many))))
    await take(fleet, "press-1", *many, now=T0 + 1)
    assert len(await history(fleet, "press-1")) == 9


async def test_c15_the_same_from_two_sessions_at_once_is_there_once(
    fleet: FleetLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "STEP", 1)
    many = [package(f"p{n}", "1") for n in range(6)]
    await asyncio.gather(*(take(fleet, "press-1", *many) for _ in range(3)))
    assert len(await history(fleet, "press-1")) == 6
    assert await said(fleet, "press-1") == {(fact.name, "1") for fact in many}


async def test_a_whole_machine_is_taken_in_at_once(fleet: FleetLab) -> None:
    many = [package(f"package-{n}", f"{n}.0") for n in range(3000)]
    await take(fleet, "press-1", *many)
    await take(fleet, "press-2", *many)
    await take(fleet, "press-1", *many[1:], package("package-0", "new"), now=T0 + HOUR)
    assert len(await history(fleet, "press-1")) == 3001
    assert await said(fleet, "press-1", at=T0) == {(fact.name, fact.value) for fact in many}
