"""Use cases of grants and of break-glass codes: who may come, until when, approved by whom; and what nodes tell of it.

The controller chooses and records; what a grant may open is bounded by the node's signed baseline, and the node says so
when it refuses one. A request opens nothing: an approved grant travels in the node's next directive and leaves it when it
ends or is revoked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from contract.errors import Rejected
from contract.grant import MAX_CODES, MAX_GRANTS, CodeHash, Grant
from contract.messages import Event
from controller.fleet import acts
from controller.fleet.paging import cut, number
from controller.fleet.tokens import person_behind
from controller.grant_records import (
    CodeView,
    GrantChange,
    GrantContent,
    GrantRequest,
    GrantState,
    GrantView,
)
from controller.permissions import Scope
from controller.records import Change, Page
from controller.store import Transaction, audit, events, nodes
from controller.store import grants as rows
from controller.store.grants import GrantRow
from controller.store.nodes import NodeRow

MAX_SOURCES = 64
Codes = Callable[[list[int]], list[CodeHash]]
"""Given the ids of new codes, return their hashes."""


# -- grants ----------------------------------------------------------------------------------------------


def request(tx: Transaction, wanted: GrantRequest, *, actor: str, now: float) -> GrantView:
    """See Fleet.request_grant."""
    node = _node(tx, wanted.node, lock=True)
    starts = now if wanted.starts is None else wanted.starts
    if wanted.ends <= now:
        raise Rejected("grant.over", "it would have ended already")
    if rows.count_live(tx, node.node, now) >= MAX_GRANTS:
        raise Rejected("grant.too-many", f"{node.node} has {MAX_GRANTS}; revoke one, or wait until one ends")
    content = GrantContent(
        who=wanted.who,
        company=wanted.company,
        evidence=wanted.evidence,
        access=wanted.access,
        reason=wanted.reason,
    )
    made = rows.add(
        tx,
        node=node.node,
        site=node.site,
        content=content,
        starts=starts,
        ends=wanted.ends,
        actor=actor,
        now=now,
    )
    row = _grant(tx, made)
    travelling(msgspec.structs.replace(row, approved_by="-"))
    what = f"grant {made} for {node.node} asked for: {wanted.who} of {wanted.company}"
    _record(tx, "grant.requested", what, row, actor=actor, reason=wanted.reason, now=now)
    return _view(row, now)


def approve(tx: Transaction, grant: int, *, actor: str, reason: str, now: float) -> GrantChange:
    """See Fleet.approve_grant."""
    row = _grant(tx, grant, lock=True)
    why = acts.checked_reason(reason)
    node = _node(tx, row.node)
    if row.revoked_at is not None or row.approved_at is not None:
        raise Rejected("grant.decided", f"{_state(row, now)} already")
    if row.ends <= now:
        raise Rejected("grant.over", "its time is over; ask for a new one")
    if node.policy.grants_need_two_persons and person_behind(tx, actor) == person_behind(
        tx, row.requested_by
    ):
        raise Rejected("grant.same-person", f"{row.requested_by} asked for it: somebody else must approve it")
    rows.approve(tx, grant, actor=actor, now=now)
    nodes.set_due(tx, [row.node])
    _record(tx, "grant.approved", f"grant {grant} approved by {actor}", row, actor=actor, reason=why, now=now)
    return GrantChange(grant=_view(_grant(tx, grant), now), affected=[row.node])


def revoke(tx: Transaction, grant: int, *, actor: str, reason: str, now: float) -> GrantChange:
    """See Fleet.revoke_grant."""
    row = _grant(tx, grant, lock=True)
    why = acts.checked_reason(reason)
    if row.revoked_at is not None or row.ends <= now:
        raise Rejected("grant.decided", f"{_state(row, now)} already")
    rows.revoke(tx, grant, actor=actor, reason=why, now=now)
    nodes.set_due(tx, [row.node])
    _record(tx, "grant.revoked", f"grant {grant} revoked by {actor}", row, actor=actor, reason=why, now=now)
    return GrantChange(grant=_view(_grant(tx, grant), now), affected=[row.node])


def get(tx: Transaction, grant: int, *, now: float) -> GrantView:
    """See Fleet.grant."""
    return _view(_grant(tx, grant), now)


def list_(
    tx: Transaction,
    *,
    scope: Scope,
    node: str | None,
    site: str | None,
    ended: bool,
    after: str | None,
    limit: int,
    now: float,
) -> Page[GrantView]:
    """See Fleet.list_grants."""
    page = rows.page(
        tx,
        node=node,
        scope=scope.narrowed(site),
        live_at=None if ended else now,
        before=number(after),
        limit=limit + 1,
    )
    return cut([_view(row, now) for row in page], limit, lambda view: str(view.id))


def travelling(row: GrantRow) -> Grant:
    """Return a grant as it travels. Raises Rejected `grant.invalid` for one that no node would take."""
    content = row.content
    try:
        return Grant(
            id=row.id,
            who=content.who,
            company=content.company,
            evidence=content.evidence,
            access=content.access,
            starts=row.starts,
            ends=row.ends,
            reason=content.reason,
            requested_by=row.requested_by,
            approved_by=[row.approved_by or ""],
        )
    except ValueError as error:
        raise Rejected("grant.invalid", str(error)) from None


# -- break-glass codes -----------------------------------------------------------------------------------


def issue_codes(
    tx: Transaction, node: str, count: int, make: Codes, *, actor: str, reason: str, now: float
) -> Change:
    """See Fleet.issue_codes."""
    row = _node(tx, node, lock=True)
    why = acts.checked_reason(reason)
    there = len(rows.listed_codes(tx, [node], now).get(node, []))
    if there + count > MAX_CODES:
        raise Rejected("break-glass.too-many", f"{node} has {there}, at most {MAX_CODES}; revoke some first")
    made = [rows.reserve_code(tx, node=node, actor=actor, now=now) for _ in range(count)]
    for code in make(made):
        rows.set_hash(tx, code)
    nodes.set_due(tx, [node])
    summary = f"{count} break-glass codes for {node} issued by {actor}"
    _record_code(tx, "break-glass.issued", summary, row, actor=actor, reason=why, now=now)
    return Change(affected=[node])


def list_codes(tx: Transaction, node: str) -> list[CodeView]:
    """See Fleet.list_codes."""
    return rows.codes(tx, _node(tx, node).node)


def revoke_code(tx: Transaction, node: str, code: int, *, actor: str, reason: str, now: float) -> Change:
    """See Fleet.revoke_code."""
    row = _node(tx, node, lock=True)
    why = acts.checked_reason(reason)
    found = rows.code(tx, code)
    if found is None or found.node != node:
        raise Rejected("break-glass.unknown", f"{node} has no code {code}")
    if found.revoked_at is not None:
        raise Rejected("break-glass.decided", f"revoked by {found.revoked_by} already")
    rows.revoke_code(tx, code, actor=actor, now=now)
    nodes.set_due(tx, [node])
    summary = f"break-glass code {code} of {node} revoked by {actor}"
    _record_code(tx, "break-glass.revoked", summary, row, actor=actor, reason=why, now=now)
    return Change(affected=[node])


# -- what nodes tell -------------------------------------------------------------------------------------


def note(tx: Transaction, row: NodeRow, said: Sequence[Event], now: float) -> None:
    """Note what a node tells of its own grants and codes; telling it twice changes nothing."""
    for event in said:
        if event.kind.startswith("grant."):
            _note_grant(tx, row, event)
        elif event.kind == "break-glass.used":
            _note_code(tx, row, event, now)


def _note_grant(tx: Transaction, row: NodeRow, event: Event) -> None:
    grant = _told_id(event, "grant")
    found = rows.load(tx, grant, lock=True) if grant else None
    if found is None or found.node != row.node:
        return
    use, detail = found.use, event.detail
    if event.kind == "grant.opened":
        use = msgspec.structs.replace(
            use, opened_at=use.opened_at or event.at, closed_at=None, closed_why="", refused=""
        )
    elif event.kind == "grant.used":
        sources = list(dict.fromkeys([*use.sources, detail.get("source", "")]))[:MAX_SOURCES]
        use = msgspec.structs.replace(use, used_at=use.used_at or event.at, sources=sources)
    elif event.kind == "grant.closed":
        carried = detail.get("bytes", "")
        use = msgspec.structs.replace(
            use,
            closed_at=event.at,
            closed_why=detail.get("why", ""),
            bytes_carried=int(carried)
            if carried.isascii() and carried.isdigit() and len(carried) < 19
            else 0,
        )
    elif event.kind == "grant.refused":
        use = msgspec.structs.replace(use, refused=event.summary)
    rows.set_use(tx, found.id, use)


def _note_code(tx: Transaction, row: NodeRow, event: Event, now: float) -> None:
    number_ = _told_id(event, "code")
    found = rows.code(tx, number_) if number_ else None
    if found is None or found.node != row.node:
        return
    if found.used_at is None:
        rows.note_used(tx, found.id, at=event.at, now=now)
        _audit_code(tx, row, found.id, event.summary, now)
    elif found.used_at != event.at:
        events.add(
            tx,
            "break-glass.again",
            "critical",
            f"{row.node}: break-glass code {found.id} was used a second time: its state was put back",
            now=now,
            node=row.node,
            site=row.site,
        )
        _audit_code(tx, row, found.id, f"a second time: {event.summary}", now)


def _audit_code(tx: Transaction, row: NodeRow, code: int, what: str, now: float) -> None:
    """Nobody was logged in: whoever held the code acted, and the node tells of it."""
    actor, target = f"break-glass code {code}", f"node {row.node}"
    audit.note(tx, actor=actor, act="break-glass.used", target=target, reason=what[:1024], now=now)


def _told_id(event: Event, key: str) -> int:
    text = event.detail.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else 0


# -- inside ----------------------------------------------------------------------------------------------


def _node(tx: Transaction, node: str, *, lock: bool = False) -> NodeRow:
    row = nodes.load(tx, node, lock=lock)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    return row


def _grant(tx: Transaction, grant: int, *, lock: bool = False) -> GrantRow:
    row = rows.load(tx, grant, lock=lock)
    if row is None:
        raise Rejected("grant.unknown", str(grant))
    return row


def _state(row: GrantRow, now: float) -> GrantState:
    if row.revoked_at is not None:
        return "revoked"
    if row.approved_at is None:
        return "lapsed" if row.ends <= now else "requested"
    if row.ends <= now:
        return "ended"
    if row.use.refused:
        return "refused"
    return "open" if row.use.opened_at is not None and row.use.closed_at is None else "approved"


def _view(row: GrantRow, now: float) -> GrantView:
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    return GrantView(state=_state(row, now), **values)


def _record(
    tx: Transaction, kind: str, what: str, row: GrantRow, *, actor: str, reason: str, now: float
) -> None:
    acts.record(
        tx,
        kind,
        what[:2048],
        actor=actor,
        target=f"grant {row.id} node {row.node}",
        reason=reason,
        now=now,
        severity="warning" if kind != "grant.requested" else "info",
        node=row.node,
        site=row.site,
    )


def _record_code(
    tx: Transaction, kind: str, what: str, row: NodeRow, *, actor: str, reason: str, now: float
) -> None:
    acts.record(
        tx,
        kind,
        what,
        actor=actor,
        target=f"node {row.node}",
        reason=reason,
        now=now,
        severity="warning",
        node=row.node,
        site=row.site,
    )
