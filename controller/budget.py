"""How many requests an account may make in a minute: exact, also for those that come at the same time, and bounded in memory.

Counted by this controller alone: over several, an account has as much with each. A window begins with its first request.
"""

from __future__ import annotations

import math

from contract.errors import Rejected

WINDOW_S = 60.0
MAX_ACCOUNTS = 65536


class Later(Rejected):
    """Refused for now: the same again after `wait_s` seconds may do."""

    def __init__(self, code: str, detail: str, wait_s: float) -> None:
        super().__init__(code, detail)
        self.wait_s = wait_s

    @property
    def retry_after(self) -> str:
        """For the header Retry-After (RFC 9110, clause 10.2.3): whole seconds, at least one."""
        return str(max(1, math.ceil(self.wait_s)))


class Budget:
    """Requests by account."""

    def __init__(self, per_minute: int) -> None:
        """Allow `per_minute` requests of one account in WINDOW_S."""
        self._per_minute = per_minute
        self._spent: dict[str, tuple[float, int]] = {}

    def spend(self, account: str, clock: float) -> None:
        """Count one request at `clock`, in seconds of a clock that never goes back. Raises Later `limit.requests` when the account
        has none left; that one is not counted."""
        begun, spent = self._spent.pop(account, (clock, 0))
        if clock - begun >= WINDOW_S:
            begun, spent = clock, 0
        over = spent >= self._per_minute
        if len(self._spent) >= MAX_ACCOUNTS:  # the one that was away longest
            self._spent.pop(next(iter(self._spent)))
        self._spent[account] = (begun, spent if over else spent + 1)
        if over:
            wait_s = WINDOW_S - (clock - begun)
            raise Later("limit.requests", f"{spent} requests in a minute; wait {wait_s:.0f} s", wait_s)
