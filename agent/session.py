"""One session with the controller: Hello, then reports, answers, orders, challenges, until the socket closes.

Refuses: to have two reports out at once, to use a nonce twice, to go on after a message that does not belong.
Relies on: agent.uplink for the socket, the worker and the TPM.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, cast

import msgspec

from agent.channel import ANSWER_S, WebSocket
from agent.enrol import Identity, identity_of, signing_request
from agent.notify import ANSWERED, notify
from agent.report import Prepared
from agent.store import Enrolled, Keys
from contract import wire
from contract.inventory import Taken
from contract.messages import (
    MAX_FRAME_BYTES,
    Answer,
    Certificate,
    Challenge,
    FromController,
    Hello,
    Inventory,
    KeyRefused,
    KeyReleased,
    Message,
    Order,
    Refused,
    Renew,
    Sockets,
    SocketsWanted,
)

if TYPE_CHECKING:
    from agent.uplink import Uplink

log = logging.getLogger("ringfence.session")

MIN_GAP_S = 0.2
"""Between two reports that do not wait for the interval."""
AWAITING_S, RESTING_S = 1.0, 15.0
"""Longest sleeps: while an answer is due, and while only time, an order or an event can bring something."""
TPM_RETRY_S = 2.0
SOCKETS_GAP_S = 1.0
"""Between two tellings of all connections, whoever asks how often."""
MAX_QUOTES = 3
"""Over one nonce, none of them sent but the last: an upgrade may go on while the TPM signs."""


class SessionEnded(Exception):
    """The session is over for a reason that a new one may cure."""


class Session:
    """One WebSocket, from Hello to its end."""

    def __init__(
        self,
        uplink: Uplink,
        socket_: WebSocket,
        hello: Hello,
        number: int,
        *,
        enrolled: Enrolled,
        identity: Identity,
        keys: Keys,
    ) -> None:
        self._up = uplink
        self._socket = socket_
        self._number = number
        self._enrolled = enrolled
        self._identity = identity
        self._keys = keys
        self._nonce: bytes | None = hello.nonce
        self._interval_s = hello.interval_s
        self._log_wanted = hello.event_log_wanted
        self._ima_offset = hello.ima_offset
        self._sent: Prepared | None = None
        self._shown: dict[int, bytes] = {}
        """PCR values of the report that is out."""
        self._known: dict[int, bytes] = {}
        """Of the last one that was answered: the controller remembers them for as long as this session lasts."""
        self._inventory: Taken | None = None
        """Named in the last answered report that named one."""
        self._sockets_at = float("-inf")
        self._sent_at = 0.0
        self._next = 0.0
        self._renewing = False
        self._answered = False
        self._reader: asyncio.Task[object]

    async def run(self) -> None:
        """Report and listen until the socket closes or a new dial is wanted."""
        self._read()
        try:
            while not self._up.redial.is_set():
                now = time.monotonic()
                if self._sent is not None and now - self._sent_at > ANSWER_S:
                    raise SessionEnded("no answer to a report")
                if self._nonce is not None and self._sent is None and now >= self._due_at():
                    await self._report_and_obey()
                await self._renew_if_time()
                await self._wait(self._reader)
                if self._reader.done():
                    message = self._reader.result()
                    self._read()
                    await self._take(message)
        finally:
            await _ended(self._reader)

    def _read(self) -> None:
        self._reader = asyncio.create_task(receive(self._socket))

    async def _report_and_obey(self) -> None:
        """Report, and carry out the orders that come meanwhile: a TPM takes up to a second for a quote.

        Whatever else comes is about reports and waits for the end of this one.
        """
        reporting = asyncio.create_task(self._report())
        try:
            while not reporting.done():
                reading = set() if self._reader.done() else {self._reader}
                await asyncio.wait({reporting, *reading}, return_when=asyncio.FIRST_COMPLETED)
                order = _order(self._reader)
                if order is not None:
                    self._read()
                    await self._take(order)
        finally:
            await _ended(reporting)
        reporting.result()

    def _due_at(self) -> float:
        if not self._up.due.is_set():
            return self._next
        return min(self._next, max(self._sent_at + MIN_GAP_S, self._up.silent_until))

    async def _wait(self, reader: asyncio.Task[object]) -> None:
        """Sleep until something came, something is due, or some seconds have gone."""
        now = time.monotonic()
        longest = AWAITING_S if self._sent is not None else RESTING_S
        until = self._due_at() - now if self._nonce is not None and self._sent is None else longest
        due = asyncio.create_task(self._up.due.wait()) if not self._up.due.is_set() else None
        redial = asyncio.create_task(self._up.redial.wait())
        waits: set[asyncio.Task[object]] = {reader, redial}
        if due is not None:
            waits.add(due)
        try:
            await asyncio.wait(
                waits, timeout=max(0.0, min(longest, until)), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            redial.cancel()
            if due is not None:
                due.cancel()

    async def _report(self) -> None:
        nonce = self._nonce
        assert nonce is not None  # noqa: S101  (checked by the caller)
        self._up.due.clear()
        for _ in range(MAX_QUOTES):
            told = b"" if self._inventory is None else self._inventory.sha256
            prepared = await self._up.prepare(self._ima_offset, self._log_wanted, told)
            report = await self._up.quoted(prepared, nonce, self._identity, self._log_wanted)
            if report is None or not await self._up.says_too_little(prepared, report):
                break
        if report is None:
            self._next = time.monotonic() + TPM_RETRY_S
            return
        self._nonce = None
        self._sent, self._sent_at = prepared, time.monotonic()
        self._shown = report.pcrs
        changed = {pcr: value for pcr, value in report.pcrs.items() if self._known.get(pcr) != value}
        await self._socket.send(wire.encode(msgspec.structs.replace(report, pcrs=changed)))

    async def _take(self, message: object) -> None:
        if isinstance(message, Answer):
            await self._answer(message)
        elif isinstance(message, Order):
            await self._up.directive(message.directive, self._enrolled)
        elif isinstance(message, Challenge):
            self._nonce, self._sent, self._known = message.nonce, None, {}
            self._next = 0.0
        elif isinstance(message, SocketsWanted):
            await self._tell_sockets()
        elif isinstance(message, KeyReleased | KeyRefused):
            self._up.unlocks.take(message)
        elif isinstance(message, Certificate):
            self._renewing = False
            identity_of(message.chain, self._keys)
            renewed = Enrolled(
                site=self._enrolled.site,
                chain=message.chain,
                directive_key=self._enrolled.directive_key,
                root_metadata=self._enrolled.root_metadata,
            )
            await asyncio.to_thread(self._up.store.save_enrolled, renewed)
            self._up.redial.set()
        else:
            raise SessionEnded(refusal(message, "answer"))

    async def _tell_sockets(self) -> None:
        now = time.monotonic()
        if now - self._sockets_at < SOCKETS_GAP_S:
            return
        self._sockets_at = now
        try:
            report = await self._up.sockets()
        except OSError as error:  # no answer is told as "not known"; an empty one would be a lie
            log.warning("sockets: %s", error)
            return
        await self._socket.send(wire.encode(Sockets(report=report)))

    async def _answer(self, answer: Answer) -> None:
        sent, self._sent = self._sent, None
        self._nonce = answer.nonce
        self._log_wanted = answer.event_log_wanted
        self._ima_offset = answer.ima_offset
        self._next = time.monotonic() + self._interval_s * random.uniform(0.9, 1.0)  # noqa: S311  (jitter)
        if sent is None or answer.number != sent.number:
            return
        self._known = self._shown
        self._inventory = sent.inventory or self._inventory
        if answer.inventory_wanted and self._inventory is not None:
            await self._socket.send(wire.encode(Inventory(packed=self._inventory.packed)))
        for finding in answer.findings:
            log.info("controller: %s: %s", finding.code, finding.detail)
        self._up.packages.reported(sent.measured.packages)
        loop, number = self._up.loop, self._number
        if not self._answered:
            self._answered = True
            notify(ANSWERED)
        await self._up.ask(lambda: self._up.reporter.arrived(sent))
        await self._up.ask(
            lambda: loop.answered(
                number, named_pending=sent.pending, events_acked=answer.events_acked, healed=sent.healed
            )
        )
        if answer.directive is not None:
            await self._up.directive(answer.directive, self._enrolled)
        if sent.events and not answer.events_acked:
            return  # the report was refused: what it carried goes with the next one, at its time
        if await self._up.ask(lambda: bool(loop.spool.peek(1, 1))):
            self._up.due.set()

    async def _renew_if_time(self) -> None:
        if not self._renewing and self._sent is None and time.time() >= self._identity.renew_at():
            self._renewing = True
            csr = signing_request(self._keys, self._up.config.node)
            await self._socket.send(wire.encode(Renew(csr=csr)))


def _order(reader: asyncio.Task[object]) -> Order | None:
    """Return the order that was read; None where it is something else, an error or nothing yet."""
    if not reader.done() or reader.cancelled() or reader.exception() is not None:
        return None
    message = reader.result()
    return message if isinstance(message, Order) else None


async def _ended(task: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """End a task and wait for it.

    It is not awaited itself: who stops the agent in this moment must not be taken for the task's own end.
    """
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def receive(socket_: WebSocket) -> object:
    """Return the next message. Raises OSError when there is none, Rejected when it is none of ours."""
    frame = await socket_.receive()
    return wire.decode(frame, cast(type[Message], FromController), max_bytes=MAX_FRAME_BYTES)


def refusal(message: object, wanted: str) -> str:
    """Say in words what came in place of what was wanted."""
    if isinstance(message, Refused):
        return f"refused: {message.code}: {message.detail}"
    return f"wanted {wanted}, found {type(message).__name__}"
