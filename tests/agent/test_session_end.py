"""The end of a session and the end of the agent are two things, also where they come at the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from agent.channel import WebSocket
from agent.enrol import Identity
from agent.ima import UNMEASURED
from agent.report import Prepared
from agent.session import Session
from agent.store import Enrolled, Keys
from agent.uplink import Uplink
from contract.messages import Answer, Hello


class SlowSocket:
    """Of a kernel that takes its time to let go of a read."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        self.let_go = asyncio.Event()

    async def receive(self) -> bytes:
        """Nothing ever comes."""
        try:
            return await asyncio.Future()
        finally:
            self.ending.set()
            await self.let_go.wait()


def session_of(uplink: SimpleNamespace, socket: object = None) -> Session:
    """A session over this uplink that has nothing to report."""
    session = Session(
        cast(Uplink, uplink),
        cast(WebSocket, socket),
        Hello(node="press-1", nonce=bytes(32), interval_s=60.0),
        1,
        enrolled=cast(Enrolled, None),
        identity=cast(Identity, SimpleNamespace(renew_at=lambda: 2.0**40)),
        keys=cast(Keys, None),
    )
    session._nonce = None
    return session


async def test_a_stop_in_the_moment_in_which_a_session_ends_is_a_stop() -> None:
    socket = SlowSocket()
    uplink = SimpleNamespace(due=asyncio.Event(), redial=asyncio.Event(), silent_until=0.0)
    session = session_of(uplink, socket)
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0)
    uplink.redial.set()
    await asyncio.wait_for(socket.ending.wait(), 10)
    running.cancel()
    await asyncio.sleep(0)
    socket.let_go.set()
    await asyncio.wait({running}, timeout=10)
    assert running.cancelled()


@pytest.mark.parametrize(
    ("carried", "acked", "due"),
    [(3, 0, False), (3, 9, True), (0, 0, True)],
    ids=["refused", "some are left", "came meanwhile"],
)
async def test_events_of_a_refused_report_wait_for_the_next_one(carried: int, acked: int, due: bool) -> None:
    """Whoever reported anew at once would do so several times a second, for as long as the controller refuses."""

    async def ask(work: Callable[[], object]) -> object:
        return work()

    waiting = SimpleNamespace(peek=lambda count, size: ["an event"])
    uplink = SimpleNamespace(
        due=asyncio.Event(),
        redial=asyncio.Event(),
        silent_until=0.0,
        ask=ask,
        packages=SimpleNamespace(reported=lambda packages: None),
        reporter=SimpleNamespace(arrived=lambda sent: None),
        loop=SimpleNamespace(spool=waiting, answered=lambda *_, **__: None),
    )
    session = session_of(uplink)
    session._sent = Prepared(b"", 7, None, 0, b"", b"", UNMEASURED, events=carried)
    await session._answer(Answer(number=7, nonce=bytes(32), tier="none", events_acked=acked))
    assert uplink.due.is_set() == due
    assert session._next > time.monotonic() + 50
