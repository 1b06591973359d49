"""A real controller in this process: real TLS listeners on loopback, real database, and nodes whose TPM alone is imagined."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from contract.messages import MAX_FRAME_BYTES, FromController, Message, Order
from contract.wire import decode, encode
from controller.api.entry import token_digest
from controller.app import Controller, server_names
from controller.config import (
    CertificateConfig,
    Config,
    EnrolmentConfig,
    Limits,
    Listen,
    OidcConfig,
    PeopleConfig,
    StoreConfig,
)
from controller.keys import create, load
from controller.permissions import EVERYWHERE, ON_THE_MACHINE, ROLES, Right, Role
from controller.policy import SitePolicy
from controller.records import EventView
from controller.store import migrate
from tests.parts.signing import SigningKit, minimal_baseline
from tests.parts.simulator import Identity, Node, client_context, ek_id, enrol, new_fleet, replayed
from tests.parts.sqlite import ready_sqlite

EVENT_LOG = Path(__file__).resolve().parent.parent / "vectors" / "good-rsa" / "eventlog.bin"
TOKENS: dict[Role, str] = {role: "rfa_" + f"{role}-of-all-".ljust(43, "x") for role in ROLES}
"""One of each role, for the whole fleet."""


class Live:
    """One running controller and what tests ask of it."""

    def __init__(self, controller: Controller, http: aiohttp.ClientSession) -> None:
        self.controller = controller
        self.services = controller.services
        self.fleet = controller.services.fleet
        self.http = http
        self.kit: SigningKit | None = None
        self.ca = controller.services.keys.server_authority.pem.decode()
        self.tls = client_context(self.ca)

    @property
    def node_url(self) -> str:
        """Where nodes go."""
        return f"https://localhost:{self.controller.nodes.port}"

    @property
    def admin_url(self) -> str:
        """Where admins go."""
        return f"https://localhost:{self.controller.admins.port}"

    async def node(self, name: str = "", *, site: str = "factory", connect: bool = True) -> Node:
        """An enrolled node, connected unless told otherwise; its EK was expected."""
        identity = new_fleet(site, 1, first=int(time.monotonic_ns() % 1_000_000))[0]
        identity.name = name or identity.name
        await self.fleet.preregister(ek_id(identity), site=site, node=None, actor="tester", now=time.time())
        await enrol(self.http, self.node_url, self.ca, identity)
        return await self.again(identity) if connect else node_of(identity)

    async def again(self, identity: Identity) -> Node:
        """A new session of an enrolled node."""
        node = node_of(identity)
        await node.connect(self.http, self.node_url, self.ca)
        return node

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        role: Role | None = "admin",
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> tuple[int, dict[str, object]]:
        """One call of the admin API: status and decoded answer."""
        sent = dict(headers or {})
        if role is not None:
            sent.setdefault("Authorization", f"Bearer {TOKENS[role]}")
        data: bytes | None = None
        if body is not None:
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            sent.setdefault("Content-Type", "application/json")
        async with self.http.request(
            method, self.admin_url + path, data=data, headers=sent, ssl=tls or self.tls
        ) as reply:
            content = await reply.read()
            value = msgspec.json.decode(content) if reply.content_type.endswith("json") else {"text": content}
            return reply.status, value

    async def token(self, name: str, token: str, *rights: Right) -> dict[str, str]:
        """Make a token and return the header that carries it."""
        await self.services.people.add_token(
            name, rights, token_digest(token), by=ON_THE_MACHINE, expires_at=None, now=time.time()
        )
        return {"Authorization": f"Bearer {token}"}

    async def push(self, version: int = 1, *, extra: str = "") -> None:
        """Push a baseline, factory/1 at first, signed offline; `extra` is more TOML."""
        now = time.time()
        if self.kit is None:
            self.kit = SigningKit(now=now, online_key=self.services.keys.online)
        if version > 1:
            self.kit.targets.version += 1
        self.kit.add(minimal_baseline(version=version, extra=extra))
        await self.services.signed_files.push(self.kit.bundle(), actor="tester", now=now)

    async def assign(self, version: int, *, extra: str = "") -> None:
        """Push one more baseline and choose it for the site."""
        await self.push(version, extra=extra)
        change = await self.fleet.assign_baseline(
            "factory", "factory", version, actor="tester", reason="test", now=time.time()
        )
        await self.services.tell(change, time.time())

    async def kinds(self, node: str | None = None) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in await self.events(node)]

    async def events(self, node: str | None = None) -> list[EventView]:
        """Events so far."""
        return await self.fleet.list_events(scope=EVERYWHERE, limit=500, node=node)


async def answer_to(node: Node, message: Message | bytes) -> Message:
    """Send one frame and return the next message that is no order."""
    socket = node._socket
    assert socket is not None
    await socket.send_bytes(message if isinstance(message, bytes) else encode(message))
    while True:
        got = await next_message(node)
        if not isinstance(got, Order):
            return got


async def next_message(node: Node) -> Message:
    """The next message. Raises ConnectionError when there is none any more."""
    socket = node._socket
    assert socket is not None
    frame = await socket.receive(timeout=10)
    if frame.type is not aiohttp.WSMsgType.BINARY:
        raise ConnectionError(f"closed {frame.data}")
    message: Message = decode(frame.data, FromController, max_bytes=MAX_FRAME_BYTES)  # type: ignore[arg-type]
    node.take(message)
    return message


def node_of(identity: Identity) -> Node:
    """A node of this identity, booted as recorded."""
    log = EVENT_LOG.read_bytes()
    return Node(identity, log, replayed(log))


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    *,
    limits: Limits | None = None,
    interval_s: float = 60.0,
    push: bool = True,
    certificate_s: float = 72 * 3600.0,
    people: PeopleConfig | None = None,
    oidc: OidcConfig | None = None,
    database: str = "",
    beside: Live | None = None,
) -> AsyncIterator[Live]:
    """A controller on free ports of loopback: one site, a token of each role, a first baseline.

    `database` empty: SQLite. `beside`: one more over the same database, with the same keys.
    """
    config = Config(
        node_url="https://localhost:1",
        admin_url="https://localhost:2",
        nodes=Listen(listen="127.0.0.1:0"),
        admins=Listen(listen="127.0.0.1:0"),
        enrolment=EnrolmentConfig(retry_s=0.05),
        certificates=CertificateConfig(node_hours=certificate_s / 3600),
        limits=limits or Limits(),
        people=people or PeopleConfig(),
        oidc=oidc,
        store=StoreConfig(url=database),
    )
    if beside is not None:
        shutil.copytree(beside.services.keys.directory, folder / "keys")
        keys = load(folder / "keys", time.time())
    else:
        keys = create(folder / "keys", config.name, time.time())
    keys.renew(server_names(config), time.time())
    (folder / "ek-roots").mkdir()
    if database:
        migrate(database)
    else:
        shutil.copy(ready_sqlite(), folder / "ringfence.db")
    controller = Controller(config, folder, keys)
    await controller.start()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        live = Live(controller, http)
        if beside is not None:
            try:
                yield live
            finally:
                await controller.stop()
            return
        for role, token in TOKENS.items():
            await live.token(role, token, Right(role=role, sites="all"))
        policy = SitePolicy(interval_s=interval_s)
        await live.fleet.create_site("factory", policy, actor="tester", now=time.time())
        if push:
            await live.push()
        try:
            yield live
        finally:
            await controller.stop()


def digest(content: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(content).digest()
