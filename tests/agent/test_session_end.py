"""The end of a session and the end of the agent are two things, also where they come at the same moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from agent.channel import WebSocket
from agent.enrol import Identity
from agent.session import Session
from agent.store import Enrolled, Keys
from agent.uplink import Uplink
from contract.messages import Hello


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


async def test_a_stop_in_the_moment_in_which_a_session_ends_is_a_stop() -> None:
    socket = SlowSocket()
    uplink = SimpleNamespace(due=asyncio.Event(), redial=asyncio.Event(), silent_until=0.0)
    session = Session(
        cast(Uplink, uplink),
        cast(WebSocket, socket),
        Hello(node="press-1", nonce=bytes(32), interval_s=60.0),
        1,
        enrolled=cast(Enrolled, None),
        identity=cast(Identity, SimpleNamespace(renew_at=lambda: 2.0**40)),
        keys=cast(Keys, None),
    )
    session._nonce = None  # nothing to report
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0)
    uplink.redial.set()
    await asyncio.wait_for(socket.ending.wait(), 10)
    running.cancel()
    await asyncio.sleep(0)
    socket.let_go.set()
    await asyncio.wait({running}, timeout=10)
    assert running.cancelled()
