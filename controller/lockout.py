"""How long a name must wait after wrong tries. Pure: the count is the database's, so that it is exact on any number of controllers."""

from __future__ import annotations

from typing import Final

FREE_TRIES: Final = 5
FIRST_WAIT_S: Final = 60.0
LONGEST_WAIT_S: Final = 3600.0
FORGOTTEN_AFTER_S: Final = 86400.0


def wait_s(failures: int) -> float:
    """Return how long after the last failure the next try may come: 0 for the first five, then a minute, two, up to an hour."""
    if failures < FREE_TRIES:
        return 0.0
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - FREE_TRIES, 16))


def left_s(failures: int, failed_at: float, now: float) -> float:
    """Return how long a name must wait still."""
    if not 0 <= now - failed_at < FORGOTTEN_AFTER_S:
        return 0.0 if now >= failed_at else wait_s(failures)
    return max(0.0, failed_at + wait_s(failures) - now)
