"""Who is let in next when more connect at once than hands can be shaken: each address in turn.

Connections wait here after accept and before TLS. One address, a flood or ten thousand nodes behind one router, never takes more
than its share of the room, and never more than every other turn while another address waits. Of one address the newest goes first:
where more come than can be served, whoever has waited longest is about to give up, and hands shaken with those are shaken for
nothing, again and again. Refuses to do: sockets' I/O, clocks.

Beginning to shake hands costs the event loop about a millisecond each, so of those let in only so many begin in one turn of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closing(Protocol):
    """What waits: a socket."""

    def close(self) -> None:
        """Turn it away."""


T = TypeVar("T", bound=Closing)


class WaitingRoom(Generic[T]):
    """Connections by source, in the order in which sources have their turn. Times are of one clock that nobody sets, in seconds."""

    def __init__(self, *, places: int, patience_s: float) -> None:
        """So many may wait; after `patience_s` the other side has given up, and is turned away."""
        self._places = places
        self._patience_s = patience_s
        self._queues: OrderedDict[str, deque[tuple[float, T]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def add(self, source: str, connection: T, now: float) -> bool:
        """Let it wait; False, and nothing is kept, where its source has its share of the room already."""
        queue = self._queues.get(source)
        share = self._places // (len(self._queues) + (queue is None) + 1)
        if len(queue or ()) >= max(1, share) or self._count >= self._places:
            return False
        if queue is None:
            queue = self._queues[source] = deque()
        queue.append((now, connection))
        self._count += 1
        return True

    def next(self, full: Callable[[str], bool], now: float) -> tuple[str, T] | None:
        """Return who came last of the source whose turn it is; a source that is `full` is passed over. None: nobody."""
        for source in list(self._queues):
            if full(source):
                continue
            queue = self._queues[source]
            _, connection = queue.pop()
            self._count -= 1
            if queue:
                self._queues.move_to_end(source)
            else:
                del self._queues[source]
            return source, connection
        return None

    def expire(self, now: float) -> int:
        """Turn those away who have waited too long; returns how many."""
        turned = 0
        for source in list(self._queues):
            queue = self._queues[source]
            while queue and now - queue[0][0] >= self._patience_s:
                queue.popleft()[1].close()
                turned += 1
            if not queue:
                del self._queues[source]
        self._count -= turned
        return turned

    def close(self) -> None:
        """Turn everybody away."""
        for queue in self._queues.values():
            for _, connection in queue:
                connection.close()
        self._queues.clear()
        self._count = 0


class Turns:
    """So many in one turn of the event loop; who comes later waits for a later one, in order."""

    def __init__(self, each: int) -> None:
        """Let `each` pass in one turn."""
        self._each = each
        self._left = each
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def come(self) -> None:
        """Return when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._left == self._each:
            loop.call_soon(self._next)
        if self._left:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        self._left = self._each
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # who was cancelled is passed over
                turn.set_result(None)
                self._left -= 1
        if self._left < self._each:
            asyncio.get_running_loop().call_soon(self._next)
