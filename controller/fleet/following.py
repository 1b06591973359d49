"""What follows from a report: what is fresh in it becomes incidents, and is acted on where policies and rules say so.

Runs inside the transaction that stores the report. Every act says why, from which evidence, and how to undo it.
Refuses to do: decide (controller.response, controller.judge).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contract.messages import Finding
from controller import judge, response
from controller.breaker import window_start
from controller.fleet import incidents, isolation
from controller.judge import Appraisal, FleetFacts, Suspicion
from controller.policy import BreakerLimits, FleetSettings
from controller.records import Record
from controller.response import Heard, Order, Seen, Subject, Verdict
from controller.response_records import SuppressionView
from controller.selector import matches, parse_selector
from controller.store import Transaction, counting, events, holds, restores
from controller.store import responding as rows
from controller.store.nodes import NodeRow

_decode_labels = msgspec.json.Decoder(dict[str, str]).decode
NOTHING_BY_ITSELF = BreakerLimits(nodes=0, fleet_fraction=0, sites=0)
_PLACING = {"isolate-node": "isolated", "isolate-site": "isolated", "fence": "fenced"}


class Followed(Record, frozen=True, kw_only=True):
    """What was done about a report."""

    affected: list[str] = msgspec.field(default_factory=list)
    """Other nodes whose directive is due."""
    acted: bool = False
    """Something was isolated or fenced."""
    drifted: bool = False
    """The node drifted in a way of its own."""
    muted: list[str] = msgspec.field(default_factory=list)
    """Keys that a suppression keeps quiet: no incident is about them."""


def follow(
    tx: Transaction,
    settings: FleetSettings,
    row: NodeRow,
    appraisal: Appraisal,
    seen: Sequence[Seen],
    *,
    source: str,
    now: float,
) -> Followed:
    """Record what is fresh and act on it. `seen`: events of the agent that are new here; `source`: what a person reads
    again to see where it came from, such as `evidence 12`."""
    known = frozenset(row.state.suspicions)
    fresh = [s for s in appraisal.suspicions if s.key not in known]
    if not fresh and not seen:
        return Followed()
    quiet = _quiet(tx, row, now)
    muted = {s.key: each for s in fresh if (each := quiet.of_suspicion(s)) is not None}
    # What was quiet before stays judged; once its suppression has ended it is as fresh as on the first day.
    kept = frozenset(row.state.muted)
    judged = [s for s in fresh if not (s.key in muted and (muted[s.key].acts or s.key in kept))]
    heeded = [e for e in seen if (each := quiet.of_event(e)) is None or not each.acts]
    if not judged and not heeded:
        return Followed(muted=sorted(muted))
    facts = facts_of(tx, settings, row, judged, now)
    heard = response.hear(response.compiled(rows.document(tx)), subject_of(row), judged, heeded)
    spoken = [quiet.hushed(each) for each in heard if _reached(tx, each, row, now)]
    of_judged = msgspec.structs.replace(appraisal, suspicions=judged)
    # References of an earlier day mistake every update since for a change: a person decides until one has looked.
    limits = NOTHING_BY_ITSELF if restores.unconfirmed(tx) is not None else settings.breaker
    verdict = response.respond(of_judged, known, row.policy, limits, facts, spoken=spoken)
    acted = any(order.act in _PLACING for order in verdict.orders)
    told = [s for s in judged if acted or s.key not in muted]
    loud = [each for each in spoken if acted or each.rule.then]
    affected = _act(tx, row, told, loud, verdict, source=source, now=now)
    return Followed(
        affected=affected,
        acted=acted,
        drifted=judge.drifts_alone(told, settings.breaker, facts),
        muted=sorted(set(muted) - {s.key for s in told}),
    )


def subject_of(row: NodeRow) -> Subject:
    """Return a node as selectors know it."""
    fields = {
        "node": row.node,
        "site": row.site,
        "standing": row.standing,
        "tier": row.tier,
        "baseline": row.reported_baseline,
        "agent": row.agent_version,
    }
    return Subject(
        fields={key: value for key, value in fields.items() if value}, labels=_decode_labels(row.labels)
    )


class _Quiet:
    """What suppressions keep quiet on one node. Never identity, never evidence that was refused."""

    def __init__(self, meant: Sequence[SuppressionView]) -> None:
        self._meant = meant

    def of_suspicion(self, suspicion: Suspicion) -> SuppressionView | None:
        """Return what keeps it quiet: one that speaks of acts as well before any other."""
        if suspicion.kind == "identity" or suspicion.key.startswith("rejected:"):
            return None
        return self._first(suspicion.kind, suspicion.finding.code)

    def of_event(self, event: Seen) -> SuppressionView | None:
        """Return what keeps it quiet."""
        return self._first("event", f"event.{event.kind}")

    def _first(self, kind: str, code: str) -> SuppressionView | None:
        found = [each for each in self._meant if each.kind == kind or response.fits(each.kind, code)]
        return max(found, key=lambda each: each.acts, default=None)

    def hushed(self, heard: Heard) -> Heard:
        """Return the rule without what only tells people, where all that it heard is kept quiet."""
        if not self._meant or any(self.of_suspicion(s) is None for s in heard.suspicions):
            return heard
        if any(self.of_event(e) is None for e in heard.events):
            return heard
        rule = heard.rule
        then = tuple(act for act in rule.then if act in _PLACING and rule.stage == "act")
        return msgspec.structs.replace(heard, rule=msgspec.structs.replace(rule, then=then))


def _quiet(tx: Transaction, row: NodeRow, now: float) -> _Quiet:
    there = rows.in_force(tx, now)
    if not there:
        return _Quiet(())
    subject = subject_of(row)
    return _Quiet([s for s in there if matches(parse_selector(s.selector), subject.fields, subject.labels)])


def _reached(tx: Transaction, heard: Heard, row: NodeRow, now: float) -> bool:
    """Count what a rule has heard, and say whether that is enough; then it counts from the beginning."""
    rule, when = heard.rule, heard.rule.when
    if when.count == 1 and when.nodes == 1:
        return True
    node = row.node if when.nodes == 1 else None
    times = min(len(heard.suspicions) + len(heard.events), when.count)
    rows.hit(tx, rule.key, site=row.site, node=row.node, times=times, now=now, within_s=when.within_s)
    count, on = rows.counted(tx, rule.key, site=row.site, node=node, since=now - when.within_s)
    if count < when.count or on < when.nodes:
        return False
    rows.forget(tx, rule.key, site=row.site, node=node)
    return True


def _act(
    tx: Transaction,
    row: NodeRow,
    told: Sequence[Suspicion],
    spoken: Sequence[Heard],
    verdict: Verdict,
    *,
    source: str,
    now: float,
) -> list[str]:
    """Open or join incidents, then do what was decided; return the other nodes whose directive is due."""
    about = [*told, *_of_events(spoken)]
    if not about:
        for text in verdict.said:
            summary = f"{row.node}: {text}"[:2048]
            events.add(tx, "response.observed", "info", summary, now=now, node=row.node, site=row.site)
        return []
    made = incidents.record(
        tx,
        about,
        verdict.recommend,
        node=row.node,
        site=row.site,
        now=now,
        questions=verdict.questions,
    )
    incident = made.get("untrusted") or next(iter(made.values()))
    done = [f"{row.node}: {text}; {source}"[:1024] for text in verdict.said]
    affected: set[str] = set()
    for order in verdict.orders:
        where = _events_of(order) or source
        if order.act == "alert":
            _alert(tx, row, order, incident=incident, where=where, now=now)
            done.append(f"{row.node}: alert by {order.by}: {order.why}; {where}"[:1024])
            continue
        target = None if order.act == "isolate-site" else row.node
        undo = undo_of(target, row.site)
        because = f"{order.why}; by {order.by}; incident {incident}, {where}; undo: {undo}"
        _, names = isolation.place(
            tx,
            node=target,
            site=row.site,
            reason=because,
            actor="controller",
            automatic=True,
            incident=incident,
            now=now,
            fence_only=order.act == "fence",
        )
        affected.update(names)
        subject = f"site {row.site}" if target is None else f"node {target}"
        done.append(
            f"{subject} {_PLACING[order.act]}: {order.why}; by {order.by}; {where}; undo: {undo}"[:1024]
        )
    if done:
        incidents.note(tx, incident, done=done, now=now)
    return sorted(affected - {row.node})


def undo_of(node: str | None, site: str) -> str:
    """Return the command that takes an isolation or a fence back."""
    return f"ringfence release {f'--site {site}' if node is None else f'--node {node}'} --reason '...'"


def _events_of(order: Order) -> str:
    return "" if not order.events else f"events {', '.join(map(str, order.events[:8]))}"


def _of_events(spoken: Sequence[Heard]) -> list[Suspicion]:
    """Return what the incident of a rule about events says: one for each kind, on whatever nodes."""
    found: dict[str, Suspicion] = {}
    for heard in spoken:
        if heard.rule.stage == "observe":
            continue
        for event in heard.events:
            found[event.kind] = Suspicion(
                key=f"event:{event.kind}"[:256],
                kind="event",
                severity="warning",
                title=f"{event.kind}: {event.summary}"[:200],
                finding=Finding(
                    code=f"event.{event.kind}"[:256], detail=f"event {event.id}: {event.summary}"[:2048]
                ),
            )
    return list(found.values())


def _alert(tx: Transaction, row: NodeRow, order: Order, *, incident: int, where: str, now: float) -> None:
    if incidents.quiet(tx, incident):
        return
    events.add(
        tx,
        "response.alert",
        "critical",
        f"{row.node}: {order.by}: {order.why}"[:2048],
        now=now,
        node=row.node,
        site=row.site,
        detail={"incident": str(incident), "by": order.by, "from": where},
    )


def facts_of(
    tx: Transaction, settings: FleetSettings, row: NodeRow, fresh: Sequence[Suspicion], now: float
) -> FleetFacts:
    """Return what must be known of the fleet; from here to the end of the transaction nobody else places a hold."""
    holds.lock_breaker(tx)
    since = window_start(settings.breaker, now)
    active = holds.active_of_site(tx, row.site)
    rule = row.policy.drifting_nodes
    own = [hold for hold in active if hold.node == row.node]
    return FleetFacts(
        fleet_nodes=counting.count(tx, now),
        node_holds_in_window=holds.automatic_since(tx, since, sites=False),
        site_holds_in_window=holds.automatic_since(tx, since, sites=True),
        node_held=any(not hold.fence_only for hold in own),
        site_held=any(hold.node is None for hold in active),
        node_fenced=bool(own),
        others=incidents.others_with(tx, [s.key for s in fresh], node=row.node, now=now),
        drifting_others=0
        if rule is None
        else counting.drifting(
            tx, row.site, since=now - rule.window_s, without=row.node, limit=judge.COUNTED
        ),
    )
