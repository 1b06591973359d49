"""How the controller is reached: TLS with one CA, no redirects, no proxies, addresses that outlive a name service.

Refuses: any server certificate that the configured CA did not issue for the configured host.
Relies on: agent.channel for the protocols, and the ssl module's host name check.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

from agent.channel import Client, Route, TurnedAway, Unanswered
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

_NOT_LET_IN = (401, 403)
_CONTENT_TYPE = "application/msgpack"
_ENROL_REPLY = cast("type[EnrolChallenge | EnrolPending | EnrolApproved | Refused]", EnrolReply)


async def _forget(addresses: list[str]) -> None:
    """Do nothing with what was resolved."""


def trusting(ca: str) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later that believes this PEM file only. Raises OSError, which names the file."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    except OSError as error:  # OpenSSL's own is one, and says neither which file nor that it is one
        why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise OSError(f"{ca}: {why} ([controller] ca in the configuration)") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


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

    async def enrol(self, tpm: Tpm) -> Enrolled:
        """Enrol once. Raises as `agent.enrol.enrol` does."""
        async with self.client(None, None) as http:

            async def post(
                path: str, message: Message
            ) -> EnrolChallenge | EnrolPending | EnrolApproved | Refused:
                sent = wire.encode(message)
                reply = await http.post(path, sent, kind=_CONTENT_TYPE, max_bytes=MAX_ENROL_BYTES)
                if reply.status >= 500 or reply.status == 429:
                    raise OSError(f"{path}: HTTP {reply.status}")
                return wire.decode(
                    reply.content, _ENROL_REPLY, max_bytes=MAX_ENROL_BYTES, code="enrol.malformed"
                )

            return await enrol(self._config, self._store, tpm, post, waiting=log.info)

    @contextlib.asynccontextmanager
    async def client(self, enrolled: Enrolled | None, keys: Keys | None) -> AsyncIterator[Client]:
        """Give an HTTPS client that believes the configured CA only; with the node's certificate once there is one."""
        context = trusting(self._config.controller.ca)
        if enrolled is not None and keys is not None:
            path = Path(self._config.state_dir) / "client.pem"  # OpenSSL takes it from a file only
            await asyncio.to_thread(replace_file, path, keys.tls_key + enrolled.chain)
            context.load_cert_chain(path)
        where = self._config.controller
        client = Client(Route(where.host, where.port, context, self.addresses))
        try:
            yield client
        finally:
            await client.end()

    async def turned_away(self, error: BaseException, not_after: float) -> bool:
        """Return whether a session did not open because the controller does not take this node's certificate (any more).

        It says so, or it cut the handshake and by its clock the certificate has run out (the alert that says why is lost
        where it comes with the end, and this node's own clock may be behind). `not_after` is in seconds since 1970.
        """
        if isinstance(error, TurnedAway):
            return error.status in _NOT_LET_IN
        if not isinstance(error, Unanswered):
            return False
        try:
            return await self._controllers_time() >= not_after
        except (OSError, ValueError, KeyError) as failure:
            log.info("the controller's time: %s", failure)
            return False

    async def _controllers_time(self) -> float:
        """Ask for what anybody may ask for, a refusal, and return its date (RFC 9110, 6.6.1)."""
        from email.utils import parsedate_to_datetime  # rare, and a megabyte

        async with self.client(None, None) as http:
            reply = await http.get(SESSION_PATH, max_bytes=MAX_ENROL_BYTES)
        return parsedate_to_datetime(reply.headers["date"]).timestamp()

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
