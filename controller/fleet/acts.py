"""What every act of a person has: an actor, a reason, a line in the audit trail and an event."""

from __future__ import annotations

from contract.errors import Rejected
from contract.messages import Severity
from controller.store import Transaction, audit, events

MAX_REASON_CHARS = 1024


def checked_reason(untrusted_reason: str) -> str:
    """Return the reason without outer space. Raises Rejected `reason.missing`, `reason.too-long`."""
    reason = untrusted_reason.strip()
    if not reason:
        raise Rejected("reason.missing", "say why: it is kept with the act")
    if len(reason) > MAX_REASON_CHARS:
        raise Rejected("reason.too-long", f"{len(reason)} characters, at most {MAX_REASON_CHARS}")
    return reason


def record(
    tx: Transaction,
    kind: str,
    summary: str,
    *,
    actor: str,
    target: str,
    reason: str,
    now: float,
    severity: Severity = "info",
    node: str | None = None,
    site: str | None = None,
) -> None:
    """Write the act down, in the trail and among the events."""
    audit.note(tx, actor=actor, act=kind, target=target, reason=reason, now=now)
    detail = {"actor": actor, "reason": reason}
    events.add(tx, kind, severity, summary, now=now, node=node, site=site, detail=detail)
