"""Use cases of boots: which one a node is held to, which one was seen last, and what its log claimed."""

from __future__ import annotations

import msgspec

from contract.bootreference import Reference, succession
from contract.errors import Rejected
from contract.messages import Tier
from contract.wire import decode, encode
from controller import judge
from controller.fleet import acts
from controller.records import MAX_REFERENCE_BYTES, Change, Evidence
from controller.store import Transaction, events, nodes, notices
from controller.store import boots as rows
from controller.store.nodes import NodeRow


def remember(tx: Transaction, row: NodeRow, evidence: Evidence, tier: Tier, now: float) -> None:
    """Keep what a report has shown of its boot; nothing where it has shown nothing new.

    The first good boot becomes the reference, and so does one whose differences were all announced. Any other that has
    something to be said about it is kept as the candidate that a person may accept.
    """
    before = row.state.boot
    if before is not None and before.reset != evidence.boot.reset:
        _tell(tx, row, "node.rebooted", f"{row.node} has booted", now)
    if evidence.claims is not None:
        rows.set_claims(tx, row.node, evidence.claims, now)
    seen = evidence.reference
    if seen is None:
        if row.reference_at is not None and evidence.boot != before:  # the accepted boot is back
            rows.set_reference(tx, row.node, reference=None, accepted_at=None, candidate=None)
        return
    refused = any(judge.weight(f.code) == "contraindicated" for f in evidence.boot.findings)
    if not refused and evidence.announced:
        adopted = _in_place_of(rows.reference(tx, row.node), seen)
        rows.set_reference(tx, row.node, reference=adopted, accepted_at=now, candidate=None)
        what = "; ".join(evidence.announced)
        text = f"{row.node} has booted what was announced: {what}"
        _tell(tx, row, "boot.announced", text[:2048], now)
    elif not refused and row.reference_at is None and tier != "contraindicated":
        rows.set_reference(tx, row.node, reference=seen, accepted_at=now, candidate=None)
        text = f"{row.node}: this boot is from now on the reference"
        _tell(tx, row, "boot.reference-learned", text, now)
    else:
        differs = bool(evidence.boot.findings) or row.reference_at is None
        anew = None if differs else _described_anew(rows.reference(tx, row.node), seen)
        rows.set_reference(
            tx, row.node, reference=anew, accepted_at=row.reference_at, candidate=seen if differs else None
        )


def reference(tx: Transaction, node: str) -> bytes | None:
    """See Fleet.boot_reference."""
    return rows.reference(tx, node)


def _tell(tx: Transaction, row: NodeRow, kind: str, summary: str, now: float) -> None:
    events.add(tx, kind, "info", summary, now=now, node=row.node, site=row.site)


def _described_anew(before: bytes | None, after: bytes) -> bytes | None:
    """Return the same boot with what an earlier version did not note (which PCRs the log explained); None where all is there.

    Without it the node's next update could be neither announced nor asked about.
    """
    if before is None:
        return None
    old = decode(before, Reference, max_bytes=MAX_REFERENCE_BYTES)
    return None if old.explained else _in_place_of(before, after)


def _in_place_of(before: bytes | None, after: bytes) -> bytes:
    """Return the encoding of `after` as the reference that follows `before`: what it leaves may not come back."""
    if before is None:
        return after
    old, new = (decode(raw, Reference, max_bytes=MAX_REFERENCE_BYTES) for raw in (before, after))
    return encode(succession(old, new))


def accept_boot(tx: Transaction, node: str, *, actor: str, reason: str, now: float) -> Change:
    """See Fleet.accept_boot."""
    row = nodes.load(tx, node, lock=True)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    why = acts.checked_reason(reason)
    seen = rows.candidate(tx, node)
    if seen is None:
        raise Rejected("boot.no-candidate", f"{node} has shown no boot that differs from its reference")
    rows.set_reference(
        tx, node, reference=_in_place_of(rows.reference(tx, node), seen), accepted_at=now, candidate=None
    )
    # Without a boot on record the next report is appraised from its log anew.
    nodes.set_state(tx, node, msgspec.structs.replace(row.state, boot=None))
    acts.record(
        tx,
        "boot.accepted",
        f"{node}: changed boot accepted by {actor}: {why}"[:2048],
        actor=actor,
        target=f"node {node}",
        reason=why,
        now=now,
        severity="warning",
        node=node,
        site=row.site,
    )
    notices.ask(tx, [node])
    return Change(affected=[node])
