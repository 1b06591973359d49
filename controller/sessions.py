"""Sessions: one WebSocket for each node. Challenge, report, answer; and orders that cannot wait.

A session is opened over mutual TLS for the node that the certificate names, if that very certificate is bound to
it. A second one replaces the first once it is authenticated. Every report uses up a nonce before anything is
verified. A report that does not verify, for whatever reason, is recorded as a failure of that node and judged:
there is no path on which an error looks like health.

Refuses to do: judge (controller.judge), store (controller.fleet). Relies on: TLS having verified the certificate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import cast

from aiohttp import WSMsgType, web

from contract.errors import Rejected
from contract.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    Answer,
    Certificate,
    Challenge,
    FromAgent,
    Hello,
    Inventory,
    KeyWanted,
    Order,
    Refused,
    Renew,
    Report,
    Sockets,
    never_more,
)
from contract.quote import Counters
from contract.sealing import directive_signer, sign_directive
from contract.wire import decode, encode
from controller.appraisal import LogWanted
from controller.authority import CertifiedNode
from controller.bell import Bell
from controller.faults import log_fault
from controller.fleet import Fleet
from controller.fleet.escrow import Escrow
from controller.issuing import Issuing
from controller.metrics import Metrics
from controller.policybook import PolicyBook
from controller.records import Outcome
from controller.session import (
    CLOSE_PROTOCOL,
    CLOSE_REFUSED,
    CLOSE_REPLACED,
    CLOSE_SILENT,
    NONCE_INTERVALS,
    Session,
    send_each,
    sockets_of,
)
from controller.stocktaking import Stocktaking
from controller.store import StoreUnavailable

log = logging.getLogger(__name__)

AnyOfAgent = Report | Renew | Inventory | Sockets
PUSH_AT_ONCE = 256
SOCKET = web.RequestKey("ringfence.socket", web.WebSocketResponse)
"""Where a request keeps its WebSocket once it is one."""
MIN_SILENCE_S = 30.0


class Sessions:
    """All open sessions of this process."""

    def __init__(self, fleet: Fleet, escrow: Escrow, issuing: Issuing, metrics: Metrics, bell: Bell) -> None:
        """Signs with the directive key of `issuing`."""
        self._fleet = fleet
        self._escrow = escrow
        self._policies = PolicyBook(fleet)
        self._issuing = issuing
        self._signer = directive_signer(issuing.keys.directive)
        self._metrics = metrics
        self._bell = bell
        self._stock = Stocktaking(fleet)
        self.ended = 0
        """Sessions that this process has had and has no more."""
        self._open: dict[str, Session] = {}
        self._unsaid: dict[str, int] = {}
        """Ends of sessions that the database has not heard of yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Number of open sessions."""
        return len(self._open)

    async def serve(self, request: web.Request, identity: CertifiedNode) -> web.WebSocketResponse:
        """Run one session from upgrade to end. Raises Rejected `session.*` before the upgrade."""
        record = await self._fleet.open_session(identity.node, identity.fingerprint, now=time.time())
        try:
            policies = await self._policies.of(record, now=time.time())
            socket = web.WebSocketResponse(
                protocols=(PROTOCOL,), max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=2.0
            )
            session = Session(socket, request.transport, identity, record, policies)
            self._take_over(session)
            await socket.prepare(request)
            request[SOCKET] = socket
            if socket.ws_protocol == PROTOCOL:
                await self._converse(session)
            else:
                await session.close(CLOSE_PROTOCOL)
            if session.closing is not None:  # returning now would cut the close frame off
                await session.closing
        finally:
            self.ended += 1
            await self._leave(identity.node, record.epoch)
        return socket

    def held(self) -> dict[str, int]:
        """Epochs of the open sessions, by node."""
        return {node: session.epoch for node, session in self._open.items()}

    async def tell(self, nodes: Sequence[str], now: float, *, only_due: bool = False) -> None:
        """Send new directives to those of `nodes` that are connected here, at once; `only_due`: where it is due still."""
        connected = [node for node in dict.fromkeys(nodes) if node in self._open]
        for node in connected:
            self._open[node].stale = True
        orders: dict[str, bytes] = {}
        for begin in range(0, len(connected) + PUSH_AT_ONCE, PUSH_AT_ONCE):
            some = connected[begin : begin + PUSH_AT_ONCE]
            # Some are sent while the database writes the next.
            more = self._orders(some, now, only_due=only_due)
            greeted = {self._open[node]: order for node, order in orders.items() if self._greeted(node)}
            self._metrics.orders.inc(len(greeted))
            orders, _ = await asyncio.gather(more, send_each(greeted))

    def _greeted(self, node: str) -> bool:
        session = self._open.get(node)
        return session is not None and session.greeted

    async def _orders(self, some: Sequence[str], now: float, *, only_due: bool) -> dict[str, bytes]:
        """Return orders for those of these nodes that are ours. All are signed before one is sent: who has it begins to work."""
        held = {node: self._open[node].epoch for node in some if node in self._open}
        if not held:
            return {}
        directives = await self._fleet.directives_to(held, now=now, only_due=only_due, urgent=True)
        return {
            node: encode(Order(directive=sign_directive(directive, self._signer)))
            for node, directive in directives.items()
        }

    async def challenge(self, nodes: Sequence[str], now: float) -> None:
        """Ask those of `nodes` that are connected to report now."""
        sessions = [self._open[node] for node in dict.fromkeys(nodes) if node in self._open]
        for session in sessions:
            session.stale = True
        sessions = [session for session in sessions if session.greeted]
        await asyncio.gather(*(session.send(Challenge(nonce=session.nonce())) for session in sessions))

    async def rehearse(
        self, nodes: Sequence[str], *, wait_s: float, ask: bool = True
    ) -> dict[str, float | None]:
        """Challenge those of `nodes` that are connected, and time each until its report was judged, in seconds; None where
        none was within `wait_s`, or where nobody was to be asked. Sends no order."""
        sessions = [self._open[node] for node in dict.fromkeys(nodes) if node in self._open]
        sessions = [session for session in sessions if session.greeted]
        if not ask:
            return {session.node: None for session in sessions}
        took = await asyncio.gather(*(session.challenged(wait_s) for session in sessions))
        return {session.node: each for session, each in zip(sessions, took, strict=True)}

    async def sockets_of(self, node: str) -> bytes | str:
        """What a node that is connected here tells that it has open now, as it came; in words why it tells nothing."""
        return await sockets_of(self._open.get(node))

    async def drop(self, node: str) -> None:
        """Close the session of a node that has enrolled anew: its certificate is no longer bound."""
        session = self._open.get(node)
        if session is not None:
            await session.close(CLOSE_REPLACED)

    async def give_up(self, taken: Mapping[str, int]) -> None:
        """Close the sessions of nodes that another controller has taken over; the epoch is of the session there."""
        for node, epoch in taken.items():
            session = self._open.get(node)
            if session is not None and session.epoch < epoch:
                self._spawn(session.close(CLOSE_REPLACED))

    async def say_ends(self) -> None:
        """Tell the database of ends that it could not hear of when they came. Raises StoreUnavailable."""
        for node, epoch in list(self._unsaid.items()):
            await self._fleet.end_session(node, epoch=epoch)
            if self._unsaid.get(node) == epoch:
                del self._unsaid[node]

    async def stop(self) -> None:
        """Close every session; nodes come back by themselves."""
        for session in list(self._open.values()):
            self._spawn(session.close(1001))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_over(self, session: Session) -> None:
        before = self._open.get(session.node)
        if before is not None and before.epoch > session.epoch:  # opened later, ready sooner
            self._spawn(session.close(CLOSE_REPLACED))
            return
        self._open[session.node] = session
        self._metrics.sessions.set(len(self._open))
        if before is not None:
            self._spawn(before.close(CLOSE_REPLACED))

    async def _leave(self, node: str, epoch: int) -> None:
        there = self._open.get(node)
        if there is not None and there.epoch > epoch:  # another session has replaced it, here
            return
        if there is not None:
            del self._open[node]
            self._stock.left(node)
            self._metrics.sessions.set(len(self._open))
        try:
            await self._fleet.end_session(node, epoch=epoch)
        except StoreUnavailable:
            self._unsaid[node] = epoch

    async def _greet(self, session: Session) -> None:
        written = await self._fleet.directives_to({session.node: session.epoch}, now=time.time())
        if session.node not in written:  # it has gone to another controller while we opened
            await session.close(CLOSE_REPLACED)
            return
        directive = written[session.node]
        wanted = session.appraiser.asking()
        hello = Hello(
            node=session.node,
            nonce=session.nonce_for(wanted),
            interval_s=session.appraiser.record.interval_s,
            event_log_wanted=wanted.event_log,
            ima_offset=wanted.ima_offset,
            directive=sign_directive(directive, self._signer),
        )
        await session.send(hello)
        session.greeted = True
        if session.stale:  # something changed while we were greeting
            await self.tell([session.node], time.time())

    async def _converse(self, session: Session) -> None:
        try:
            await self._greet(session)
            if self._open.get(session.node) is not session:
                await session.close(CLOSE_REPLACED)
            while not session.socket.closed and await self._next(session):
                pass
        except Rejected as rejected:
            self._metrics.rejected.labels(rejected.code).inc()
            await session.send(Refused(code=rejected.code, detail=never_more(rejected.detail, 2048)))
            await session.close(CLOSE_REFUSED)
        except StoreUnavailable:
            # No new trust while the database is away: the agent keeps its events and comes back (c03).
            await session.send(Refused(code="store.unavailable"))
            await session.close(CLOSE_REFUSED)

    async def _next(self, session: Session) -> bool:
        """Take the next frame; False when the connection has ended."""
        silence_s = max(MIN_SILENCE_S, (NONCE_INTERVALS + 1) * session.appraiser.record.interval_s)
        try:
            frame = await session.socket.receive(timeout=silence_s)
        except TimeoutError:
            await session.close(CLOSE_SILENT)
            return False
        if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return False
        await self._take(session, frame.data if frame.type is WSMsgType.BINARY else b"")
        return True

    async def _take(self, session: Session, untrusted: bytes) -> None:
        """Take one frame. Raises Rejected when the session must end; what the node did wrong is recorded then."""
        if time.time() >= session.identity.not_after:
            raise Rejected("certificate.expired", "open a session with the renewed one")
        try:
            message = decode(untrusted, cast(type[AnyOfAgent], FromAgent), max_bytes=MAX_FRAME_BYTES)
        except Rejected as rejected:
            over = session.identity.fingerprint
            await self._fleet.reject_evidence(session.node, rejected, now=time.time(), over=over)
            self._bell.ring()
            raise
        if isinstance(message, Renew):
            issue = self._issuing.issue(time.time())
            certificate = await self._fleet.renew_certificate(
                session.node, message.csr, issue, now=time.time(), over=session.identity.fingerprint
            )
            await session.send(Certificate(chain=certificate.chain))
        elif isinstance(message, Inventory):
            await self._stock.take(session.node, message)
        elif isinstance(message, Sockets):
            session.tell_sockets(message.report)
        else:
            await self._report(session, message)

    async def _report(self, session: Session, report: Report) -> None:
        begun = time.perf_counter()
        try:
            outcome = await self._judged(session, report)
        except LogWanted as more:
            # Number 0 answers no report: nothing is acknowledged or confirmed. The Challenge brings the logs at once.
            answer = Answer(
                number=0,
                nonce=session.nonce_for(more.asked),
                tier="none",
                event_log_wanted=more.asked.event_log,
                ima_offset=more.asked.ima_offset,
            )
            await session.send(answer)
            await session.send(Challenge(nonce=session.nonce()))
            return
        policies = await self._policies.of(outcome.session, now=time.time())
        session.appraiser = session.appraiser.renewed(outcome.session, policies)
        wanted = session.appraiser.asking()
        session.answered()
        if outcome.affected:
            self._spawn(self._tell_others(outcome.affected))
        answer = Answer(
            number=session.number,
            nonce=session.nonce_for(wanted),
            tier=outcome.tier,
            findings=outcome.findings,
            events_acked=outcome.events_acked,
            event_log_wanted=wanted.event_log,
            ima_offset=wanted.ima_offset,
            directive=None if outcome.directive is None else sign_directive(outcome.directive, self._signer),
            inventory_wanted=await self._stock.wanted(session.node, session.inventory),
        )
        await session.send(answer)
        session.reported.set()
        if session.keys_wanted is not None:
            await self._release_keys(session, *session.keys_wanted)
        self._metrics.reports.labels(outcome.tier).inc()
        self._metrics.report_seconds.observe(time.perf_counter() - begun)
        self._bell.ring()

    async def _release_keys(self, session: Session, wanted: Sequence[KeyWanted], counters: Counters) -> None:
        session.keys_wanted = None
        for message in await self._escrow.release(session.node, wanted, counters, now=time.time()):
            await session.send(message)

    async def _judged(self, session: Session, report: Report) -> Outcome:
        """Verify and store one report; whatever goes wrong on the way is stored as this node's failure (c07)."""
        if session.stale:
            session.stale = False
            record = await self._fleet.session(session.node)
            policies = await self._policies.of(record, now=time.time())
            session.appraiser = session.appraiser.renewed(record, policies)
        session.presented, session.inventory = None, b""
        try:
            evidence = await session.appraised(report, self._fleet)
            outcome = await self._fleet.take_report(
                session.node,
                evidence,
                presented=session.presented,
                now=time.time(),
                over=session.identity.fingerprint,
            )
            session.inventory = evidence.body.inventory_sha256
            session.tells_sockets = session.tells_sockets or bool(session.inventory)
            if evidence.body.keys_wanted:
                session.keys_wanted = evidence.body.keys_wanted, evidence.counters
            session.presented = None
            return outcome
        except (LogWanted, StoreUnavailable):
            raise
        except Rejected as error:
            rejected = error
        except Exception as fault:  # outermost place of the node listener: recorded, and no trust comes of it
            log_fault(f"verification of a report of {session.node}", fault)
            self._metrics.faults.inc()
            rejected = Rejected("verification.failed", "a fault of the controller; its log says more")
        self._metrics.rejected.labels(rejected.code).inc()
        presented, session.presented = session.presented, None
        return await self._fleet.reject_evidence(
            session.node, rejected, presented=presented, now=time.time(), over=session.identity.fingerprint
        )

    async def _tell_others(self, nodes: Sequence[str]) -> None:
        try:
            await self.tell(nodes, time.time())
        except StoreUnavailable:
            log.warning("%d nodes get their directive with their next report", len(nodes))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log_fault("a push to nodes", fault)
            self._metrics.faults.inc()
