"""A bell that wakes everyone who waits for something new. It carries nothing: who is woken looks again."""

from __future__ import annotations

import asyncio


class Bell:
    """Rings for all who listen at that moment."""

    def __init__(self) -> None:
        """Make a silent bell."""
        self._next: asyncio.Future[None] | None = None

    def listen(self) -> asyncio.Future[None]:
        """Return a future that is done at the next ring. Listen before looking, so that no ring is missed."""
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def ring(self) -> None:
        """Wake all who listen."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
