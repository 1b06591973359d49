"""One TLS listener with limits on strangers, around an aiohttp application.

asyncio's own server shows a connection to the application only after the handshake, so half-open handshakes
would be unbounded and uncounted. This accepts by itself: it counts every connection that has shown no client
certificate under its address (IPv6: its /64), bounds handshakes and connections, and cuts slow ones off. When all come
at once they wait, and each address has its turn (controller.admission): ten thousand handshakes begun together would all
outlast their clients' patience, be begun anew, and never end. And TLS begins when the client has said something, a few in
each turn of the event loop: however many speak at once, others are answered in between.

Relies on aiohttp's keep-alive timer, which runs from the first byte on and so bounds a slow head as well.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Coroutine

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.admission import Turns, WaitingRoom
from controller.config import Limits
from controller.faults import log_fault

log = logging.getLogger(__name__)


def _ours(record: logging.LogRecord) -> bool:
    """Whether a fault that aiohttp tells of may be logged: bytes that are no HTTP may not, for they may hold a token."""
    fault = record.exc_info[1] if record.exc_info else None
    return not isinstance(fault, HttpProcessingError)


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_ours)

BACKLOG = 4096
_HELLOS_A_TURN = 8
_LAST_MOMENT_S = 0.01
_FULL_PAUSE_S = 0.05
_SWEEP_S = 0.5
_PASSING_ERRORS = frozenset(
    {errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH}
)


class Listener:
    """A listening socket, its TLS context and its counters."""

    def __init__(self, app: web.Application, context: ssl.SSLContext, limits: Limits) -> None:
        """Serve `app` under `context`; call `start` to listen."""
        self._context = context
        self._limits = limits
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            logger=_http_log,
            keepalive_timeout=limits.request_s,
            auto_decompress=False,
            shutdown_timeout=2.0,
        )
        self._room: WaitingRoom[socket.socket] = WaitingRoom(
            places=limits.waiting, patience_s=limits.handshake_s
        )
        self._hellos = Turns(_HELLOS_A_TURN)
        self._strangers: Counter[str] = Counter()
        self._connections: dict[asyncio.BaseTransport, str | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self.refused = 0
        """Connections closed without a handshake: their address had too many, or they waited too long."""
        self.shaking = 0
        """Handshakes going on."""
        self.failed_handshakes = 0

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._socket is not None  # noqa: S101  (asked for before start: our bug)
        return int(self._socket.getsockname()[1])

    @property
    def connections(self) -> int:
        """Connections with a finished handshake."""
        return len(self._connections)

    async def start(self, host: str, port: int) -> None:
        """Listen on `host` (`::` and empty: every address of both families) and `port` (0: any)."""
        await self._runner.setup()
        self._socket = _bound(host, port)
        self._accepting = asyncio.create_task(self._accept(self._socket))
        self._spawn(self._sweep())

    async def run(self) -> None:
        """Wait until accepting ends, which it does only by a fault: that is raised. Cancelling this stops accepting."""
        assert self._accepting is not None  # noqa: S101  (run before start: our bug)
        await self._accepting

    async def stop(self) -> None:
        """Stop accepting, let requests end, close the rest."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._socket is not None:
            self._socket.close()
        self._room.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _PASSING_ERRORS:
                    continue
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("cannot accept: %s", error.strerror)
                    await asyncio.sleep(_FULL_PAUSE_S)
                    continue
                raise
            source = source_of(str(address[0]))
            if not self._room.add(source, connection, loop.time()):
                self.refused += 1
                connection.close()
            else:
                self._let_in()
            await asyncio.sleep(0)  # where thousands have come at once the accept itself never waits

    def _let_in(self) -> None:
        """Begin to shake hands with those who wait, so many at once, each address in turn."""
        now = asyncio.get_running_loop().time()
        while self.shaking < self._limits.handshakes:
            found = self._room.next(self._full, now)
            if found is None:
                return
            source, connection = found
            self._strangers[source] += 1
            self.shaking += 1
            self._spawn(self._serve(connection, source))

    def _full(self, source: str) -> bool:
        return (
            len(self._connections) >= self._limits.connections
            or self._strangers[source] >= self._limits.per_address
        )

    async def _serve(self, connection: socket.socket, source: str) -> None:
        """Shake hands, hand over to aiohttp, and count the connection until it shows a certificate or ends."""
        server = self._runner.server
        assert server is not None  # noqa: S101  (set up in start)
        transport: asyncio.BaseTransport | None = None
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._limits.handshake_s
            async with asyncio.timeout_at(deadline):
                await _spoken(connection)
                await self._hellos.come()
            transport, _ = await loop.connect_accepted_socket(
                server,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=max(deadline - loop.time(), _LAST_MOMENT_S),
                ssl_shutdown_timeout=2.0,
            )
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.failed_handshakes += 1
            connection.close()
        finally:
            self.shaking -= 1
            if transport is None:
                self._forget(source)
        if transport is not None:  # uvloop's is no asyncio.Transport
            tls = transport.get_extra_info("ssl_object")
            stranger = tls is None or tls.getpeercert(binary_form=True) is None
            if not stranger:
                self._forget(source)
            self._connections[transport] = source if stranger else None
        self._let_in()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._drop_closed()
            self.refused += self._room.expire(asyncio.get_running_loop().time())
            self._let_in()

    def _drop_closed(self) -> None:
        closed = [transport for transport in self._connections if transport.is_closing()]
        for transport in closed:
            source = self._connections.pop(transport)
            if source is not None:
                self._forget(source)

    def _forget(self, source: str) -> None:
        self._strangers[source] -= 1
        if self._strangers[source] <= 0:
            del self._strangers[source]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log_fault("a connection", fault)


async def _spoken(connection: socket.socket) -> None:
    """Return when there is something to read, and leave it there. Raises ConnectionError where the other side has gone."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(connection, _come_true, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connection)
    if not connection.recv(1, socket.MSG_PEEK):
        raise ConnectionAbortedError


def _come_true(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def source_of(address: str) -> str:
    """Return what counts as one stranger: an IPv4 address, or an IPv6 /64 (RFC 6177, clause 2: the usual site)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def _bound(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket; `::` takes IPv4 too where the machine has IPv6."""
    found = socket.getaddrinfo(host or "::", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def server_context(certificate: str, key: str, *, node_trust: str | None) -> ssl.SSLContext:
    """Return a TLS 1.3 server context; with `node_trust` (PEM) a client certificate is asked for and verified.

    No session tickets: a resumed session would not look at the client certificate's dates again.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    if node_trust is not None:
        context.load_verify_locations(cadata=node_trust)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context
