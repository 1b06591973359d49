"""Nodes that are isolated together do not all report in the same moment; the cut itself waits for nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import aiohttp

from agent.enrol import Identity
from agent.session import MIN_GAP_S, Session
from agent.store import Enrolled, Keys
from agent.uplink import SPREAD_S, Uplink
from contract.messages import Hello
from tests.agent.rig import Rig, baseline, in_own_namespace, nft


def test_c05_only_an_order_that_isolates_spreads_reports(tmp_path: Path) -> None:
    def scene() -> list[str]:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        heard: list[str] = []
        rig.loop.on_isolated = lambda: heard.append("isolated")
        wanted = rig.kit.wanted("factory", 1)
        for number, posture in (
            (2, "normal"),
            (3, "isolated"),
            (4, "isolated"),
            (5, "normal"),
            (6, "isolated"),
        ):
            rig.direct(rig.signed(number, posture=posture, wanted=wanted))  # type: ignore[arg-type]
            cut = "table inet ringfence_cut" in nft("list", "tables")
            heard.append(f"{number} {'cut' if cut else 'open'}")
        rig.stop()
        return heard

    assert in_own_namespace(scene) == ["2 open", "isolated", "3 cut", "4 cut", "5 open", "isolated", "6 cut"]


async def test_c05_the_report_of_an_isolated_node_waits_a_moment_and_never_past_its_interval() -> None:
    uplink = SimpleNamespace(due=asyncio.Event(), redial=asyncio.Event(), silent_until=0.0)
    session = _session(uplink)
    session._next = now = time.monotonic() + 100.0
    assert session._due_at() == now
    uplink.due.set()
    assert session._due_at() == session._sent_at + MIN_GAP_S, "what is to be said is said at once"
    for _ in range(100):
        Uplink._spread(cast(Uplink, uplink))
        assert 0.0 <= uplink.silent_until - time.monotonic() + 1.0 <= SPREAD_S + 1.0
    uplink.silent_until = now - 50.0
    assert session._due_at() == now - 50.0
    uplink.silent_until = now + 50.0
    assert session._due_at() == now


def _session(uplink: SimpleNamespace) -> Session:
    return Session(
        cast(Uplink, uplink),
        cast(aiohttp.ClientWebSocketResponse, None),
        Hello(node="press-1", nonce=bytes(32), interval_s=60.0),
        1,
        enrolled=cast(Enrolled, None),
        identity=cast(Identity, None),
        keys=cast(Keys, None),
    )
