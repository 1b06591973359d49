"""One node of the swarm: a session whose frames are always read, so that orders are seen whenever they come."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time

import aiohttp

from contract import messages, wire
from tests.parts.simulator import Identity, Node, client_context

BACKOFF_S = (0.25, 30.0)
DIAL_S, ANSWER_S = 10.0, 30.0
"""As the agent has them (agent.uplink, agent.dial)."""
AWAY = (ConnectionError, aiohttp.ClientError, TimeoutError, OSError)


class Turned(ConnectionError):
    """The controller refused, or the connection broke; the code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class LiveNode(Node):
    """Reports when told to, reads always. Obeys by saying so in its next report."""

    def __init__(self, identity: Identity, event_log: bytes, pcrs: dict[int, bytes], ca: str) -> None:
        super().__init__(identity, event_log, pcrs)
        self.skew_s = 0.0
        self.ordered_at = 0.0
        """When the last order came (CLOCK_MONOTONIC)."""
        self.ordered = asyncio.Event()
        self.sent = b""
        """The last report that was answered, as it went out: what a replay is made of."""
        self._tls: ssl.SSLContext = client_context(ca, identity)
        self._answer: asyncio.Future[messages.Answer] | None = None
        self._more = False
        self._reader: asyncio.Task[None] | None = None

    async def open(self, http: aiohttp.ClientSession, url: str) -> float:
        """Open a session and return the milliseconds to Hello. Raises what AWAY holds."""
        began = time.perf_counter()
        await self.leave()
        socket = await http.ws_connect(
            url + messages.SESSION_PATH,
            ssl=self._tls,
            protocols=(messages.PROTOCOL,),
            max_msg_size=messages.MAX_FRAME_BYTES,
            compress=0,
        )
        self._socket = socket
        async with asyncio.timeout(ANSWER_S):
            await self._next(messages.Hello)
        self._reader = asyncio.create_task(self._read(socket))
        return (time.perf_counter() - began) * 1000

    async def come_back(self, http: aiohttp.ClientSession, url: str) -> tuple[int, float]:
        """Dial until a session is open, as an agent does whose session broke; return the dials and the last one's ms."""
        dials, wait_s = 0, BACKOFF_S[0]
        while True:
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, BACKOFF_S[1])
            dials += 1
            with contextlib.suppress(*AWAY):
                return dials, await self.open(http, url)

    def cut(self) -> None:
        """The wire breaks."""
        there = None if self._socket is None else self._socket._response.connection
        if there is not None and there.transport is not None:
            there.transport.abort()

    async def leave(self) -> None:
        """Stop reading and close."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        with contextlib.suppress(*AWAY):
            await self.close()
        self._socket = None

    async def tell(self, frame: bytes | None = None) -> float:
        """Send one report (or these bytes in its place) and return the milliseconds to its answer. Raises Turned, TimeoutError."""
        if self._reader is None or self._reader.done():
            raise Turned("not-connected")
        socket, answer = self._socket, asyncio.get_running_loop().create_future()
        assert socket is not None
        self._answer = answer
        frame = frame or self._frame()
        before = time.perf_counter()
        try:
            await socket.send_bytes(frame)
            async with asyncio.timeout(ANSWER_S):
                await answer
        finally:
            self._answer = None
        self.sent = frame
        return (time.perf_counter() - before) * 1000

    def told(self, **changes: object) -> messages.Report:
        """Return the next report, by this node's own clock."""
        return self.report(at=time.time() + self.skew_s, **changes)

    def _frame(self) -> bytes:
        return wire.encode(self.told())

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                message = await self._next(messages.Message)
                if isinstance(message, messages.Answer):
                    self._more = message.number == 0
                    if not self._more and self._answer is not None and not self._answer.done():
                        self._answer.set_result(message)
                elif isinstance(message, messages.Challenge) and self._more:
                    self._more = False
                    await socket.send_bytes(self._frame())
                elif isinstance(message, messages.Order):
                    self.ordered_at = time.monotonic()
                    self.ordered.set()
        except (*AWAY, asyncio.CancelledError) as error:
            words = str(error).split()
            code = words[1] if len(words) > 1 else "cancelled"
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(Turned(code))
            if isinstance(error, asyncio.CancelledError):
                raise
