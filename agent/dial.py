"""How the controller is reached: TLS with one CA, no redirects, no proxies, addresses that outlive a name service.

Refuses: any server certificate that the configured CA did not issue for the configured host.
Relies on: aiohttp and the ssl module's host name check.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from agent.config import AgentConfig
from agent.enrol import enrol
from agent.store import Enrolled, Keys, Store, replace_file
from agent.tpm import Tpm
from contract import wire
from contract.messages import (
    MAX_ENROL_BYTES,
    SESSION_PATH,
    EnrolApproved,
    EnrolChallenge,
    EnrolPending,
    EnrolReply,
    Message,
    Refused,
)

log = logging.getLogger("ringfence.dial")

ANSWER_S = 30.0
DIAL_S = 10.0
_NOT_LET_IN = (401, 403)
_CONTENT_TYPE = "application/msgpack"
_ENROL_REPLY = cast("type[EnrolChallenge | EnrolPending | EnrolApproved | Refused]", EnrolReply)


async def _forget(addresses: list[str]) -> None:
    """Do nothing with what was resolved."""


class Dialler:
    """Makes connections to the controller of one configuration."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        *,
        resolved: Callable[[list[str]], Awaitable[None]] = _forget,
        kept: Callable[[], list[str]] = list,
    ) -> None:
        """`resolved` is told what the controller's name stands for; `kept` gives it back when no name service answers."""
        self._config = config
        self._store = store
        self._resolved = resolved
        self._kept = kept
        self.base = config.controller.url.rstrip("/")

    async def enrol(self, tpm: Tpm) -> Enrolled:
        """Enrol once. Raises as `agent.enrol.enrol` does."""
        async with self.client(None, None) as http:

            async def post(
                path: str, message: Message
            ) -> EnrolChallenge | EnrolPending | EnrolApproved | Refused:
                body = wire.encode(message)
                headers = {"Content-Type": _CONTENT_TYPE}
                try:
                    async with http.post(
                        self.base + path, data=body, headers=headers, allow_redirects=False
                    ) as reply:
                        content = await read_capped(reply, MAX_ENROL_BYTES)
                        status = reply.status
                except aiohttp.ClientError as error:
                    raise OSError(f"{path}: {error}") from None
                if status >= 500 or status == 429:
                    raise OSError(f"{path}: HTTP {status}")
                return wire.decode(content, _ENROL_REPLY, max_bytes=MAX_ENROL_BYTES, code="enrol.malformed")

            return await enrol(self._config, self._store, tpm, post, waiting=log.info)

    @contextlib.asynccontextmanager
    async def client(
        self, enrolled: Enrolled | None, keys: Keys | None
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """Give an HTTPS client that believes the configured CA only; with the node's certificate once there is one."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self._config.controller.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if enrolled is not None and keys is not None:
            path = Path(self._config.state_dir) / "client.pem"  # OpenSSL takes it from a file only
            await asyncio.to_thread(replace_file, path, keys.tls_key + enrolled.chain)
            context.load_cert_chain(path)
        connector = aiohttp.TCPConnector(ssl=context, resolver=_Resolver(self), force_close=False, limit=4)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S, sock_read=ANSWER_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as http:
            yield http

    async def turned_away(self, error: BaseException, not_after: float) -> bool:
        """Return whether a session did not open because the controller does not take this node's certificate (any more).

        It says so, or it cut the handshake and by its clock the certificate has run out (asyncio tells nobody of the alert
        that says why, and this node's own clock may be behind). `not_after` is in seconds since 1970.
        """
        if isinstance(error, aiohttp.WSServerHandshakeError):
            return error.status in _NOT_LET_IN
        if not isinstance(error, aiohttp.ServerDisconnectedError):
            return False
        try:
            return await self._controllers_time() >= not_after
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError, KeyError) as failure:
            log.info("the controller's time: %s", failure)
            return False

    async def _controllers_time(self) -> float:
        """Ask for what anybody may ask for, a refusal, and return its date (RFC 9110, 6.6.1)."""
        async with (
            self.client(None, None) as http,
            http.get(self.base + SESSION_PATH, allow_redirects=False) as reply,
        ):
            return parsedate_to_datetime(reply.headers["Date"]).timestamp()

    async def addresses(self, host: str) -> list[str]:
        """Return the controller's addresses: configured, resolved, or what was resolved last."""
        if literal := self._config.controller.literal_addresses():
            return literal
        home = asyncio.get_running_loop()
        try:
            found = await home.getaddrinfo(host, self._config.controller.port, type=socket.SOCK_STREAM)
        except OSError:
            kept = self._kept()
            if not kept:
                raise
            return kept
        addresses = sorted({str(entry[4][0]) for entry in found})
        await self._resolved(addresses)
        return addresses


class _Resolver(AbstractResolver):
    """Names go through `Dialler.addresses`, so that a controller once found stays found without a name service."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the controller's addresses. Raises OSError."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._dialler.addresses(host)
        ]

    async def close(self) -> None:
        """Hold nothing."""


async def read_capped(reply: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the whole content. Raises OSError past `max_bytes`."""
    content = bytearray()
    async for chunk in reply.content.iter_chunked(65536):
        content += chunk
        if len(content) > max_bytes:
            raise OSError(f"{reply.url.path}: more than {max_bytes} bytes")
    return bytes(content)
