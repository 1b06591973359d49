"""Use cases of incidents and events, and how suspicions become incidents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from contract.errors import Rejected
from contract.messages import Finding, Severity
from controller.fleet import acts
from controller.fleet.paging import cut, number
from controller.judge import Suspicion, key_of
from controller.permissions import EVERYWHERE, Reach, Scope
from controller.records import EventView, IncidentKind, IncidentState, IncidentView, Page
from controller.store import Transaction  # fmt: skip
from controller.store import events as event_rows
from controller.store import incidents as rows

SAME_VALUE_WINDOW_S = 86400.0
"""A value seen on other nodes within a day is the same update; later it counts as new again."""
REOPEN_WINDOW_S = 600.0
"""What was resolved and comes again so soon is the same incident."""
MAX_FINDINGS = 64
MAX_DONE = 64
_SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


def others_with(tx: Transaction, keys: Sequence[str], *, node: str, now: float) -> Mapping[str, int]:
    """Count, by suspicion key, the other nodes that have had it within a day."""
    return rows.others(tx, keys, without=node, since=now - SAME_VALUE_WINDOW_S)


def record(
    tx: Transaction,
    fresh: Sequence[Suspicion],
    recommend: Sequence[str],
    *,
    node: str,
    site: str,
    now: float,
    questions: Mapping[str, int] | None = None,
) -> dict[IncidentKind, int]:
    """Put fresh suspicions of one node into incidents: the one that has such a suspicion already, else a new one
    for each kind. What is recommended makes the gravest of them wait for a person; questions (with how many other nodes
    report the same) make the update wait for one."""
    made: dict[IncidentKind, int] = {}
    by_kind: dict[IncidentKind, list[Suspicion]] = {}
    for suspicion in fresh:
        by_kind.setdefault(suspicion.kind, []).append(suspicion)
    gravest = "untrusted" if "untrusted" in by_kind else next((k for k in by_kind if k != "update"), None)
    for kind, of_kind in by_kind.items():
        keys = [s.key for s in of_kind]
        there = rows.standing_for(tx, keys, reopened_since=now - REOPEN_WINDOW_S)
        severity = _worst([s.severity for s in of_kind])
        if there:
            incident = min(there.values())
        else:
            incident = rows.open_(
                tx, kind=kind, severity=severity, site=site, title=of_kind[0].title, now=now
            )
            event_rows.add(
                tx,
                "incident.opened",
                severity,
                f"incident {incident}: {node}: {of_kind[0].title}",
                now=now,
                node=node,
                site=site,
                detail={"incident": str(incident)},
            )
        rows.attach(tx, incident, node, {s.key: s.lasting for s in of_kind}, now)
        note(
            tx,
            incident,
            findings=[s.finding for s in of_kind],
            severity=severity,
            recommend=[f"{node}: {text}" for text in recommend] if kind == gravest else [],
            questions=questions if kind == "update" else None,
            site=site,
            now=now,
        )
        made[kind] = incident
    return made


def note(
    tx: Transaction,
    incident: int,
    *,
    findings: Sequence[Finding] = (),
    severity: Severity = "info",
    done: Sequence[str] = (),
    recommend: Sequence[str] = (),
    questions: Mapping[str, int] | None = None,
    site: str | None = None,
    now: float,
) -> None:
    """Add to an incident and settle its state (`site`: of the node that this is about): it needs a person once something was recommended, it is resolved
    when no node shows any of its suspicions any more."""
    view = rows.load(tx, incident)
    if view is None or view.state == "closed":
        return
    state: IncidentState = "open"
    if not rows.still_active(tx, incident):
        state = "resolved"
    elif recommend or questions or view.state == "needs-person":
        state = "needs-person"
    if recommend and view.state != "needs-person":
        event_rows.add(
            tx,
            "isolation.recommended",
            "critical",
            f"incident {incident} needs a person: {recommend[0]}"[:2048],
            now=now,
            site=site or view.site,
            detail={"incident": str(incident)},
        )
    if questions and view.state != "needs-person":
        event_rows.add(
            tx,
            "update.unannounced",
            "warning",
            f"incident {incident} asks a person: {next(iter(questions))}"[:2048],
            now=now,
            site=site or view.site,
            detail={"incident": str(incident)},
        )
    asked = questions or {}
    # A question stands once, with the newest count: five hundred nodes are one line.
    before = [line for line in view.done if not line.startswith(tuple(asked))] if asked else view.done
    counted = [
        f"{text}; {others} other nodes report the same" if others else text for text, others in asked.items()
    ]
    known = [(f.code, f.pcr, f.detail) for f in view.findings]
    rows.change(
        tx,
        incident,
        state=state,
        findings=[*view.findings, *(f for f in findings if (f.code, f.pcr, f.detail) not in known)][
            :MAX_FINDINGS
        ],
        # The first lines say how it began; a mass event must not grow a row without bound.
        done=[*before, *(t for t in (*counted, *done, *recommend) if t not in before)][:MAX_DONE],
        severity=_worst([view.severity, severity]),
        now=now,
    )


def withdraw(tx: Transaction, node: str, site: str, keys: Sequence[str], now: float) -> None:
    """A node no longer shows these suspicions: incidents that nobody shows any more resolve themselves."""
    for incident in rows.withdraw(tx, node, keys):
        before = rows.load(tx, incident)
        if before is None or before.state == "closed" or rows.still_active(tx, incident):
            continue
        note(tx, incident, done=[f"{node}: no longer found"], now=now)
        title = (
            f": {before.title}" if before.site == site else ""
        )  # one that began elsewhere tells of elsewhere
        event_rows.add(
            tx,
            "incident.resolved",
            "info",
            f"incident {incident} resolved{title}"[:2048],
            now=now,
            node=node,
            site=site,
            detail={"incident": str(incident)},
        )


def _worst(severities: Sequence[Severity]) -> Severity:
    return max(severities, key=_SEVERITIES.index)


def list_(
    tx: Transaction, *, scope: Scope, state: str | None, site: str | None, after: str | None, limit: int
) -> Page[IncidentView]:
    """See Fleet.list_incidents."""
    page = rows.page(tx, state=state, scope=scope.narrowed(site), before=number(after), limit=limit + 1)
    return cut([_within(tx, view, scope) for view in page], limit, lambda view: str(view.id))


def get(tx: Transaction, incident: int, scope: Scope = EVERYWHERE) -> IncidentView:
    """See Fleet.incident."""
    view = rows.load(tx, incident)
    if view is None:
        raise Rejected("incident.unknown", str(incident))
    return _within(tx, view, scope)


def _within(tx: Transaction, view: IncidentView, scope: Scope) -> IncidentView:
    """Return what of an incident is about the sites of a scope, and nothing of what it is about elsewhere.

    A finding is kept where a node of these sites shows the very same; a line of what was done, where it is about such a node or
    site; how many others there are is not told.
    """
    if scope.everywhere or scope.holds(rows.reach(tx, view.id) or Reach()):
        return view
    members = rows.members(tx, view.id, scope)
    names = list(dict.fromkeys(node for node, _, _ in members))
    keys = {key for _, _, key in members}
    own = {site for _, site, _ in members} or {view.site}
    findings = [finding for finding in view.findings if key_of(finding) in keys]
    about = (*(f"{name}: " for name in names), *(f"node {name} " for name in names))
    whole = [f"site {site} " for site in own if scope.holds(Reach(frozenset({site})))]
    done = [line for line in view.done if line.startswith((*about, *whole))]
    title = f"{findings[0].code}: {findings[0].detail}"[:200] if findings else view.kind
    return msgspec.structs.replace(
        view,
        site=view.site if view.site in own else min(own),
        title=title,
        nodes=names[: rows.SHOWN_NODES],
        nodes_total=len(names),
        findings=findings,
        done=done,
    )


def close(tx: Transaction, incident: int, *, actor: str, reason: str, now: float) -> IncidentView:
    """See Fleet.close_incident."""
    view = get(tx, incident)
    why = acts.checked_reason(reason)
    if view.state == "closed":
        raise Rejected("incident.closed", f"by {view.closed_by}")
    rows.change(
        tx,
        incident,
        state="closed",
        findings=view.findings,
        done=[*view.done, f"closed by {actor}: {why}"],
        now=now,
        closed_by=actor,
    )
    acts.record(
        tx,
        "incident.closed",
        f"incident {incident} closed by {actor}: {why}"[:2048],
        actor=actor,
        target=f"incident {incident}",
        reason=why,
        now=now,
        site=view.site,
    )
    return get(tx, incident)


def events(
    tx: Transaction,
    *,
    scope: Scope,
    after: int,
    limit: int,
    node: str | None,
    site: str | None,
    newest_first: bool,
) -> list[EventView]:
    """See Fleet.list_events."""
    return event_rows.read(
        tx,
        after=after,
        limit=limit,
        node=node,
        scope=scope.narrowed(site),
        order="down" if newest_first else "up",
    )
