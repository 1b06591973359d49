"""How many failures one address may cause before it must wait: exact, and bounded in memory."""

from __future__ import annotations

from controller.budget import Later

WINDOW_S = 60.0
MAX_SOURCES = 65536


class Failures:
    """Failures by source within a window that begins with the first of them."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` failures of one source in WINDOW_S."""
        self._limit = limit
        self._seen: dict[str, tuple[float, int]] = {}

    def check(self, source: str, now: float) -> None:
        """Raise Rejected `limit.failures` when `source` has used up its failures. Nothing else is looked at then."""
        begun, count = self._seen.get(source, (now, 0))
        if now - begun >= WINDOW_S or now < begun:
            self._seen.pop(source, None)
        elif count >= self._limit:
            wait_s = WINDOW_S - (now - begun)
            raise Later("limit.failures", f"{count} failures; wait {wait_s:.0f} s", wait_s)

    def count(self, source: str, now: float) -> None:
        """Count one failure of `source`. Raises Rejected `limit.failures` where the limit was reached while this one was
        looked at: of many at once no more than the limit are told anything."""
        self.check(source, now)
        if source not in self._seen and len(self._seen) >= MAX_SOURCES:
            self._seen.pop(next(iter(self._seen)))
        begun, count = self._seen.get(source, (now, 0))
        self._seen[source] = (begun, count + 1)
