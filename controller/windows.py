"""Maintenance windows: whether one is open at a moment, by the clock of its time zone. Pure, but for the zone's own table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from contract.errors import Rejected
from controller.rollout_records import Window

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def checked(windows: Sequence[Window]) -> None:
    """Raises Rejected `window.zone`, `window.empty`."""
    for window in windows:
        zone(window.zone)
        if window.begins == window.ends:
            raise Rejected(
                "window.empty", f"it begins and ends at {window.begins}; leave windows out for any time"
            )


def zone(name: str) -> ZoneInfo:
    """Return a time zone by its name. Raises Rejected `window.zone`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Rejected("window.zone", f"{name!r}: wanted a name as in Europe/Paris") from None


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Say whether any of them is open at `now`, seconds since 1970; where there is none, always."""
    return not windows or any(_is_open(window, now) for window in windows)


def _is_open(window: Window, now: float) -> bool:
    here = datetime.fromtimestamp(now, zone(window.zone))
    clock = here.strftime("%H:%M")
    if window.begins < window.ends:
        return _DAYS[here.weekday()] in window.days and window.begins <= clock < window.ends
    if clock >= window.begins:
        return _DAYS[here.weekday()] in window.days
    yesterday = here - timedelta(days=1)
    return clock < window.ends and _DAYS[yesterday.weekday()] in window.days
