"""Which sites something reaches: what the way in holds against the scope of whoever asks, before any handler runs.

What is out of scope is answered as what does not exist: the same code and the same text, so that nobody learns by asking
what other sites have. Only where part of a thing is in scope does an act on the whole of it say that more is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contract.errors import Rejected
from controller.permissions import Placed, Reach, Scope, scope_of_all
from controller.selector import parse_selector
from controller.store import (
    Transaction,
    enrolments,
    grants,
    incidents,
    places,
    references,
    responding,
    rollouts,
    sites,
    tokens,
    users,
)

Kind = Literal[
    "site",
    "node",
    "enrolment",
    "incident",
    "grant",
    "reference",
    "plan",
    "rollout",
    "suppression",
    "token",
    "user",
    "claimed-node",
    "claimed-ek",
]
"""`claimed-*`: a name that somebody wants to use. It may be free; what it must not be is another site's."""


_SEEN_IN_PART: frozenset[Kind] = frozenset({"incident", "enrolment"})
"""What may reach several sites and shows each the part that is its own."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing that a request is about, named in its path or in its body."""

    kind: Kind
    key: str


def check(tx: Transaction, subject: Subject, scope: Scope, *, act: bool) -> None:
    """Raise Rejected `*.unknown` where the subject is not there or out of scope, `scope.insufficient` where an act would
    reach beyond it, `enrolment.*` where a claimed name is another site's."""
    if subject.kind in ("token", "user"):
        of = tokens.by_name if subject.kind == "token" else users.load
        found = of(tx, subject.key)
        if found is None or not scope.covers(scope_of_all(found.rights)):
            raise _unknown(subject)
        return
    if subject.kind == "suppression":
        quiet = responding.suppression(tx, int(subject.key))
        if quiet is None or not scope.holds_all(parse_selector(quiet.selector)):
            raise _unknown(subject)
        return
    reach = _reach(tx, subject)
    seen = reach is not None and (
        scope.holds(reach) or (subject.kind in _SEEN_IN_PART and scope.touches(reach))
    )
    if reach is None or not seen:
        raise _unknown(subject)
    if act and not scope.holds(reach):
        raise Rejected("scope.insufficient", f"it reaches beyond {scope}")


def _unknown(subject: Subject) -> Rejected:
    if subject.kind == "claimed-node":
        return Rejected("enrolment.reserved", f"{subject.key} is a node elsewhere")
    if subject.kind == "claimed-ek":
        return Rejected("enrolment.ek-in-use", "this EK is a node elsewhere")
    return Rejected(f"{subject.kind}.unknown", subject.key[:63])


def _reach(tx: Transaction, subject: Subject) -> Reach | None:
    """Return what a subject touches; None where there is no such thing."""
    key = subject.key
    match subject.kind:
        case "site":
            return Reach(frozenset({key})) if sites.exists(tx, key) else None
        case "node":
            return _of_node(places.place_of(tx, node=key))
        case "claimed-node":
            return _of_node(places.place_of(tx, node=key)) or Reach()
        case "claimed-ek":
            return _of_node(places.place_of(tx, ek_id=key)) or Reach()
        case "grant":
            row = grants.load(tx, int(key))
            return None if row is None else _of_node(places.place_of(tx, node=row.node))
        case "reference":
            view = references.load(tx, int(key))
            return None if view is None else Reach(frozenset({view.reference.site}))
        case "enrolment":
            return _of_enrolment(tx, key)
        case "incident":
            return incidents.reach(tx, int(key))
        case "plan":
            return _of_plan(tx, int(key))
        case "rollout":
            names = rollouts.names_of(tx, int(key))
            return Reach(nodes=places.places_of(tx, names)) if names else None
        case "token" | "user" | "suppression":
            return None  # their rights are a scope, not a reach: see `check`


def _of_node(place: Placed | None) -> Reach | None:
    return None if place is None else Reach(nodes=(place,))


def _of_plan(tx: Transaction, number: int) -> Reach | None:
    plan = rollouts.plan(tx, number)
    if plan is None:
        return None
    names = [name for group in plan.groups for name in group.nodes]
    return Reach(nodes=places.places_of(tx, [*names, *plan.already, *plan.refused]))


def _of_enrolment(tx: Transaction, enrolment: str) -> Reach | None:
    """An enrolment reaches the site that its node named, and the one that a node of this name is bound to."""
    row = enrolments.load(tx, enrolment)
    if row is None:
        return None
    bound = places.place_of(tx, node=row.node)
    if row.site is None and bound is None:
        return Reach(None)  # nobody's yet: who lets it in chooses among all sites
    named = (row.site, None if bound is None else bound.site)
    return Reach(frozenset(site for site in named if site is not None))
