"""Repairs by the process beside this one: the agent asks, `agent.repairing` does it. And the few looks that are root's alone.

An order names a section, the keys that were found wrong, and the signed baseline that holds them: the other side reads that baseline
itself and believes nothing else. It is started by the first order (a socket of systemd's) and ends when there is nothing to do, so an
order that changes nothing is not said again and again: what was still wrong after one waits, twice as long each time.

Refuses: to hang: an order that takes too long is given up and told; the other side goes on. The firewall is looked at meanwhile.
Relies on: `agent.frames`; the worker thread alone calling.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Hashable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.budget import Cost
from agent.clock import KernelClock
from agent.exhibits import Exhibit
from agent.frames import receive, send
from agent.hands import Acted, OwnHands
from agent.probes import ControllerEndpoint, Notice, Probe, SectionBase
from contract.messages import BaselineRef, Drift, Message, Posture

_ANSWER_S: Final = 30.0
SILENT_S: Final = 60.0
"""For so long nobody is asked again who did not answer within that time: the watchdog's patience is 60 s for a whole round."""
_BREATH_MS: Final = 10
_FIRST_PAUSE_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 900.0
_CHUNK_BYTES: Final = 65536
LOOKED_AT_EVERY_S: Final = 300.0


class Order(Message, frozen=True, kw_only=True, tag="order"):
    """What is to be done."""

    verb: Literal["greet", "look", "settle", "repair", "undo"]
    section: str = ""
    ref: BaselineRef | None = None
    """The baseline that the section stands in."""
    successor: BaselineRef | None = None
    """Of `undo`: the one whose section takes over what it governs too."""
    keys: tuple[str, ...] = ()
    """Of `repair`: what was found wrong. Of `look`: the kernel settings that root alone may read."""
    grants: tuple[int, ...] = ()
    """Those that the agent holds open."""
    posture: Posture = "normal"
    controller: tuple[ControllerEndpoint, ...] = ()


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """What came of it."""

    error: str = ""
    exhibits: tuple[Exhibit, ...] = ()
    notices: tuple[Notice, ...] = ()
    marks: dict[str, str] = msgspec.field(default_factory=dict)
    processor_s: float = 0.0
    written_bytes: int = 0
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    """Of `look`, those that could be read."""
    clock: KernelClock | None = None


class Line:
    """The way to the other side: one connection for each order."""

    def __init__(self, path: Path, breathe: Callable[[], None]) -> None:
        self.path = path
        self._breathe = breathe
        self._silent_until = 0.0

    def ask(self, order: Order) -> Done:
        """Return the answer to an order. Raises OSError with the reason, for people."""
        try:
            if time.monotonic() < self._silent_until:
                raise TimeoutError(errno.ETIMEDOUT, "no answer a moment ago")
            return self._asked(order)
        except OSError as error:
            said = f"the unit for repairs does not answer at {self.path}: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, said) from None

    def _asked(self, order: Order) -> Done:
        said = BytesIO()
        send(said, order)
        until = time.monotonic() + _ANSWER_S
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self.path))
            connection.sendall(said.getvalue())
            connection.shutdown(socket.SHUT_WR)
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            answer = bytearray()
            while True:
                if not poll.poll(_BREATH_MS):
                    self._breathe()
                    if time.monotonic() > until:
                        self._silent_until = time.monotonic() + SILENT_S
                        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {_ANSWER_S:g} s")
                    continue
                part = connection.recv(_CHUNK_BYTES)
                if not part:
                    return receive(BytesIO(answer), Done)
                answer += part


class RootsLooks:
    """What only root may read, as it was a while ago: each start of the other side costs as much as a hundred looks."""

    def __init__(self, line: Line, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._line = line
        self._monotonic = monotonic
        self._wanted: set[str] = set()
        self._seen: tuple[float, Done] | None = None

    def forget(self) -> None:
        """Look anew: something was changed."""
        self._seen = None

    def setting(self, path: str) -> str:
        """Return a kernel setting. Raises PermissionError where not even root may read it, OSError where nobody answers."""
        if path not in self._wanted:
            self._wanted.add(path)
            self._seen = None
        value = self._look().settings.get(path)
        if value is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return value

    def clock(self) -> KernelClock:
        """Return what the kernel says of its clock, as `agent.clock.Clock.kernel` does."""
        found = self._look().clock
        if found is None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "adjtimex")
        return found

    def _look(self) -> Done:
        now = self._monotonic()
        if self._seen is None or not 0 <= now - self._seen[0] < LOOKED_AT_EVERY_S:
            self._seen = now, self._line.ask(Order(verb="look", keys=tuple(sorted(self._wanted))))
        return self._seen[1]


class BesideHands:
    """Sends orders; what the agent may do itself (`Probe.by_hands`), `own` does. `looks` are forgotten with each order."""

    def __init__(
        self, line: Line, own: OwnHands, looks: RootsLooks, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._line = line
        self._own = own
        self._looks = looks
        self._monotonic = monotonic
        self._tried: dict[tuple[Hashable, ...], tuple[float, float]] = {}
        """What was ordered -> when it may be again, and how long that pause is."""
        self._silent = False
        """Nobody answers, and that was told; what is wrong meanwhile stays reported as such."""

    def greet(self) -> str:
        """Have the other side take note of whom this node trusts; return why it does not, for people."""
        try:
            return self._line.ask(Order(verb="greet")).error
        except OSError as error:
            self._silent = True
            return str(error.strerror)

    def settle(self, probe: Probe[SectionBase], now: float) -> None:
        """Order it where something waits that has not waited before. What cannot be done is found by the look that follows."""
        if not probe.by_hands:
            self._own.settle(probe, now)
            return
        waiting = self._due(
            probe.name, "settle", {("settle", probe.name, each) for each in probe.unsettled()}
        )
        if waiting:
            self._order(probe, _order("settle", probe))

    def repair(self, probe: Probe[SectionBase], wrong: Sequence[Drift], now: float) -> Acted:
        """Order it, but for what a try of a moment ago has left as it was."""
        if not probe.by_hands:
            return self._own.repair(probe, wrong, now)
        due = self._due(
            probe.name, "repair", {("repair", probe.name, each.key, each.since) for each in wrong}
        )
        keys = tuple(each.key for each in wrong if ("repair", probe.name, each.key, each.since) in due)
        resting = {each.key for each in wrong} - set(keys)
        acted = self._order(probe, _order("repair", probe, keys)) if keys else Acted()
        return acted._replace(untried={*acted.untried, *resting})

    def undo(self, probe: Probe[SectionBase]) -> str:
        """Order it; return why it could not be done, for people."""
        if not probe.by_hands:
            return self._own.undo(probe)
        probe.leave()
        return self._order(probe, _order("undo", probe)).error

    def _order(self, probe: Probe[SectionBase], order: Order) -> Acted:
        self._looks.forget()
        try:
            done = self._line.ask(order)
        except OSError as error:
            for each in [each for each in self._tried if each[1] == probe.name]:
                del self._tried[each]  # nothing was tried
            told, self._silent = self._silent, True
            return Acted("" if told else str(error.strerror), untried=order.keys)
        self._silent = False
        probe.acted += done.notices
        probe.marks = {key: value for key, value in {**probe.marks, **done.marks}.items() if value}
        return Acted(done.error, done.exhibits, Cost(done.processor_s, done.written_bytes))

    def _due(self, section: str, verb: str, wanted: set[tuple[Hashable, ...]]) -> set[tuple[Hashable, ...]]:
        """Return what is not to wait any longer, and note that it is tried now; what is not wanted any more is forgotten."""
        now, due = self._monotonic(), set()
        for each in [each for each in self._tried if each[:2] == (verb, section) and each not in wanted]:
            del self._tried[each]
        for each in wanted:
            again, pause = self._tried.get(each, (now, _FIRST_PAUSE_S / 2))
            if again <= now:
                due.add(each)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                self._tried[each] = now + pause, pause
        return due


def _order(
    verb: Literal["settle", "repair", "undo"], probe: Probe[SectionBase], keys: tuple[str, ...] = ()
) -> Order:
    around = probe.around
    return Order(
        verb=verb,
        section=probe.name,
        ref=probe.ref,
        successor=probe.successor.ref if probe.successor is not None else None,
        keys=keys,
        grants=tuple(each.id for each in around.grants),
        posture=around.posture,
        controller=around.controller,
    )
