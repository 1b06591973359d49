"""The agent's HTTP and WebSocket client against servers that keep to the protocols, that do not, and that go away."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import WSCloseCode, WSMsgType, web

from agent import channel
from agent.channel import Client, Closed, Route, TurnedAway, Unanswered, WebSocket
from tests.agent.test_dial import Authority

LIMIT = 200_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Served:
    """A TLS server of the test's, and a client that believes it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        self.tls = ssl.create_default_context(cafile=str(self.authority.ca))
        self.port = 0

    def client(self, *addresses: str) -> Client:
        async def known(host: str) -> list[str]:
            return list(addresses) or [host]

        return Client(Route("127.0.0.1", self.port, self.tls, known))

    @asynccontextmanager
    async def web(self, handler: Handler) -> AsyncIterator[None]:
        """Serve HTTP and WebSocket by aiohttp."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.authority.context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    @asynccontextmanager
    async def raw(self, said: bytes) -> AsyncIterator[None]:
        """Serve these bytes, whatever is asked, and the end."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=self.authority.context)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


@asynccontextmanager
async def opened(client: Client) -> AsyncIterator[WebSocket]:
    async with client.websocket("/v1/session", subprotocol="ringfence.t", max_bytes=LIMIT) as socket_:
        yield socket_


def speaking(talk: Callable[[web.WebSocketResponse], Awaitable[None]]) -> Handler:
    """A WebSocket server that talks so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        socket_ = web.WebSocketResponse(protocols=("ringfence.t",), max_msg_size=0, autoping=False)
        await socket_.prepare(request)
        await talk(socket_)
        await socket_.close()
        return socket_

    return handle


# ---- WebSocket


async def test_messages_of_every_length_of_header_go_both_ways_whole(served: Served) -> None:
    async def echo(socket_: web.WebSocketResponse) -> None:
        async for message in socket_:
            assert message.type is WSMsgType.BINARY
            await socket_.send_bytes(message.data)

    async with served.web(speaking(echo)), opened(served.client()) as socket_:
        assert socket_.subprotocol == "ringfence.t"
        for size in (0, 1, 125, 126, 65_535, 65_536, LIMIT):
            message = bytes(each % 251 for each in range(size))
            await socket_.send(message)
            assert await socket_.receive() == message


async def test_a_message_over_the_limit_ends_the_session_and_says_why(served: Served) -> None:
    codes: list[int | None] = []

    async def flood(socket_: web.WebSocketResponse) -> None:
        await socket_.send_bytes(bytes(LIMIT + 1))
        await socket_.receive()
        codes.append(socket_.close_code)

    async with served.web(speaking(flood)), opened(served.client()) as socket_:
        with pytest.raises(Closed, match="more than 200000 bytes"):
            await socket_.receive()
    assert codes == [WSCloseCode.MESSAGE_TOO_BIG]


async def test_the_limit_counts_what_fragments_add_up_to(served: Served) -> None:
    async def flood(socket_: web.WebSocketResponse) -> None:
        transport = socket_._req.transport  # type: ignore[union-attr]
        assert transport is not None
        head = struct.pack(">BBQ", 0x02, 127, LIMIT // 2)
        transport.write(head + bytes(LIMIT // 2))
        for _ in range(3):
            transport.write(b"\x00" + head[1:] + bytes(LIMIT // 2))
        await socket_.receive()

    async with served.web(speaking(flood)), opened(served.client()) as socket_:
        with pytest.raises(Closed, match="more than 200000 bytes"):
            await socket_.receive()


async def test_nothing_but_binary_messages_is_taken(served: Served) -> None:
    async def text(socket_: web.WebSocketResponse) -> None:
        await socket_.send_str("hello")
        await socket_.receive()

    async with served.web(speaking(text)), opened(served.client()) as socket_:
        with pytest.raises(Closed, match="TextMessage"):
            await socket_.receive()


async def test_a_ping_is_answered_and_a_close_is_an_error_with_its_code(served: Served) -> None:
    answers: list[bytes] = []

    async def ping(socket_: web.WebSocketResponse) -> None:
        await socket_.ping(b"there?")
        answers.append((await socket_.receive()).data)
        await socket_.close(code=4002)

    async with served.web(speaking(ping)), opened(served.client()) as socket_:
        with pytest.raises(Closed, match="4002"):
            await socket_.receive()
    assert answers == [b"there?"]


async def test_a_silent_server_is_pinged_and_left_when_it_says_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HEARTBEAT_S", 0.4)
    kinds: list[WSMsgType] = []

    async def silent(socket_: web.WebSocketResponse) -> None:
        first = await socket_.receive()
        kinds.append(first.type)
        await socket_.pong(first.data)  # the first is answered, the second is not
        kinds.append((await socket_.receive()).type)
        await asyncio.sleep(1.0)

    async with served.web(speaking(silent)), opened(served.client()) as socket_:
        with pytest.raises(TimeoutError):
            await socket_.receive()
    assert kinds == [WSMsgType.PING, WSMsgType.PING]


async def test_an_end_without_a_close_is_an_error(served: Served) -> None:
    async def cut(socket_: web.WebSocketResponse) -> None:
        transport = socket_._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()

    async with served.web(speaking(cut)), opened(served.client()) as socket_:
        with pytest.raises(OSError):
            await socket_.receive()


async def test_a_server_that_refuses_says_by_which_status(served: Served) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, body=b"no")

    async with served.web(refuse):
        with pytest.raises(TurnedAway) as caught:
            async with opened(served.client()):
                pass
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Unanswered),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", Closed),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            Closed,
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Closed),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000, Closed),
    ],
    ids=["nothing", "no accept", "another's accept", "another protocol", "endless headers"],
)
async def test_what_is_no_handshake_opens_nothing(served: Served, said: bytes, error: type[OSError]) -> None:
    async with served.raw(said):
        with pytest.raises(error):
            async with opened(served.client()):
                pass


# ---- HTTP


async def test_one_connection_carries_all_requests_and_another_takes_its_place(served: Served) -> None:
    ports: list[int] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        content = await request.read()
        reply = web.Response(body=request.path.encode() + b" " + content)
        if request.path == "/last":
            reply.force_close()
        return reply

    async with served.web(handle):
        client = served.client()
        for path in ("/a", "/b", "/last", "/c"):
            assert (await client.get(path, max_bytes=100)).content == path.encode() + b" "
        assert (
            await client.post("/d", b"x" * 50, kind="text/plain", max_bytes=100)
        ).content == b"/d " + b"x" * 50
        await client.end()
        with pytest.raises(OSError, match="over"):
            await client.get("/e", max_bytes=100)
    assert ports[0] == ports[1] == ports[2]
    assert len(set(ports)) == 3


async def test_a_connection_that_the_server_did_not_keep_is_made_anew(served: Served) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=served.authority.context)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        client = served.client()
        for _ in range(3):
            assert (await client.get("/", max_bytes=10)).content == b"x"
        await client.end()


async def test_the_end_of_a_session_ends_a_request_that_is_under_way(served: Served) -> None:
    asked = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async with served.web(never):
        client = served.client()
        request = asyncio.create_task(client.get("/", max_bytes=10))
        await asyncio.wait_for(asked.wait(), 60)
        await client.end()
        with pytest.raises(OSError):
            await asyncio.wait_for(request, 20)


async def test_a_chunked_reply_is_whole_and_a_short_one_is_none(served: Served) -> None:
    async with served.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    ):
        assert (await served.client().get("/", max_bytes=5)).content == b"abcde"
        with pytest.raises(Closed, match="more than 4"):
            await served.client().get("/", max_bytes=4)
    async with served.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"):
        with pytest.raises(OSError):
            await served.client().get("/", max_bytes=100)


async def test_addresses_are_tried_in_turn(served: Served) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x")

    async with served.web(handle):
        client = served.client("127.0.0.2", "::1", "127.0.0.1")
        assert (await client.get("/", max_bytes=10)).content == b"x"
        await client.end()
        with pytest.raises(OSError):
            await served.client("127.0.0.2").get("/", max_bytes=10)
