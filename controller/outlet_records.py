"""What the API shows of outlets. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from controller.records import Record


class OutletView(Record, frozen=True, kw_only=True):
    """Whether a receiver takes events, and how far it is."""

    name: str
    kind: str
    delivered: int
    delivered_at: float | None
    behind: int
    """Ids between the last event sent or passed over and the newest one."""
    failing_since: float | None
    attempts: int
    next_at: float | None
    """When it is tried again; null where nothing is wrong."""
    why: str
    dead_letters: int


class DeadLetter(Record, frozen=True, kw_only=True):
    """An event that a receiver will never take."""

    event: int
    why: str
    at: float
