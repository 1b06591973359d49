"""The swarm against a real controller, small: what it plays is what the controller sees."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controller.app import store_url
from controller.permissions import EVERYWHERE
from tests.controller.live import Live, running
from tests.parts.simulator import new_fleet
from tests.simulate.__main__ import parsed
from tests.simulate.admit import admit
from tests.simulate.swarm import Broken, Swarm
from tests.simulate.wire import (
    Connect,
    Lie,
    Play,
    Reconnect,
    Report,
    Result,
    Skew,
    Slow,
    Storm,
    Watch,
    Wave,
    checked,
)

NODES = 24


@pytest_asyncio.fixture
async def at_work(tmp_path: Path) -> AsyncIterator[tuple[Live, Swarm]]:
    async with running(tmp_path) as live:
        fleet = new_fleet("factory", NODES)
        url = store_url(live.controller._config, tmp_path)
        await asyncio.to_thread(admit, url, live.services.keys, fleet)
        swarm = Swarm([live.node_url], live.ca, fleet, workers=2, limit_s=120.0)
        await asyncio.to_thread(swarm.__enter__)
        try:
            yield live, swarm
        finally:
            await asyncio.to_thread(swarm.__exit__)


async def played(swarm: Swarm, play: Play) -> Result:
    """Play while this loop serves the controller."""
    return await asyncio.to_thread(swarm.play, play)


async def test_reports_storms_and_reconnections_are_answered(at_work: tuple[Live, Swarm]) -> None:
    live, swarm = at_work
    first = await played(swarm, Connect())
    assert (first.nodes, first.tiers, len(first.latencies_ms)) == (NODES, {"affirming": NODES}, NODES)
    assert len(live.services.sessions) == NODES
    storm = await played(swarm, Storm())
    assert (storm.nodes, storm.codes) == (NODES, {})
    calm = await played(swarm, Report(interval_s=0.5, seconds=1.5, nodes=5))
    assert calm.nodes == 10 and len(calm.latencies_ms) >= 10
    back = await played(swarm, Reconnect())
    assert back.nodes == NODES <= back.dials
    assert (await played(swarm, Storm())).codes == {}
    crawling = await played(swarm, Slow(share=0.2, bytes_per_s=8000))
    # A handshake and a report are some 5,000 bytes.
    assert crawling.nodes == 4 and crawling.seconds > 0.3
    askew = await played(swarm, Skew(share=0.5, seconds=7200.0))
    assert (askew.nodes, askew.tiers) == (12, {"affirming": NODES})


async def test_waves_are_one_incident_and_lies_are_refused_for_what_they_are(
    at_work: tuple[Live, Swarm],
) -> None:
    live, swarm = at_work
    await played(swarm, Connect())
    refused: Counter[str] = Counter()
    for kind, code in (
        ("quote", "quote.signature"),
        ("replay", "quote."),
        ("pcr", "quote.pcr"),
        ("frame", ""),
    ):
        await played(swarm, Lie(share=0.05, kind=kind))
        events = [e for e in await live.events() if e.kind == "evidence.rejected"]
        codes = Counter(e.detail["code"] for e in events) - refused
        assert codes and all(each.startswith(code) for each in codes), (kind, codes)
        refused += codes
    wave = await played(swarm, Wave(share=0.5))
    assert wave.tiers.get("warning", 0) + wave.tiers.get("contraindicated", 0) >= 10
    incidents = (await live.fleet.list_incidents(scope=EVERYWHERE)).items
    assert max(each.nodes_total for each in incidents) >= 10


async def test_orders_are_timed_where_they_arrive(at_work: tuple[Live, Swarm]) -> None:
    live, swarm = at_work
    await played(swarm, Connect())
    watching = await asyncio.to_thread(swarm.begin, Watch(sites=["factory"], seconds=60.0))
    begun = time.monotonic()
    status, _ = await live.call("POST", "/api/v1/sites/factory/isolate", {"reason": "test"})
    assert status == 200
    seen = await asyncio.to_thread(watching.result)
    assert seen.nodes == NODES and min(seen.moments) > begun


def test_nothing_but_loopback_is_spoken_to() -> None:
    for url in ("https://127.0.0.1:1", "https://[::1]:2", "https://localhost:3"):
        assert checked(url) == url
    for url in ("https://192.0.2.1:1", "https://example.net:1", "https://0.0.0.0:1"):
        with pytest.raises(ValueError):
            checked(url)


def test_a_worker_that_cannot_begin_is_said() -> None:
    with (
        pytest.raises(Broken),
        Swarm(["https://127.0.0.1:1"], "no certificate", new_fleet("x", 1), workers=1) as swarm,
    ):
        swarm.play(Storm())


def test_words_of_the_command_line() -> None:
    assert parsed("lie:replay:0.1") == Lie(0.1, "replay")
    assert parsed("wave:0.1:own") == Wave(0.1, same=False)
    for text in ("lie:big:0.1", "storm:1", "no"):
        with pytest.raises(ValueError):
            parsed(text)
