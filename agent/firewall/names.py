"""Addresses of the names that zones use, asked for on threads of their own, so that a slow name server delays nobody.

Whoever answers the node's DNS queries decides what a name means here; nothing in this file can change that. What it does:
an address that a name no longer leads to leaves after `lifetime_s`, and so do all of them when no answer comes; a name has
at most 64 addresses; answers that lead inside are refused (`agent.firewall.answers`); a change is put on record; and
the kernel forgets each address by itself, also when this program is dead.

Refuses to read the answer's own time to live (getaddrinfo(3) does not tell it): the lifetime is the baseline's. A name is
asked for as it stands, with a final dot: no search list of whoever gave out the lease, and no /etc/hosts.
Relies on: a rule of the same baseline that lets the queries out.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from agent.firewall.answers import sorted_out
from agent.firewall.section import Zone

MAX_ADDRESSES = 64
"""Of one name. More is told, and only the first ones (sorted) are taken."""
FADES_S = 2.0
"""So long before and after its end an element may be in the kernel or not."""
_RETRY_S = 5.0
_MIN_WAIT_S = 1.0
_THREADS = 4
"""A name whose server never answers holds up one of them."""
_FIRST_ANSWER_S = 10.0
_TOLD_EVERY_S = 300.0
"""Whoever answers the queries must not be able to fill the node's spool of events."""

Addresses = dict[str, float]
"""Address to when it ends, on the monotonic clock."""


class Terms(NamedTuple):
    """What a baseline says about a name."""

    lifetime_s: int
    private: bool


class Change(NamedTuple):
    """A name leads elsewhere than when it was last told."""

    name: str
    before: tuple[str, ...]
    now: tuple[str, ...]


class Snapshot(NamedTuple):
    """What names lead to at one moment."""

    version: int
    """Another number whenever addresses or their ends have changed."""
    addresses: dict[str, tuple[tuple[str, int], ...]]
    """Each name's, with the seconds for which they still hold."""
    untold: frozenset[str]
    """Names whose first answer is still waited for, as long as that may take."""


def lookup(name: str) -> list[str]:
    """Return the addresses of a name as this machine's resolver finds them. Raises OSError."""
    found = socket.getaddrinfo(name.encode("ascii") + b".", None, type=socket.SOCK_STREAM)
    return sorted({str(each[4][0]) for each in found})


def terms_of(zones: Iterable[Zone]) -> dict[str, Terms]:
    """Return every name of the zones with its terms; the section has seen to it that they agree."""
    return {name: Terms(zone.names_lifetime_s, zone.names_private) for zone in zones for name in zone.names}


class Names:
    """Keeps the addresses of names. `wake()` is called from its threads when addresses or problems change."""

    def __init__(
        self,
        terms: Mapping[str, Terms],
        wake: Callable[[], object],
        *,
        resolve: Callable[[str], list[str]] = lookup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terms = dict(terms)
        self._wake = wake
        self._resolve = resolve
        self._clock = clock
        self._lock = threading.Lock()
        self._controller: frozenset[str] = frozenset()
        self._found: dict[str, Addresses] = {name: {} for name in terms}
        self._begun_at = clock()
        self._asked_at = dict.fromkeys(terms, self._begun_at)
        self._failed: dict[str, str] = {}
        self._objections: dict[str, str] = {}
        self._answers: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, tuple[tuple[str, ...], float]] = {}
        self._version = 0
        self._stopping = threading.Event()
        self._due = dict.fromkeys(terms, clock())
        """When to ask again; a name that is being asked for is not in it."""
        for number in range(min(_THREADS, len(terms))):
            threading.Thread(target=self._run, name=f"names-{number}", daemon=True).start()

    def stop(self) -> None:
        """End the threads, without waiting for an answer that they wait for."""
        self._stopping.set()

    def keep_from(self, controller: Collection[str]) -> None:
        """Say which addresses are the controller's: no name may lead there."""
        with self._lock:
            if self._controller != frozenset(controller):
                self._controller = frozenset(controller)
                for addresses in self._found.values():
                    kept = sorted_out(addresses, private=True, controller=self._controller).taken
                    for each in addresses.keys() - set(kept):
                        del addresses[each]
                        self._version += 1

    def snapshot(self) -> Snapshot:
        """Return all that is known at one moment."""
        with self._lock:
            self._drop_ended()
            at = self._clock()
            addresses = {
                name: tuple((each, max(1, math.ceil(end - at))) for each, end in sorted(held.items()))
                for name, held in self._found.items()
            }
            young = at - self._begun_at <= _FIRST_ANSWER_S
            untold = frozenset(
                name for name, asked_at in self._asked_at.items() if young and asked_at == self._begun_at
            )
            return Snapshot(self._version, addresses, untold)

    def fading(self) -> frozenset[str]:
        """Return the addresses that end about now: in the kernel or not, both is right."""
        with self._lock:
            at = self._clock()
            return frozenset(
                each
                for addresses in self._found.values()
                for each, end in addresses.items()
                if end - at < FADES_S
            )

    def failed(self) -> dict[str, str]:
        """Return why a name has no answer, by name; also where the resolver has said nothing for too long."""
        with self._lock:
            at = self._clock()
            silent = {
                name: f"no answer for {at - since:.0f} s"
                for name, since in self._asked_at.items()
                if at - since > self._terms[name].lifetime_s
            }
            return silent | self._failed

    def objections(self) -> dict[str, str]:
        """Return which answers were not taken, by name."""
        with self._lock:
            return dict(self._objections)

    def changes(self) -> list[Change]:
        """Return what leads elsewhere since it was last told; each name at most once in five minutes."""
        out = []
        with self._lock:
            at = self._clock()
            for name, answer in self._answers.items():
                before, told_at = self._told.get(name, ((), -math.inf))
                if answer != before and at - told_at >= _TOLD_EVERY_S:
                    out.append(Change(name, before, answer))
                    self._told[name] = (answer, at)
        return out

    def ask(self, name: str) -> None:
        """Resolve one name now."""
        terms, problem = self._terms[name], ""
        try:
            untrusted = self._resolve(name)
        except (OSError, UnicodeError) as error:
            untrusted, problem = [], str(getattr(error, "strerror", None) or error)
        with self._lock:
            answers = sorted_out(untrusted, private=terms.private, controller=self._controller)
            objections, taken = answers.objection(), answers.taken[:MAX_ADDRESSES]
            if len(answers.taken) > MAX_ADDRESSES:
                objections = f"{len(answers.taken)} addresses, only {MAX_ADDRESSES} are taken; {objections}"
            before = self._failed.get(name, ""), self._objections.get(name, "")
            _put(self._failed, name, problem)
            if not problem:
                _put(self._objections, name, objections.rstrip("; "))
                self._answers[name] = taken
            self._asked_at[name] = self._clock()
            self._take(name, taken)
            changed = bool(taken) or before != (problem, self._objections.get(name, ""))
        if changed:
            self._wake()

    def _take(self, name: str, taken: tuple[str, ...]) -> None:
        end = self._clock() + self._terms[name].lifetime_s
        held = self._found[name]
        held.update(dict.fromkeys(taken, end))
        # What was named longest ago makes room.
        for each in sorted(held, key=lambda address: held[address])[: max(0, len(held) - MAX_ADDRESSES)]:
            del held[each]
        self._version += bool(taken)

    def _run(self) -> None:
        while not self._stopping.is_set():
            name, wait_s = self._next()
            if name is None:
                self._stopping.wait(wait_s)
                continue
            self.ask(name)
            with self._lock:
                late = self._terms[name].lifetime_s / 2 if name not in self._failed else _RETRY_S
                self._due[name] = self._clock() + late

    def _next(self) -> tuple[str | None, float]:
        """Take the name that is due, or tell how long to wait."""
        with self._lock:
            at = self._clock()
            name = min(self._due, key=lambda each: self._due[each], default=None)
            if name is None or self._due[name] > at:
                until = self._due[name] - at if name is not None else _RETRY_S
                return None, min(_RETRY_S, max(_MIN_WAIT_S, until))
            del self._due[name]
            return name, 0.0

    def _drop_ended(self) -> None:
        at = self._clock()
        for addresses in self._found.values():
            for each in [each for each, end in addresses.items() if end + FADES_S < at]:
                del addresses[each]
                self._version += 1


def _put(where: dict[str, str], name: str, text: str) -> None:
    if text:
        where[name] = text
    else:
        where.pop(name, None)
