"""What the API shows of a database that was put back to an earlier day."""

from __future__ import annotations

from controller.records import Record


class WaitingRestore(Record, frozen=True, kw_only=True):
    """A restore that waits for a person, and what stands against going on."""

    restored_at: float
    backup_at: float
    """What happened between this and `restored_at` is not known here."""
    ahead: int
    """Nodes that hold a newer baseline than the one chosen for them, or another: confirming tells them to take that one."""
    unheard: int
    """Nodes without a report since: what they hold by now is not known."""


class RestoreView(Record, frozen=True, kw_only=True):
    """Whether a restore waits for a person."""

    waiting: WaitingRestore | None


class AheadNode(Record, frozen=True, kw_only=True):
    """A node that is ahead of the restored database."""

    node: str
    site: str
    holds: str
    """By its newest report, as selectors name it: `factory/4`."""
    chosen: str
