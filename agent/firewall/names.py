"""Addresses of the names that zones use, asked for on a thread of its own, so that a slow name server delays nobody.

Whoever answers the node's DNS queries decides what a name means here; nothing in this file can change that. What it does:
an address that a name no longer leads to leaves after `lifetime_s`, and so do all of them when no answer comes; a name has
at most 64 addresses; nothing that is loopback, multicast or unspecified is taken; and the kernel forgets each by itself.

Refuses to read the answer's own time to live (getaddrinfo(3) does not tell it): the lifetime is the baseline's.
Relies on: a rule of the same baseline that lets the queries out.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping

MAX_ADDRESSES = 64
"""Of one name. More is told, and only the first ones (sorted) are taken."""
FADES_S = 2.0
"""So long before and after its end an element may be in the kernel or not."""
_RETRY_S = 5.0
_MIN_WAIT_S = 1.0

Addresses = dict[str, float]
"""Address to when it ends, on the monotonic clock."""


def lookup(name: str) -> list[str]:
    """Return the addresses of a name as this machine resolves it. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return sorted({str(each[4][0]) for each in found})


class Names:
    """Keeps the addresses of `lifetimes_s` (name to seconds). `wake()` is called from its thread when they change."""

    def __init__(
        self,
        lifetimes_s: Mapping[str, int],
        wake: Callable[[], object],
        *,
        resolve: Callable[[str], list[str]] = lookup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetimes_s = dict(lifetimes_s)
        self._wake = wake
        self._resolve = resolve
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, Addresses] = {name: {} for name in lifetimes_s}
        self._failed: dict[str, str] = {}
        self._version = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="names", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, without waiting for an answer that it waits for."""
        self._stopping.set()

    @property
    def version(self) -> int:
        """Another number whenever addresses or their ends have changed."""
        with self._lock:
            self._drop_ended()
            return self._version

    def now(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Return each name's addresses with the seconds for which they still hold."""
        with self._lock:
            self._drop_ended()
            at = self._clock()
            return {
                name: tuple((each, max(1, math.ceil(end - at))) for each, end in sorted(addresses.items()))
                for name, addresses in self._found.items()
            }

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
        """Return why a name has no answer, by name."""
        with self._lock:
            return dict(self._failed)

    def ask(self, name: str) -> None:
        """Resolve one name now."""
        try:
            answer, problem = _usable(self._resolve(name)), ""
        except (OSError, UnicodeError) as error:
            answer, problem = [], str(getattr(error, "strerror", None) or error)
        if not problem and not answer:
            problem = "no address that can be used"
        if len(answer) > MAX_ADDRESSES:
            problem = f"{len(answer)} addresses, only {MAX_ADDRESSES} are taken"
            answer = answer[:MAX_ADDRESSES]
        with self._lock:
            before = dict(self._failed)
            if problem:
                self._failed[name] = problem
            else:
                self._failed.pop(name, None)
            end = self._clock() + self._lifetimes_s[name]
            held = self._found[name]
            for each in answer:
                if each in held or len(held) < MAX_ADDRESSES:
                    held[each] = end
            changed = bool(answer) or before != self._failed
            self._version += bool(answer)
        if changed:
            self._wake()

    def _run(self) -> None:
        due = dict.fromkeys(self._lifetimes_s, self._clock())
        while due and not self._stopping.is_set():
            for name in [each for each, at in due.items() if at <= self._clock()]:
                self.ask(name)
                late = self._lifetimes_s[name] / 2 if name not in self.failed() else _RETRY_S
                due[name] = self._clock() + late
            self._stopping.wait(max(_MIN_WAIT_S, min(due.values()) - self._clock()))

    def _drop_ended(self) -> None:
        at = self._clock()
        for addresses in self._found.values():
            for each in [each for each, end in addresses.items() if end + FADES_S < at]:
                del addresses[each]
                self._version += 1


def _usable(untrusted: list[str]) -> list[str]:
    """Return the addresses in one spelling, sorted, without such as no server has."""
    found = set()
    for text in untrusted:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:  # with a zone id: link-local
            continue
        if not (
            address.is_loopback
            or address.is_multicast
            or address.is_unspecified
            or address.is_link_local
            or getattr(address, "ipv4_mapped", None)
        ):
            found.add(address)
    return [str(each) for each in sorted(found, key=lambda each: (each.version, int(each)))]
