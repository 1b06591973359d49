"""Where a node stands, from its record and the time. Pure.

Five different things, never mixed: silence is not a failed appraisal, and a failed appraisal is not silence.
Refuses to do: change anything; `controller.fleet` stores what is said here and makes the events.
"""

from __future__ import annotations

from collections.abc import Mapping

from contract.messages import Tier
from controller.records import Standing

OVERDUE_INTERVALS = 1.5
UNREACHABLE_INTERVALS = 2.0
SILENCE_INTERVALS: Mapping[Standing, float] = {
    "healthy": OVERDUE_INTERVALS,
    "overdue": UNREACHABLE_INTERVALS,
}
"""After how much silence a node of this standing has another one."""


def standing(
    *,
    tier: Tier,
    held: bool,
    last_report_at: float | None,
    interval_s: float,
    now: float,
    started: float = 0.0,
) -> Standing:
    """Return the standing of a node at `now`.

    `held`: an isolation is in force on it or on its site. `last_report_at`: when evidence was last judged, None
    for never. `started`: when this controller came up; silence is counted from there at the earliest, since
    what nobody listened to is no silence. Isolation outranks distrust, distrust outranks silence: a node that
    failed its appraisal and then went quiet has not become merely quiet.
    """
    if held:
        return "isolated"
    if tier == "contraindicated":
        return "untrusted"
    if last_report_at is None or tier == "none":
        return "unreachable"
    silent_s = now - max(last_report_at, started)
    if silent_s >= UNREACHABLE_INTERVALS * interval_s:
        return "unreachable"
    if silent_s >= OVERDUE_INTERVALS * interval_s:
        return "overdue"
    return "healthy"
