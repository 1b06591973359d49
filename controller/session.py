"""One node's open connection: its nonces, what was asked for with each, and what its next report is held against.

Refuses to do: decide or store what comes of a report (controller.sessions). Every report uses up a nonce before anything
of it is verified.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import msgspec
from aiohttp import web

from contract.binding import QUOTED_PCRS
from contract.errors import Rejected
from contract.messages import Challenge, KeyWanted, Message, Report, SocketsWanted
from contract.quote import Counters
from contract.wire import encode
from controller.appraisal import Appraiser, Asked, parsed_body
from controller.authority import CertifiedNode
from controller.fleet import Fleet
from controller.nonces import Nonces
from controller.policies import Policies
from controller.presented import Presented
from controller.records import Evidence, SessionRecord

log = logging.getLogger(__name__)

NONCE_INTERVALS = 3.0
SOCKETS_FRESH_S = 2.0
"""Who asks again within this time gets the same answer."""
SOCKETS_S = 5.0
"""So long a node may take to tell what it has open."""
NOT_CONNECTED = "it is not connected"
NOT_IN_TIME = "it did not answer in time"
SEND_S = 10.0
"""A node that does not take a frame for so long has its connection closed."""
ROOM_BYTES = 8 * 1024
"""Less than this waiting to be sent: aiohttp's writer waits at 64 KiB, and goes on at 16."""
CLOSE_REPLACED = 4001
CLOSE_REFUSED = 4002
CLOSE_SILENT = 4003
CLOSE_PROTOCOL = 1002
"""RFC 6455, clause 7.4.1: the agent is of another version."""
NOTHING_ASKED = Asked()
INLINE_LOG_BYTES = 16 * 1024
"""Some 100 lines of IMA: more of a log takes milliseconds, for which other nodes' reports need not wait."""


class Session:
    """One node's open connection and what its next report will be held against."""

    __slots__ = (
        "_transport",
        "appraiser",
        "asked",
        "closing",
        "epoch",
        "greeted",
        "identity",
        "inventory",
        "keys_wanted",
        "nonces",
        "number",
        "pcrs",
        "presented",
        "reported",
        "shown",
        "socket",
        "sockets",
        "sockets_at",
        "sockets_due",
        "stale",
        "tells_sockets",
        "wanted",
    )

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.WriteTransport | None,
        identity: CertifiedNode,
        record: SessionRecord,
        policies: Policies,
    ) -> None:
        """`record` is what the store said when it let the session open."""
        self.socket = socket
        self._transport = transport
        self.identity = identity
        self.epoch = record.epoch
        """Which of the node's sessions it is: a later one, here or at another controller, ends it."""
        self.appraiser = Appraiser(record, identity.fingerprint, policies)
        self.nonces = Nonces()
        self.closing: asyncio.Future[None] | None = None
        """Done when a close that another task began has sent its frame."""
        self.greeted = False
        """Hello is sent: only then may anything else be."""
        self.wanted = self.appraiser.asking()
        """What was last told to be brought of the logs."""
        self.asked: dict[bytes, Asked] = {}
        """Outstanding nonces and what was wanted with each: a report over one of them must bring that."""
        self.stale = False
        """Something outside changed the record: read it again before the next report is judged."""
        self.number = 0
        self.reported = asyncio.Event()
        """Set with each report that was judged and answered."""
        self.keys_wanted: tuple[Sequence[KeyWanted], Counters] | None = None
        """What the report accepted last asks of the escrow, and by which quote."""
        self.inventory = b""
        """What the report accepted last names of its inventory."""
        self.tells_sockets = False
        """It has named an inventory in this session: it knows what SocketsWanted is."""
        self.sockets: asyncio.Future[bytes] | None = None
        """What it told last of its connections, or will tell."""
        self.sockets_at = 0.0
        self.sockets_due = 0
        """Answers that it owes: who was too slow is asked again, and may answer both times."""
        self.pcrs: dict[int, bytes] = {}
        """Values of the last report that was answered: what the next one leaves out. Worth nothing but under a quote."""
        self.shown: dict[int, bytes] = {}
        """Of the report that is being judged, completed by those."""
        self.presented: Presented | None = None
        """The report that is being judged, as it came: stored when its verdict is worth keeping."""

    @property
    def node(self) -> str:
        """Name of the node."""
        return self.identity.node

    def nonce(self) -> bytes:
        """Issue the next nonce; its age is measured by the clock that nobody sets. What is wanted holds for it."""
        nonce = self.nonces.issue(time.monotonic(), NONCE_INTERVALS * self.appraiser.record.interval_s)
        known = (*self.asked.items(), (nonce, self.wanted))
        outstanding = self.nonces.candidates()
        self.asked = {each: asked for each, asked in known if each in outstanding}
        return nonce

    def nonce_for(self, wanted: Asked) -> bytes:
        """Issue the next nonce; from now on this is wanted of the logs."""
        self.wanted = wanted
        return self.nonce()

    async def send(self, message: Message) -> None:
        """Send one message, or close the connection when the node does not take it in time."""
        await self.send_encoded(encode(message))

    async def send_encoded(self, message: bytes) -> None:
        """As `send`, of a message that is encoded already."""
        late = None if self.has_room() else self._cut_after(SEND_S)
        try:
            await self.socket.send_bytes(message)
        except ConnectionError:
            await self.close(CLOSE_SILENT)
        finally:
            if late is not None:
                late.cancel()

    def _cut_after(self, seconds: float) -> asyncio.TimerHandle:
        # No time limit on the coroutine: all who send wait for one future of aiohttp's, and cancelling one would cancel it for all.
        return asyncio.get_running_loop().call_later(seconds, self._cut)

    def _cut(self) -> None:
        """End the connection at once: who takes no frame takes no farewell either."""
        if self._transport is not None:
            self._transport.abort()

    def has_room(self) -> bool:
        """Whether a frame can be sent without waiting for the node: then a timer, or a task, for it would be for nothing."""
        transport = self._transport
        return transport is None or transport.is_closing() or transport.get_write_buffer_size() < ROOM_BYTES

    async def challenged(self, wait_s: float) -> float | None:
        """Ask for a report and return the seconds until one was answered; None when none was within `wait_s`."""
        begun = time.perf_counter()
        self.reported.clear()
        await self.send(Challenge(nonce=self.nonce()))
        try:
            async with asyncio.timeout(wait_s):
                await self.reported.wait()
        except TimeoutError:
            return None
        return time.perf_counter() - begun

    async def told_sockets(self, wait_s: float) -> bytes | None:
        """Return what the node tells of its connections, just now or when asked; None when it does not within `wait_s`."""
        told, now = self.sockets, time.monotonic()
        if told is None or now - self.sockets_at > (SOCKETS_FRESH_S if told.done() else SOCKETS_S):
            told = self.sockets = asyncio.get_running_loop().create_future()
            self.sockets_at = now
            self.sockets_due += 1
            await self.send(SocketsWanted())
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(told)
        except TimeoutError:
            return None

    def tell_sockets(self, report: bytes) -> None:
        """The node has told. Raises Rejected `sockets.unasked`."""
        if not self.sockets_due:
            raise Rejected("sockets.unasked", "nobody asked for it")
        self.sockets_due -= 1
        if self.sockets is not None and not self.sockets.done():
            self.sockets.set_result(report)

    async def close(self, code: int) -> None:
        """Close without waiting for long; a socket that is not open yet sees by itself that it was replaced."""
        if not self.socket.prepared or self.closing is not None:
            return
        self.closing = asyncio.get_running_loop().create_future()
        late = self._cut_after(SEND_S)
        try:
            await self.socket.close(code=code)
        except ConnectionError:
            log.debug("session of %s was gone before it was closed", self.node)
        finally:
            late.cancel()
            self.closing.set_result(None)

    def answered(self) -> None:
        """Remember what the report showed that is answered now; only PCRs that a quote can be over."""
        self.pcrs = {pcr: value for pcr, value in self.shown.items() if pcr in QUOTED_PCRS}

    async def appraised(self, report: Report, fleet: Fleet) -> Evidence:
        """Use up a nonce, then verify one report. Raises Rejected, LogWanted, StoreUnavailable."""
        candidates = self.nonces.candidates()
        try:
            body = parsed_body(report)
        except Rejected:
            self.nonces.consume(None, time.monotonic())
            raise
        self.number = body.number
        self.shown = {**self.pcrs, **report.pcrs}
        report = msgspec.structs.replace(report, pcrs=self.shown)
        appraiser, chosen = self.appraiser, None
        if (
            len(candidates) > 1
        ):  # a Challenge crossed the report: see which nonce it is over, before it is used up
            over = (c for c in candidates if appraiser.qualifying(report, body, c) in report.quote)
            chosen = next(over, None)
        nonce = self.nonces.consume(chosen, time.monotonic())
        presented = Presented(report, body, nonce, appraiser.record, self.identity.fingerprint)
        self.presented = presented
        asked = self.asked.pop(nonce, NOTHING_ASKED)
        reference = None
        if appraiser.needs_reference(report, body):
            reference = await fleet.boot_reference(self.node)
        if report.event_log is None and len(report.ima_log or b"") <= INLINE_LOG_BYTES:
            return appraiser.appraise(report, body, nonce, asked, reference)
        evidence = await asyncio.to_thread(appraiser.appraise, report, body, nonce, asked, reference)
        await asyncio.to_thread(presented.prepare)
        return evidence


async def send_each(messages: Mapping[Session, bytes]) -> None:
    """Send each its own, encoded already. Who cannot take it at once holds up none of the others."""
    slow = []
    for session, message in messages.items():
        if session.has_room():
            await session.send_encoded(message)
        else:
            slow.append(session.send_encoded(message))
    await asyncio.gather(*slow)


async def sockets_of(session: Session | None) -> bytes | str:
    """What a node tells that it has open now, as it came, or in words why it tells nothing."""
    if session is None or not session.greeted:
        return NOT_CONNECTED
    if not session.tells_sockets:
        return "its agent does not tell, or not yet"
    told = await session.told_sockets(SOCKETS_S)
    return NOT_IN_TIME if told is None else told
