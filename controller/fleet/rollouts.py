"""Use cases of rollouts: asked for, approved, carried out wave by wave on evidence alone, paused, halted, aborted.

The decision is `controller.rollout`; here it meets the records, one transaction for each step of one rollout, and whoever runs
it holds the rollout's row: several controllers may try at once. Choosing a baseline for a node is all that is ever done to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import Rejected
from contract.messages import Event
from controller import windows
from controller.fleet import acts, plans
from controller.fleet.paging import cut, number
from controller.fleet.tokens import person_behind
from controller.permissions import Scope
from controller.records import Page
from controller.rollout import Moved, decide, waves_of
from controller.rollout_records import NewRollout, NodeFacts, RolloutNode, RolloutState, RolloutView
from controller.store import (
    Duplicate,
    Transaction,
    addressees,
    events,
    neighbours,
    nodes,
    restores,
    selecting,
)
from controller.store import rollouts as rows
from controller.store import sites as baselines
from controller.store.nodes import NodeRow
from controller.store.rollouts import RolloutRow

_ENDED = frozenset({"done", "aborted"})
_TOLD = frozenset({"baseline.reverted", "baseline.refused"})
CONTROLLER = "controller"


def request(tx: Transaction, new: NewRollout, *, actor: str, now: float) -> RolloutView:
    """See Fleet.request_rollout."""
    why = acts.checked_reason(new.reason)
    windows.checked(new.terms.windows)
    plan = rows.plan(tx, new.plan)
    if plan is None:
        raise Rejected("plan.unknown", str(new.plan))
    for wave in new.terms.waves:
        if sum(part is not None for part in (wave.nodes, wave.percent, wave.sites)) != 1:
            raise Rejected("rollout.wave", "a wave is exactly one of nodes, percent and sites")
    chosen = plans.check_fresh(tx, plan, now)
    if not chosen:
        raise Rejected("plan.nobody", "every node that is meant holds it already")
    busy = rows.active_of(tx, [row.node for row in chosen])
    if busy:
        name, other = sorted(busy.items())[0]
        raise Rejected(
            "rollout.exists", f"{len(busy)} nodes are in another one ({name} in {other}): abort it or wait"
        )
    standing = [(row.node, row.site, row.standing == "healthy" and row.connected) for row in chosen]
    row = RolloutRow(
        id=0,
        plan=plan.id,
        baseline=plan.baseline,
        version=plan.version,
        sha256=plan.sha256,
        selector=plan.selector,
        terms=new.terms,
        reason=why,
        state="requested",
        why="waits for somebody else's approval",
        wave=0,
        wave_since=None,
        requested_at=now,
        requested_by=actor,
        approved_at=None,
        approved_by=None,
        ended_at=None,
    )
    try:
        made = rows.add(tx, row, waves_of(standing, new.terms.waves))
    except Duplicate:
        raise Rejected("rollout.exists", "some of its nodes are in another one") from None
    _record(tx, "rollout.requested", _known(tx, made), actor=actor, reason=why, now=now)
    return view(tx, _known(tx, made), now)


def approve(tx: Transaction, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
    """See Fleet.approve_rollout."""
    row = _known(tx, rollout, lock=True)
    why = acts.checked_reason(reason)
    if row.state != "requested":
        raise Rejected("rollout.decided", f"it is {row.state} already")
    if person_behind(tx, actor) == person_behind(tx, row.requested_by) and _needs_two(tx, row):
        raise Rejected(
            "rollout.same-person", f"{row.requested_by} asked for it: somebody else must approve it"
        )
    rows.change(tx, rollout, state="running", why="", approved_at=now, approved_by=actor)
    _record(tx, "rollout.approved", row, actor=actor, reason=why, now=now)
    return view(tx, _known(tx, rollout), now)


def pause(tx: Transaction, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
    """See Fleet.pause_rollout."""
    return _turn(tx, rollout, ("running",), "paused", actor=actor, reason=reason, now=now)


def resume(tx: Transaction, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
    """See Fleet.resume_rollout. One that had halted goes on without those that failed: a person has looked at them."""
    row = _known(tx, rollout, lock=True)
    if row.state == "halted":
        facts = rows.facts(tx, rollout, row.sha256)
        again = [Moved(f.node, "waiting", "") for f in facts if f.progress == "withdrawn"]
        left_out = [Moved(f.node, "withdrawn", "failed; left out") for f in facts if f.progress == "failed"]
        rows.move(tx, rollout, [*again, *left_out], now)
    return _turn(tx, rollout, ("paused", "halted"), "running", actor=actor, reason=reason, now=now)


def abort(
    tx: Transaction, rollout: int, *, actor: str, reason: str, now: float
) -> tuple[RolloutView, list[str]]:
    """See Fleet.abort_rollout."""
    row = _known(tx, rollout, lock=True)
    why = acts.checked_reason(reason)
    if row.state in _ENDED:
        raise Rejected("rollout.decided", f"it is {row.state} already")
    affected = _withdraw(tx, row, now)
    rows.change(tx, rollout, state="aborted", why=why, ended_at=now)
    rows.end(tx, rollout)
    _record(tx, "rollout.aborted", row, actor=actor, reason=why, now=now)
    return view(tx, _known(tx, rollout), now), affected


def advance(tx: Transaction, *, now: float) -> list[str]:
    """See Fleet.advance_rollouts."""
    affected: list[str] = []
    if restores.unconfirmed(tx) is not None:  # nobody has looked at what the older database would do
        return affected
    for rollout in rows.ids_in(tx, "running"):
        row = _known(tx, rollout, lock=True)
        if row.state == "running":
            affected += _advance(tx, row, now)
    return affected


def note(tx: Transaction, row: NodeRow, said: Sequence[Event], now: float) -> None:
    """Note that a node took a baseline back, or would not take it: it has failed, whatever the clock says."""
    told = [event for event in said if event.kind in _TOLD]
    rollout = rows.active_of(tx, [row.node]).get(row.node) if told else None
    if rollout is None:
        return
    wanted = _known(tx, rollout).sha256
    for event in told:
        if event.detail.get("sha256") == wanted and event.detail.get("code") != "baseline.withdrawn":
            rows.move(tx, rollout, [Moved(row.node, "failed", event.summary)], now)


def get(tx: Transaction, rollout: int, *, now: float) -> RolloutView:
    """See Fleet.rollout."""
    return view(tx, _known(tx, rollout), now)


def list_(
    tx: Transaction, *, scope: Scope, state: str | None, after: str | None, limit: int, now: float
) -> Page[RolloutView]:
    """See Fleet.list_rollouts."""
    page = rows.page(tx, scope=scope, state=state, before=number(after), limit=limit + 1)
    return cut([view(tx, row, now) for row in page], limit, lambda each: str(each.id))


def list_nodes(tx: Transaction, rollout: int, *, after: str | None, limit: int) -> Page[RolloutNode]:
    """See Fleet.list_rollout_nodes."""
    _known(tx, rollout)
    return cut(rows.node_page(tx, rollout, after=after, limit=limit + 1), limit, lambda each: each.node)


def view(tx: Transaction, row: RolloutRow, now: float) -> RolloutView:
    """Return a rollout as it is shown."""
    return RolloutView(
        id=row.id,
        plan=row.plan,
        baseline=row.baseline,
        version=row.version,
        selector=row.selector,
        state=row.state,
        why=row.why,
        terms=row.terms,
        wave=row.wave,
        waves=rows.last_wave(tx, row.id),
        wave_since=row.wave_since,
        counts=rows.counts(tx, row.id),
        window_open=windows.is_open(row.terms.windows, now),
        requested_at=row.requested_at,
        requested_by=row.requested_by,
        reason=row.reason,
        approved_by=row.approved_by,
        ended_at=row.ended_at,
    )


# -- inside ----------------------------------------------------------------------------------------------


def _known(tx: Transaction, rollout: int, *, lock: bool = False) -> RolloutRow:
    row = rows.load(tx, rollout, lock=lock)
    if row is None:
        raise Rejected("rollout.unknown", str(rollout))
    return row


def _needs_two(tx: Transaction, row: RolloutRow) -> bool:
    sites = {fact.site for fact in rows.facts(tx, row.id, row.sha256)}
    found = [baselines.load(tx, site) for site in sites]
    return any(site is None or site.policy.rollouts_need_two_persons for site in found)


def _turn(
    tx: Transaction,
    rollout: int,
    from_: tuple[RolloutState, ...],
    to: RolloutState,
    *,
    actor: str,
    reason: str,
    now: float,
) -> RolloutView:
    row = _known(tx, rollout, lock=True)
    why = acts.checked_reason(reason)
    if row.state not in from_:
        raise Rejected("rollout.decided", f"it is {row.state}; wanted {' or '.join(from_)}")
    rows.change(tx, rollout, state=to, why=why)
    _record(tx, f"rollout.{to}", row, actor=actor, reason=why, now=now)
    return view(tx, _known(tx, rollout), now)


def _advance(tx: Transaction, row: RolloutRow, now: float) -> list[str]:
    facts = rows.facts(tx, row.id, row.sha256)
    step = decide(row.terms, row.wave, facts, now, window_open=windows.is_open(row.terms.windows, now))
    rows.move(tx, row.id, step.moved, now)
    site_of = {fact.node: fact.site for fact in facts}
    for move in step.moved:
        if move.progress == "failed":
            _tell(
                tx,
                "rollout.node-failed",
                f"rollout {row.id}: {move.node} failed: {move.detail}",
                now,
                node=move.node,
                site=site_of.get(move.node),
            )
    if step.halt:
        affected = _withdraw(tx, row, now)
        rows.change(tx, row.id, state="halted", why=step.halt)
        _record(tx, "rollout.halted", row, actor=CONTROLLER, reason=step.halt, now=now)
        return affected
    if step.done:
        rows.change(
            tx, row.id, state="done", why="every node that can be reached has proved it", ended_at=now
        )
        _settle(tx, row, facts, now)
        rows.end(tx, row.id)
        _record(tx, "rollout.done", row, actor=CONTROLLER, reason=row.reason, now=now)
        return []
    if step.wave != row.wave:
        rows.change(tx, row.id, wave=step.wave, wave_since=now)
        text = f"rollout {row.id}: wave {step.wave} of {rows.last_wave(tx, row.id)} begins"
        _tell(tx, "rollout.wave", text, now)
    return _send(tx, row, step.send, now)


def _send(tx: Transaction, row: RolloutRow, names: Sequence[str], now: float) -> list[str]:
    if names:
        addressees.load(tx, names)  # nobody else changes them meanwhile
        rows.remember(tx, row.id, names)
        selecting.choose_baseline(tx, names, (row.baseline, row.version), now)
        rows.move(tx, row.id, [Moved(name, "sent", "") for name in names], now)
    return list(names)


def _withdraw(tx: Transaction, row: RolloutRow, now: float) -> list[str]:
    """Take the choice back from every node that has not taken it yet. One that has stays: no node goes back."""
    facts = rows.facts(tx, row.id, row.sha256)
    open_ = [f for f in facts if f.progress in ("waiting", "sent", "away") and not f.holds]
    failed = [f for f in facts if f.progress == "failed" and not f.holds]
    rows.move(
        tx,
        row.id,
        [Moved(f.node, "withdrawn", f"was {f.progress}") for f in open_ if f.progress != "waiting"],
        now,
    )
    return _give_back(tx, row.id, [f.node for f in [*open_, *failed] if f.progress != "waiting"], now)


def _give_back(tx: Transaction, rollout: int, names: Sequence[str], now: float) -> list[str]:
    by_choice: dict[tuple[str, int] | None, list[str]] = {}
    for name, own in rows.before(tx, rollout, names).items():
        by_choice.setdefault(own, []).append(name)
    for own, some in by_choice.items():
        selecting.choose_baseline(tx, some, own, now)
    return list(names)


def _settle(tx: Transaction, row: RolloutRow, facts: Sequence[NodeFacts], now: float) -> None:
    """Where every node of a site was in it and holds it, the site's choice follows, for nodes to come."""
    of_rollout = {fact.node for fact in facts if fact.progress not in ("failed", "withdrawn")}
    for site in sorted({fact.site for fact in facts}):
        names = neighbours.names_of_site(tx, site)
        chosen = baselines.load(tx, site)
        if not of_rollout.issuperset(names) or chosen is None:
            continue
        was = chosen.baseline
        if was is not None and was.name == row.baseline and was.version > row.version:
            continue
        baselines.choose_baseline(tx, site, row.baseline, row.version)
        nodes.forget_own_baseline(tx, names)
        text = f"baseline {row.baseline} {row.version} is site {site}'s: rollout {row.id} has reached every node of it"
        _tell(tx, "baseline.assigned", text, now, site=site)


def _tell(
    tx: Transaction, kind: str, text: str, now: float, *, node: str | None = None, site: str | None = None
) -> None:
    events.add(
        tx, kind, "warning" if kind.endswith("failed") else "info", text[:2048], now=now, node=node, site=site
    )


def _record(tx: Transaction, kind: str, row: RolloutRow, *, actor: str, reason: str, now: float) -> None:
    acts.record(
        tx,
        kind,
        f"rollout {row.id} of {row.baseline} {row.version} for {row.selector}: {kind.partition('.')[2]}"[
            :2048
        ],
        actor=actor,
        target=f"rollout {row.id}",
        reason=reason[:1024],
        now=now,
        severity="critical" if kind == "rollout.halted" else "info",
    )
