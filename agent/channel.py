"""HTTP/1.1 and WebSocket to one server over TLS: h11 and wsproto speak the protocols, asyncio carries the bytes.

A client for a process that stays for months: a tenth of the memory of a general one (docs/adr/0037). No redirects, no
proxies, no compression, no cookies, one request at a time.

Refuses: replies and messages over the caller's limit, what is not the protocol, and to wait for ever.
Relies on: the caller's TLS context, which says whom to believe; `addresses`, which says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
)
from wsproto.utilities import ProtocolError

DIAL_S = 10.0
"""For TCP, shared out among the addresses; and as long again for TLS."""
ANSWER_S = 30.0
"""For the next bytes of an answer, and for the other side to take ours."""
CLOSING_S = 2.0
HEARTBEAT_S = 75.0
"""Above the usual interval: a report and its answer prove the way as well, and a ping every 15 s was 1.6 MB a day."""
_LEAST_DIAL_S = 2.0
_READ_BYTES = 64 * 1024
_TOO_BIG, _NO_TEXT, _NORMAL = 1009, 1003, 1000
"""RFC 6455, clause 7.4.1."""


class Unanswered(OSError):
    """TLS was there, and the connection ended before there was an answer."""


class TurnedAway(OSError):
    """The server answered, and opened no WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"no session: HTTP {status}")
        self.status = status


class Closed(OSError):
    """The other side closed, or broke the protocol."""


class Route(NamedTuple):
    """Which server, and how it is reached."""

    host: str
    """By which name its certificate must be."""
    port: int
    tls: ssl.SSLContext
    addresses: Callable[[str], Awaitable[list[str]]]
    """Name -> IP addresses, tried in turn. Raises OSError."""


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    content: bytes


class Pipe:
    """One TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def opened(cls, route: Route) -> Pipe:
        """Connect and verify. Raises OSError, of which ssl.SSLCertVerificationError is one."""
        addresses = await route.addresses(route.host)
        failure = OSError(f"{route.host} has no address")
        for address in addresses:
            try:
                socket_ = await _connected(address, route.port, max(_LEAST_DIAL_S, DIAL_S / len(addresses)))
                return cls(
                    *await asyncio.open_connection(
                        sock=socket_,
                        limit=_READ_BYTES,
                        ssl=route.tls,
                        server_hostname=route.host,
                        ssl_handshake_timeout=DIAL_S,
                        ssl_shutdown_timeout=CLOSING_S,
                    )
                )
            except OSError as error:
                failure = error
        raise failure

    async def write(self, sent: bytes) -> None:
        """Send. Raises OSError, also where the other side takes nothing."""
        self._writer.write(sent)
        async with asyncio.timeout(ANSWER_S):
            await self._writer.drain()

    async def read(self, within_s: float = ANSWER_S) -> bytes:
        """Return what comes next, b"" at the end. Raises OSError; TimeoutError where nothing comes."""
        async with asyncio.timeout(within_s):
            return await self._reader.read(_READ_BYTES)

    def abort(self) -> None:
        """Be gone now; who reads or writes gets an OSError."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Be gone within some seconds."""
        self._writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(2 * CLOSING_S):
                await self._writer.wait_closed()


class WebSocket:
    """One open WebSocket; binary messages. `send` and `receive` from one task each."""

    def __init__(self, pipe: Pipe, protocol: WSConnection, max_bytes: int) -> None:
        """`max_bytes` is the most that a message may have."""
        self._pipe = pipe
        self._protocol = protocol
        self._max_bytes = max_bytes
        self._events: deque[Event] = deque()
        self._message = bytearray()
        self.subprotocol: str | None = None
        """What both sides speak, None where the server did not say."""

    async def opened(self, host: str, path: str, subprotocol: str) -> None:
        """Do the opening handshake (RFC 6455, clause 4.1). Raises TurnedAway, Unanswered, Closed, OSError."""
        asked = Request(host=host, target=path, subprotocols=[subprotocol])
        try:
            await self._pipe.write(self._protocol.send(asked))
            while not self._events:
                await self._more(await self._pipe.read())
        except (TimeoutError, Closed):
            raise
        except OSError as error:
            raise Unanswered(str(error)) from None
        first = self._events.popleft()
        if isinstance(first, RejectConnection):
            raise TurnedAway(first.status_code)
        if not isinstance(first, AcceptConnection):
            raise Closed(f"{type(first).__name__} in place of a handshake")
        self.subprotocol = first.subprotocol

    async def send(self, message: bytes) -> None:
        """Send one binary message. Raises OSError."""
        await self._say(BytesMessage(data=message))

    async def receive(self) -> bytes:
        """Return the next message; pings are answered and sent meanwhile. Raises Closed, OSError."""
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, BytesMessage):
                    self._message += event.data
                    if len(self._message) > self._max_bytes:
                        await self._end(_TOO_BIG, f"a message of more than {self._max_bytes} bytes")
                    if event.message_finished:
                        message, self._message = bytes(self._message), bytearray()
                        return message
                elif isinstance(event, Ping):
                    await self._say(event.response())
                elif isinstance(event, CloseConnection):
                    await self._end(
                        event.code, f"closed by the controller ({event.code} {event.reason or ''})"
                    )
                elif not isinstance(event, Pong):
                    await self._end(_NO_TEXT, f"{type(event).__name__} in place of a binary message")
            try:
                came = await self._pipe.read(HEARTBEAT_S)
            except TimeoutError:
                await self._say(Ping())
                came = await self._pipe.read(HEARTBEAT_S / 2)
            await self._more(came)

    async def close(self) -> None:
        """Say goodbye and wait a moment for the other side's (RFC 6455, clause 7.1.2)."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(CLOSING_S):
                await self._say(CloseConnection(code=_NORMAL))
                while True:
                    await self._more(await self._pipe.read())
                    if any(isinstance(event, CloseConnection) for event in self._events):
                        return
                    self._events.clear()

    async def _more(self, came: bytes) -> None:
        if not came:
            raise ConnectionResetError("the connection ended without a word")
        try:
            self._protocol.receive_data(came)
            self._events.extend(self._protocol.events())
        except ProtocolError as error:
            raise Closed(str(error)) from None

    async def _say(self, event: Event) -> None:
        try:
            said = self._protocol.send(event)
        except ProtocolError as error:  # it is closing
            raise Closed(str(error)) from None
        await self._pipe.write(said)

    async def _end(self, code: int, why: str) -> None:
        with contextlib.suppress(OSError):
            await self._say(CloseConnection(code=code))
        raise Closed(why)


class Client:
    """Asks one server; keeps a connection from one request to the next, until `end`."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._lock = asyncio.Lock()
        self._kept: tuple[Pipe, h11.Connection] | None = None
        self._used: Pipe | None = None
        """By the request that is under way."""
        self._ended = False
        shown = f"[{route.host}]" if ":" in route.host else route.host
        self._host = f"{shown}:{route.port}"

    @contextlib.asynccontextmanager
    async def websocket(self, path: str, *, subprotocol: str, max_bytes: int) -> AsyncIterator[WebSocket]:
        """Give a WebSocket over a connection of its own. Raises OSError, TurnedAway and Unanswered among them."""
        pipe = await Pipe.opened(self._route)
        try:
            socket_ = WebSocket(pipe, WSConnection(ConnectionType.CLIENT), max_bytes)
            await socket_.opened(self._host, path, subprotocol)
            try:
                yield socket_
            finally:
                await socket_.close()
        finally:
            await pipe.close()

    async def get(self, path: str, *, max_bytes: int) -> Reply:
        """Ask for a file. Raises OSError, also for more than `max_bytes`."""
        return await self._ask("GET", path, b"", (), max_bytes)

    async def post(self, path: str, content: bytes, *, kind: str, max_bytes: int) -> Reply:
        """Send `content` of a media type. Raises OSError, also for an answer of more than `max_bytes`."""
        headers = (("Content-Type", kind), ("Content-Length", str(len(content))))
        return await self._ask("POST", path, content, headers, max_bytes)

    async def end(self) -> None:
        """Ask nothing any more; a request that is under way fails."""
        self._ended = True
        if self._used is not None:
            self._used.abort()
        await self._let_go()

    async def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept[0].close()

    async def _ask(
        self, method: str, path: str, content: bytes, headers: tuple[tuple[str, str], ...], max_bytes: int
    ) -> Reply:
        asked = h11.Request(method=method, target=path, headers=[("Host", self._host), *headers])
        async with self._lock:
            if method != "GET":  # one that has run out by now would leave open whether it was done
                await self._let_go()
            kept, self._kept = self._kept, None
            if kept is not None:
                with contextlib.suppress(Unanswered):  # the server did not keep it for so long
                    return await self._exchange(*kept, asked, content, max_bytes)
            pipe = await Pipe.opened(self._route)
            return await self._exchange(pipe, h11.Connection(h11.CLIENT), asked, content, max_bytes)

    async def _exchange(
        self, pipe: Pipe, http: h11.Connection, asked: h11.Request, content: bytes, max_bytes: int
    ) -> Reply:
        """Do one request; keep the connection where both sides may."""
        self._used = pipe
        try:
            if self._ended:
                raise OSError("the session is over")
            reply = await _exchanged(pipe, http, asked, content, max_bytes)
            if http.our_state is h11.DONE and http.their_state is h11.DONE and not self._ended:
                http.start_next_cycle()
                self._kept = (pipe, http)
            return reply
        except h11.ProtocolError as error:
            raise Closed(f"{asked.target.decode()}: {error}") from None
        finally:
            self._used = None
            if self._kept is None:
                await pipe.close()


async def _exchanged(
    pipe: Pipe, http: h11.Connection, asked: h11.Request, content: bytes, max_bytes: int
) -> Reply:
    status, headers, taken = 0, dict[str, str](), bytearray()
    try:
        sent = (http.send(asked), http.send(h11.Data(data=content)), http.send(h11.EndOfMessage()))
        await pipe.write(b"".join(each or b"" for each in sent))
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                came = await pipe.read()
                if not came and not status:
                    raise Unanswered("the connection ended without a word")
                http.receive_data(came)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                taken += event.data
                if len(taken) > max_bytes:
                    raise Closed(f"{asked.target.decode()}: more than {max_bytes} bytes")
    except (TimeoutError, Closed, Unanswered):
        raise
    except OSError as error:
        raise Unanswered(str(error)) from None
    return Reply(status, headers, bytes(taken))


async def _connected(address: str, port: int, within_s: float) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        async with asyncio.timeout(within_s):
            await asyncio.get_running_loop().sock_connect(made, (address, port))
    except BaseException:
        made.close()
        raise
    return made
