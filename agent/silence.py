"""How long nobody has answered, over restarts: seconds of running, counted on the monotonic clock alone.

Refuses to read a clock that people can set. Relies on: the worker thread alone calling.
"""

from __future__ import annotations

from agent.hold import Hold

_SAVED_EVERY_S = 150.0
"""More than two of the usual intervals: at rest nothing is written."""


class Silence:
    """Of one node. `seconds` is what `agent.plan.stance` asks for."""

    def __init__(self, hold: Hold, *, monotonic_s: float, interval_s: float) -> None:
        self._hold = hold
        self._mark_s = monotonic_s
        self._saved_s = self.seconds = hold.state.offline_s
        self._every_s = max(_SAVED_EVERY_S, 2 * interval_s)

    def count(self, monotonic_s: float) -> None:
        """Another moment without an answer has gone."""
        self.seconds += max(0.0, monotonic_s - self._mark_s)
        self._mark_s = monotonic_s
        if self.seconds - self._saved_s >= self._every_s:
            self._saved_s = self.seconds
            self._hold.change(offline_s=self.seconds)

    def broken(self, monotonic_s: float) -> None:
        """The controller was heard: a report was answered, or a directive came that was written a short time ago."""
        self._mark_s, self.seconds = monotonic_s, 0.0
        if self._saved_s:
            self._saved_s = 0.0
            self._hold.change(offline_s=0.0)
