"""All reconnect at once (c05): hands are shaken with few at a time, each address has its turn, and everybody comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from controller.admission import Turns, WaitingRoom
from controller.app import store_url
from controller.config import Limits
from tests.controller.live import running
from tests.parts.simulator import new_fleet
from tests.simulate.admit import admit
from tests.simulate.swarm import Swarm
from tests.simulate.wire import Connect, Reconnect, Storm

NODES = 120
AT_ONCE = 4


async def test_c05_all_reconnect_at_once_and_few_handshakes_go_on_together(tmp_path: Path) -> None:
    limits = Limits(handshakes=AT_ONCE, per_address=AT_ONCE - 1)
    async with running(tmp_path, limits=limits) as live:
        fleet = new_fleet("factory", NODES)
        await asyncio.to_thread(
            admit, store_url(live.controller._config, tmp_path), live.services.keys, fleet
        )
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, live.controller.nodes.shaking)
                await asyncio.sleep(0)

        swarm = Swarm([live.node_url], live.ca, fleet, workers=2, limit_s=300.0)
        await asyncio.to_thread(swarm.__enter__)
        try:
            assert (await asyncio.to_thread(swarm.play, Connect())).nodes == NODES
            looking = asyncio.create_task(look())
            back = await asyncio.to_thread(swarm.play, Reconnect())
            looking.cancel()
            assert (await asyncio.to_thread(swarm.play, Storm())).codes == {}
        finally:
            await asyncio.to_thread(swarm.__exit__)
        assert back.nodes == NODES
        assert 1 < most <= AT_ONCE
        # Two addresses, three hands each: nobody was turned away for coming with many.
        assert live.controller.nodes.refused == 0


class _Waiting:
    def __init__(self, name: str) -> None:
        self.name, self.closed = name, False

    def close(self) -> None:
        self.closed = True


def _filled(places: int, **counts: int) -> WaitingRoom[_Waiting]:
    room: WaitingRoom[_Waiting] = WaitingRoom(places=places, patience_s=10.0)
    for source, count in counts.items():
        for number in range(count):
            room.add(source, _Waiting(f"{source}{number}"), 0.0)
    return room


def _out(room: WaitingRoom[_Waiting], now: float = 1.0) -> list[str]:
    found = []
    while (each := room.next(lambda _: False, now)) is not None:
        found.append(each[1].name)
    return found


def test_c05_a_flood_from_one_address_has_every_other_turn_and_half_the_places() -> None:
    room = _filled(100, flood=1000, site=3)
    assert len(room) == 53
    names = _out(room)
    assert names[:6] == ["flood49", "site2", "flood48", "site1", "flood47", "site0"]
    assert len(names) == 53 and len(room) == 0


def test_c05_who_has_waited_too_long_is_turned_away_and_costs_no_handshake() -> None:
    room = _filled(100, a=2)
    assert room.add("a", _Waiting("late"), 9.0)
    assert (room.expire(11.0), _out(room, 11.0)) == (2, ["late"])
    stale = _filled(100, a=2, b=1)
    assert (stale.expire(9.9), stale.expire(10.0), len(stale)) == (0, 3, 0)
    assert stale.next(lambda _: False, 10.0) is None


def test_c05_who_came_last_goes_first_for_who_waited_longest_is_about_to_give_up() -> None:
    """Ten come and one is served a second, for a minute; each waits for five. Served in order, all would be served too late."""
    room: WaitingRoom[_Waiting] = WaitingRoom(places=1000, patience_s=10.0)
    served_in_time = 0
    for second in range(60):
        for _ in range(10):
            room.add("a", _Waiting(str(second)), float(second))
        found = room.next(lambda _: False, float(second))
        assert found is not None
        served_in_time += second - int(found[1].name) < 5
        room.expire(float(second))
    assert served_in_time == 60


def test_a_source_that_is_full_is_passed_over() -> None:
    room = _filled(100, a=1, b=1)
    found = room.next(lambda source: source == "a", 1.0)
    assert found is not None and found[0] == "b"
    room.close()
    assert len(room) == 0 and room.next(lambda _: False, 1.0) is None


@pytest.mark.parametrize("places", [1, 2, 7])
def test_the_room_is_never_overfull(places: int) -> None:
    random.seed(places)
    room: WaitingRoom[_Waiting] = WaitingRoom(places=places, patience_s=10.0)
    for _ in range(200):
        source = random.choice("abcdef")
        before = len(room)
        added = room.add(source, _Waiting(source), 0.0)
        assert len(room) == before + added <= places
        if random.random() < 0.3:
            room.next(lambda _: False, 0.0)


async def test_c08_only_so_many_pass_in_one_turn_and_all_in_the_order_in_which_they_came() -> None:
    turns, turn, passed = Turns(3), 0, []

    async def one(number: int) -> None:
        await turns.come()
        passed.append((number, turn))

    ones = [asyncio.create_task(one(number)) for number in range(20)]
    for turn in range(1, 40):
        await asyncio.sleep(0)
        if turn == 2:
            ones[10].cancel()
    assert [number for number, _ in passed] == [number for number in range(20) if number != 10]
    in_turn = Counter(turn for _, turn in passed)
    assert max(in_turn.values()) == 3
    assert len(in_turn) <= 8, "no turn is left out while anybody waits"
    late = asyncio.create_task(one(20))
    await asyncio.sleep(0)
    assert late.done(), "nobody waits where nobody is before"
