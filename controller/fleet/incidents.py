"""Use cases of incidents and events, and how suspicions become incidents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from contract.errors import Rejected
from contract.messages import Drift, Finding, Severity
from controller import judge
from controller.fleet import acts
from controller.fleet.incidentshare import share
from controller.fleet.paging import cut, number
from controller.judge import Suspicion
from controller.permissions import EVERYWHERE, Scope
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
    """Count, by suspicion key, the other nodes that have had it within a day; up to judge.COUNTED."""
    return rows.others(tx, keys, without=node, since=now - SAME_VALUE_WINDOW_S, limit=judge.COUNTED)


def shown_by(
    tx: Transaction,
    findings: Sequence[Finding],
    drifts: Sequence[Drift] = (),
    *,
    without: str = "",
    incident: int | None = None,
) -> list[int]:
    """Count for each finding the nodes that show the same now, or have shown it in one incident; see `rows.showing`."""
    if not findings:
        return []
    keys = judge.keys_of(findings, drifts)
    found = rows.showing(tx, {key for each in keys for key in each}, without=without, incident=incident)
    return [max(found.get(key, 0) for key in each) for each in keys]


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
            new = not set(keys).issubset(there)
            _again(tx, incident, node, site, new=new, severity=severity, now=now)
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
            # The same new value in a boot is said once, in whatever words another node's report puts it.
            findings=[
                s.finding
                for s in of_kind
                if not (s.finding.code.startswith("boot.") and there.get(s.key) == incident)
            ],
            severity=severity,
            recommend=[f"{node}: {text}" for text in recommend] if kind == gravest else [],
            questions=questions if kind == "update" else None,
            site=site,
            now=now,
        )
        made[kind] = incident
    return made


def _again(
    tx: Transaction, incident: int, node: str, site: str, *, new: bool, severity: Severity, now: float
) -> None:
    """An incident grows, or comes again: that is told once, and then it is quiet until it has stayed away. Whatever is new in
    it, or graver, ends the quiet: nothing hides behind something that flaps."""
    view = rows.bare(tx, incident)
    if view is None:
        return
    if view.quiet and (new or severity != view.severity):
        rows.flap(tx, incident, reopened=view.reopened, quiet=False)
    if view.state != "resolved":
        return
    rows.flap(tx, incident, reopened=view.reopened + 1, quiet=not new)
    if view.quiet and not new:
        return
    event_rows.add(
        tx,
        "incident.reopened",
        severity,
        f"incident {incident} came again: {node}: {view.title if view.site == site else view.kind}"[:2048],
        now=now,
        node=node,
        site=site,
        detail={"incident": str(incident), "reopened": str(view.reopened + 1)},
    )


def settle_calm(tx: Transaction, now: float) -> None:
    """Tell of incidents that came and went, and have stayed away for long enough."""
    for incident, site, title in rows.calm(tx, before=now - REOPEN_WINDOW_S):
        _tell_resolved(tx, incident, title, site=site, node=None, now=now)


def _tell_resolved(
    tx: Transaction, incident: int, title: str, *, site: str, node: str | None, now: float
) -> None:
    event_rows.add(
        tx,
        "incident.resolved",
        "info",
        f"incident {incident} resolved: {title}"[:2048],
        now=now,
        node=node,
        site=site,
        detail={"incident": str(incident)},
    )


def note(
    tx: Transaction,
    incident: int,
    *,
    findings: Sequence[Finding] = (),
    severity: Severity = "info",
    done: Sequence[str] = (),
    recommend: Sequence[str] = (),
    questions: Mapping[str, int] | None = None,
    gone: bool = False,
    site: str | None = None,
    now: float,
) -> None:
    """Add to an incident and settle its state: it needs a person once something was recommended, it is resolved
    when no node shows any of its suspicions any more; where a person was asked, not before something is `gone`. `site`: of the
    node that this is about, where it is one."""
    view = rows.bare(tx, incident)
    if view is None or view.state == "closed":
        return
    state: IncidentState = "open"
    settled = not recommend and (gone or view.state != "needs-person")
    if settled and not rows.still_active(tx, incident):
        state = "resolved"
    elif recommend or questions or view.state == "needs-person":
        state = "needs-person"
    where = site or view.site
    if recommend and view.state != "needs-person" and not view.quiet:
        text = f"incident {incident} needs a person: {recommend[0]}"
        _tell(tx, incident, "isolation.recommended", "critical", text, site=where, now=now)
    if questions and view.state != "needs-person" and not view.quiet:
        text = f"incident {incident} asks a person: {next(iter(questions))}"
        _tell(tx, incident, "update.unannounced", "warning", text, site=where, now=now)
    asked = questions or {}
    # A question stands once, with the newest count: five hundred nodes are one line.
    before = [line for line in view.done if not line.startswith(tuple(asked))] if asked else view.done
    counted = [
        f"{text}; {judge.many(others)} other nodes report the same" if others else text
        for text, others in asked.items()
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


def _tell(
    tx: Transaction, incident: int, kind: str, severity: Severity, text: str, *, site: str, now: float
) -> None:
    detail = {"incident": str(incident)}
    event_rows.add(tx, kind, severity, text[:2048], now=now, site=site, detail=detail)


def withdraw(tx: Transaction, node: str, site: str, keys: Sequence[str], now: float) -> None:
    """A node no longer shows these suspicions: incidents that nobody shows any more resolve themselves."""
    for incident in rows.withdraw(tx, node, keys):
        before = rows.bare(tx, incident)
        if before is None or before.state == "closed" or rows.still_active(tx, incident):
            continue
        note(tx, incident, done=[f"{node}: no longer found"], gone=True, now=now)
        if not before.quiet:
            title = (
                before.title if before.site == site else before.kind
            )  # what began elsewhere tells of elsewhere
            _tell_resolved(tx, incident, title, site=site, node=node, now=now)


def _worst(severities: Sequence[Severity]) -> Severity:
    return max(severities, key=_SEVERITIES.index)


def list_(
    tx: Transaction, *, scope: Scope, state: str | None, site: str | None, after: str | None, limit: int
) -> Page[IncidentView]:
    """See Fleet.list_incidents."""
    page = rows.page(tx, state=state, scope=scope.narrowed(site), before=number(after), limit=limit + 1)
    return cut([share(tx, view, scope) for view in page], limit, lambda view: str(view.id))


def quiet(tx: Transaction, incident: int) -> bool:
    """Whether what comes of it is not told for now."""
    view = rows.bare(tx, incident)
    return view is not None and view.quiet


def get(tx: Transaction, incident: int, scope: Scope = EVERYWHERE) -> IncidentView:
    """See Fleet.incident."""
    view = rows.load(tx, incident)
    if view is None:
        raise Rejected("incident.unknown", str(incident))
    counts = shown_by(tx, view.findings, incident=incident)
    view = msgspec.structs.replace(view, findings_nodes=[count or None for count in counts])
    return share(tx, view, scope)


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
