"""The pauses of Python's garbage collector, kept short where ten thousand nodes are connected.

A full collection looks at every object that is alive: a second for the five million of 10,000 sessions, every minute or two, in which
nothing is answered and no order is sent. So what one has left alive is taken out of sight (gc.freeze), and the next looks only at
what came since. What is freed by its count is freed as ever. What ended in a circle after that stays, until everything is looked at
once more: that is due when many sessions have ended, since each leaves such circles.

Relies on: CPython's `gc.freeze`, and callbacks that are called when a collection is over.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LEAST_ENDED: Final = 2000
"""Sessions; each leaves some fifty objects behind."""
_FULL = 2


class Heap:
    """When everything is looked at once more."""

    def __init__(self) -> None:
        self._tidied_at = 0

    def tidy(self, ended: int, connected: int) -> bool:
        """Collect everything where so many sessions have `ended` since it was last done that it is due; tell whether it was."""
        if ended - self._tidied_at < max(LEAST_ENDED, connected // 2):
            return False
        self._tidied_at = ended
        gc.unfreeze()
        gc.collect()
        return True


@contextmanager
def short_pauses() -> Iterator[None]:
    """Within, what a full collection of this process has left alive is out of the next one's sight."""
    gc.callbacks.append(_after)
    try:
        yield
    finally:
        gc.callbacks.remove(_after)
        gc.unfreeze()


def _after(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == _FULL:
        gc.freeze()
