"""Use cases of sessions and evidence. `take` is the hot path: one SELECT and one UPDATE when nothing is wrong."""

from __future__ import annotations

import msgspec

from contract.directive import Directive
from contract.errors import Rejected
from contract.messages import Finding, ReportBody
from controller import judge
from controller.fleet import boots, following, grants, incidents, isolation, rollouts, sessions
from controller.fleet import evidence as keeping
from controller.permissions import EVERYWHERE
from controller.policy import FleetSettings
from controller.presented import Presented
from controller.records import Evidence, Outcome, Standing
from controller.response import Seen, compiled
from controller.standing import standing
from controller.store import Transaction, events, nodes, restores
from controller.store import responding as rules
from controller.store.nodes import NodeRow
from controller.store.state import NodeState

MAX_SUSPICIONS = 1024


# -- evidence --------------------------------------------------------------------------------------------


def take(
    tx: Transaction,
    settings: FleetSettings,
    node: str,
    evidence: Evidence,
    *,
    now: float,
    presented: Presented | None = None,
    over: bytes | None = None,
) -> Outcome:
    """See Fleet.take_report."""
    row = sessions.known(tx, node, lock=True, over=over)
    body = evidence.body
    appraisal = judge.appraise(
        [*evidence.findings, *_obedience(tx, row, body, now)],
        body.drifts,
        posture=body.posture,
        wanted_posture=row.wanted_posture,
        obeyed=_settled(row, body, now),
    )
    seen = _take_events(tx, row, body, now) if body.events else []
    boots.remember(tx, row, evidence, appraisal.tier, now)
    lasting = [s.key for s in appraisal.suspicions if s.lasting][:MAX_SUSPICIONS]
    stored = None
    if presented is not None:
        verdict = keeping.Verdict(appraisal, evidence, lasting)
        stored = keeping.keep(tx, settings.evidence, row, presented, verdict, now=now)
    gone = sorted(set(row.state.suspicions).difference(lasting))
    source = f"report {body.number} of boot {body.boot_id}" if stored is None else f"evidence {stored}"
    followed = following.follow(tx, settings, row, appraisal, seen, source=source, now=now)
    lasting = [key for key in lasting if key not in followed.muted]
    if gone:
        incidents.withdraw(tx, node, row.site, gone, now)
    state = NodeState(
        boot_id=body.boot_id,
        agent_version=body.agent_version,
        os_release=body.os_release,
        uptime_s=body.uptime_s,
        posture=body.posture,
        baseline=body.baseline,
        baseline_since=row.state.baseline_since if body.baseline == row.state.baseline else now,
        pending=body.pending,
        directive_accepted=max(row.state.directive_accepted, body.directive_number),
        release=row.state.release if body.posture == "isolated" else 0,
        fenced=body.fenced,
        # A suspect names no addresses: those that it had while it was trusted are the ones to fence.
        addresses=row.state.addresses
        if appraisal.tier == "contraindicated" and row.state.addresses
        else body.addresses,
        drifts=[drift for drift in body.drifts if not drift.repaired],
        findings=appraisal.findings,
        counters=evidence.counters,
        boot=evidence.boot,
        ima=evidence.ima,
        events_dropped=body.events_dropped,
        dropped=body.dropped,
        suspicions=lasting,
        muted=followed.muted,
    )
    return _settle(tx, settings, row, state, appraisal, now=now, reported=body, followed=followed)


def _take_events(tx: Transaction, row: NodeRow, body: ReportBody, now: float) -> list[Seen]:
    """Store the events; return those that are new here where any rule is about events at all."""
    wanted = any(rule.when.event for rule, _ in compiled(rules.document(tx)))
    mark = events.last_id(tx, EVERYWHERE) if wanted else 0
    events.add_agents(tx, row.node, row.site, body.events, now)
    grants.note(tx, row, body.events, now)
    rollouts.note(tx, row, body.events, now)
    if not wanted:
        return []
    return [
        Seen(id=one.id, kind=one.kind, summary=one.summary)
        for one in events.read(
            tx, after=mark, limit=len(body.events), node=row.node, scope=EVERYWHERE, order="up"
        )
        if one.source == "agent"
    ]


def reject_evidence(
    tx: Transaction,
    settings: FleetSettings,
    node: str,
    rejected: Rejected,
    *,
    now: float,
    presented: Presented | None = None,
    over: bytes | None = None,
) -> Outcome:
    """See Fleet.reject_evidence. Nothing of the refused report is stored but the refusal."""
    row = sessions.known(tx, node, lock=True, over=over)
    appraisal = judge.appraise_rejection(rejected, row.tier)
    grave = appraisal.tier == "contraindicated" and bool(appraisal.suspicions)
    stored = None
    if presented is not None:
        verdict = keeping.Verdict(appraisal, None)
        stored = keeping.keep(tx, settings.evidence, row, presented, verdict, now=now)
    refused = events.add(
        tx,
        "evidence.rejected",
        "critical" if grave else "warning",
        f"{node}: evidence refused: {rejected.code}",
        now=now,
        node=node,
        site=row.site,
        detail={"code": rejected.code[:256], "detail": rejected.detail[:2048]},
    )
    source = f"event {refused}" if stored is None else f"evidence {stored}"
    followed = following.follow(tx, settings, row, appraisal, (), source=source, now=now)
    keys = [s.key for s in appraisal.suspicions]
    state = msgspec.structs.replace(
        row.state,
        findings=appraisal.findings if grave else row.state.findings,
        suspicions=list(dict.fromkeys([*row.state.suspicions, *keys]))[:MAX_SUSPICIONS],
    )
    return _settle(tx, settings, row, state, appraisal, now=now, reported=None, followed=followed)


def _settled(row: NodeRow, body: ReportBody, now: float) -> bool:
    """The newest directive has been accepted, and for so long that it must show."""
    return (
        not row.directive_due
        and body.directive_number == row.directive_number
        and now - row.directive_issued_at >= row.policy.interval_s
    )


def _obedience(tx: Transaction, row: NodeRow, body: ReportBody, now: float) -> list[Finding]:
    wanted = row.baseline
    if wanted is None or body.pending is not None or not _settled(row, body, now):
        return []
    held = body.baseline
    if held is not None and held.sha256.hex() == wanted.sha256:
        return []
    if restores.unconfirmed(tx) is not None:  # what is chosen may be older than what the node was told before
        return []
    found = "none" if held is None else f"{held.name} {held.version}"
    return [Finding(code="baseline.differs", detail=f"wanted {wanted.name} {wanted.version}, found {found}")]


def _settle(
    tx: Transaction,
    settings: FleetSettings,
    row: NodeRow,
    state: NodeState,
    appraisal: judge.Appraisal,
    *,
    now: float,
    reported: ReportBody | None,
    followed: following.Followed,
) -> Outcome:
    """Write the row and make the outcome. `reported` None: nothing was accepted, silence goes on."""
    fresh_row = row
    if followed.acted or appraisal.suspicions:
        fresh_row = sessions.known(tx, row.node)  # holds may have been placed on it a moment ago
    last_report_at = now if reported is not None else row.last_report_at
    stands = standing(
        tier=appraisal.tier,
        held=fresh_row.wanted_posture == "isolated",
        last_report_at=last_report_at,
        interval_s=row.policy.interval_s,
        now=now,
        started=settings.started,
    )
    if stands not in {row.standing, "isolated"}:  # an isolation has told of itself
        _tell_standing(tx, row, stands, now)
    state_row = msgspec.structs.replace(fresh_row, state=state, last_report_at=last_report_at)
    floor = reported.directive_number if reported is not None else 0
    directive = _directive(tx, settings, state_row, reported, floor=floor, now=now)
    number, issued = (
        (fresh_row.directive_number, fresh_row.directive_issued_at)
        if directive is None
        else (directive.number, now)
    )
    nodes.write(
        tx,
        fresh_row,
        tier=appraisal.tier,
        standing=stands,
        standing_since=now if stands != row.standing else row.standing_since,
        last_report_at=last_report_at,
        last_drift_at=now if followed.drifted and reported is not None else row.last_drift_at,
        directive=(number, issued, fresh_row.directive_due and directive is None),
        state=state,
    )
    return Outcome(
        tier=appraisal.tier,
        findings=appraisal.findings,
        events_acked=max((event.seq for event in reported.events), default=0) if reported else 0,
        directive=directive,
        affected=followed.affected,
        session=msgspec.structs.replace(sessions.record_of(state_row), directive_number=number),
    )


def _tell_standing(tx: Transaction, row: NodeRow, stands: Standing, now: float) -> None:
    events.add(
        tx,
        f"node.{stands}",
        "critical" if stands == "untrusted" else "info",
        f"{row.node}: {row.standing} -> {stands}",
        now=now,
        node=row.node,
        site=row.site,
    )


def _directive(
    tx: Transaction,
    settings: FleetSettings,
    row: NodeRow,
    reported: ReportBody | None,
    *,
    floor: int,
    now: float,
) -> Directive | None:
    """Return a new directive when something changed or the node has not got the newest one.

    One that the node has had time to accept and did not is written again at most once an interval: a node that
    refuses it must not make us both spin.
    """
    due = row.directive_due
    if reported is not None and not due and reported.directive_number != row.directive_number:
        ahead = reported.directive_number > row.directive_number
        due = ahead or now - row.directive_issued_at >= row.policy.interval_s / 2
    return isolation.directive(tx, settings, row, floor=floor, now=now) if due else None
