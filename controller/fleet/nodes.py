"""Use cases of reading nodes, and the sweep that judges silence."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from contract.claims import Claims
from contract.errors import Rejected
from contract.messages import BaselineRef, Severity
from contract.wire import decode
from controller import tpmrecord
from controller.claimsview import BootClaims, shown
from controller.fleet import acts, incidents
from controller.fleet.paging import cut
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import (
    MAX_REFERENCE_BYTES,
    FleetCounts,
    NodeDetail,
    NodeView,
    Page,
    ReportedBaseline,
    Standing,
    StandingChange,
)
from controller.selector import Selector, checked_labels
from controller.standing import SILENCE_INTERVALS, standing
from controller.store import (
    Transaction,
    boots,
    counting,
    enrolments,
    events,
    holds,
    replicas,
    selecting,
    sites,
)
from controller.store import incidents as incident_rows
from controller.store import nodes as rows
from controller.store.nodes import NodeRow

SWEEP_NODES = 64
"""Of each standing in one transaction: where thousands fall silent at once, reports have their turn in between."""
_SEVERITY: dict[Standing, Severity] = {"overdue": "info", "unreachable": "warning"}


def _reported(ref: BaselineRef | None) -> ReportedBaseline | None:
    if ref is None:
        return None
    return ReportedBaseline(name=ref.name, version=ref.version, sha256=ref.sha256.hex())


def _view(row: NodeRow) -> NodeView:
    return NodeView(
        node=row.node,
        site=row.site,
        standing=row.standing,
        standing_since=row.standing_since,
        tier=row.tier,
        last_report_at=row.last_report_at,
        connected=row.connected,
        posture=row.state.posture,
        wanted_posture=row.wanted_posture,
        baseline=_reported(row.state.baseline),
        baseline_since=row.state.baseline_since,
        drifts=len(row.state.drifts),
        wanted_baseline=row.baseline,
        own_baseline=row.baseline_name is not None,
        labels=msgspec.json.decode(row.labels, type=dict[str, str]),
        agent_version=row.state.agent_version,
        ek_trust=row.ek_trust,
    )


def list_(
    tx: Transaction,
    *,
    scope: Scope,
    site: str | None,
    standing: Standing | None,
    selector: Selector | None,
    sort: selecting.SortKey,
    descending: bool,
    after: str | None,
    limit: int,
) -> Page[NodeView]:
    """See Fleet.list_nodes."""
    page = selecting.page(
        tx,
        scope=scope.narrowed(site),
        standing=standing,
        selector=selector,
        sort=sort,
        descending=descending,
        after=after,
        limit=limit + 1,
    )
    return cut([_view(row) for row in page], limit, lambda view: view.node)


def set_labels(
    tx: Transaction, node: str, labels: Mapping[str, str], *, actor: str, reason: str, now: float
) -> NodeView:
    """See Fleet.set_labels."""
    wanted = checked_labels(labels)
    why = acts.checked_reason(reason)
    row = rows.load(tx, node, lock=True)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    selecting.set_labels(tx, node, wanted)
    shown_ = ", ".join(f"{key}={value}" for key, value in wanted.items()) or "none"
    acts.record(
        tx,
        "node.labelled",
        f"{node}: labels are {shown_}"[:2048],
        actor=actor,
        target=f"node {node}",
        reason=why,
        now=now,
        node=node,
        site=row.site,
    )
    return _view(msgspec.structs.replace(row, labels=msgspec.json.encode(wanted).decode()))


def detail(tx: Transaction, node: str) -> NodeDetail:
    """See Fleet.node."""
    row = rows.load(tx, node)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    active = holds.active_of_site(tx, row.site)
    ima = row.state.ima
    return NodeDetail(
        summary=_view(row),
        ek_id=row.ek_id,
        ak_name=row.ak_name,
        approved_at=row.approved_at,
        approved_by=row.approved_by,
        certificate_sha256=(row.certificate_sha256 or b"").hex(),
        certificate_not_after=row.certificate_not_after,
        boot_id=row.state.boot_id,
        os_release=row.state.os_release,
        uptime_s=row.state.uptime_s,
        addresses=row.state.addresses,
        fenced=row.state.fenced,
        findings=row.state.findings,
        findings_elsewhere=incidents.shown_by(tx, row.state.findings, row.state.drifts, without=node),
        drifts=row.state.drifts,
        pending=_reported(row.state.pending),
        directive_number=row.directive_number,
        directive_accepted=row.state.directive_accepted,
        events_dropped=row.state.events_dropped,
        dropped=row.state.dropped,
        boot_reference_at=row.reference_at,
        boot_candidate=boots.candidate(tx, node) is not None,
        boot_claims=_claims(tx, node),
        ima_lines=ima.lines if ima else None,
        ima_bytes=ima.offset if ima else None,
        tpm=tpmrecord.read(row.tpm),
        holds=[hold for hold in active if hold.node is None or hold.node == node],
    )


def _claims(tx: Transaction, node: str) -> BootClaims | None:
    said = boots.claims(tx, node)
    if said is None:
        return None
    return shown(decode(said.claims, Claims, max_bytes=MAX_REFERENCE_BYTES), said.recorded_at)


def sweep(tx: Transaction, settings: FleetSettings, *, now: float) -> list[StandingChange]:
    """See Fleet.sweep."""
    incidents.settle_calm(tx, now)
    changes: list[StandingChange] = []
    if not replicas.leads(tx):
        return changes
    for node in rows.silent(
        tx, now=now, started=settings.started, intervals=SILENCE_INTERVALS, limit=SWEEP_NODES
    ):
        row = rows.load(tx, node, lock=True)  # another controller may just have taken its report
        if row is None:
            continue
        stands = standing(
            tier=row.tier,
            held=row.wanted_posture == "isolated",
            last_report_at=row.last_report_at,
            interval_s=row.policy.interval_s,
            now=now,
            started=settings.started,
        )
        if stands == row.standing:
            continue
        rows.set_standing(tx, row.node, stands, now)
        events.add(
            tx,
            f"node.{stands}",
            _SEVERITY.get(stands, "info"),
            f"{row.node}: {row.standing} -> {stands}: {_silence(row.last_report_at, now)}",
            now=now,
            node=row.node,
            site=row.site,
        )
        changes.append(StandingChange(node=row.node, site=row.site, before=row.standing, after=stands))
    return changes


def _silence(last_report_at: float | None, now: float) -> str:
    return "no evidence yet" if last_report_at is None else f"no evidence for {now - last_report_at:.0f} s"


def counts(tx: Transaction, scope: Scope) -> FleetCounts:
    """See Fleet.counts."""
    by_standing: dict[Standing, int] = {
        "healthy": 0,
        "overdue": 0,
        "unreachable": 0,
        "untrusted": 0,
        "isolated": 0,
    }
    for (_, stands), count in counting.by_standing(tx, scope).items():
        by_standing[stands] += count
    by_state = incident_rows.count_by_state(tx, scope)
    return FleetCounts(
        nodes=by_standing,
        connected=counting.connected(tx, scope),
        sites=sites.count(tx, scope),
        sites_isolated=len(holds.active_on_sites(tx, scope)),
        incidents_open=by_state.get("open", 0),
        incidents_needing_a_person=by_state.get("needs-person", 0),
        enrolments_waiting=enrolments.count_open(tx, states=("proved",), scope=scope),
        last_event=events.last_id(tx, scope),
    )
