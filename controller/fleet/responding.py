"""The use cases of response rules, suppressions and drills, one transaction each. A part of `controller.fleet.Fleet`."""

from __future__ import annotations

import msgspec

from contract.errors import Rejected
from controller import response
from controller.drill_records import DrillPlan, DrillView
from controller.fleet import acts, drills
from controller.fleet.paging import cut, number
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import Page
from controller.response_records import (
    MAX_SUPPRESSION_S,
    NewResponses,
    NewSuppression,
    ResponseView,
    SuppressionView,
    Undo,
)
from controller.selector import parse_selector
from controller.store import Store, Transaction, sites
from controller.store import responding as rows

NEVER_QUIET = ("identity", "quote.", "rejected", "nonce.", "evidence.")
"""Who a node is, and evidence that is not genuine."""


class Responding:
    """Response rules, suppressions and drills over one store."""

    _store: Store
    _settings: FleetSettings

    async def responses(self, version: int | None = None) -> ResponseView:
        """The rules in force, or one version of them. Raises Rejected `response.unknown`."""
        return await self._store.run(lambda tx: _view(tx, version))

    async def set_responses(self, new: NewResponses, *, actor: str, now: float) -> ResponseView:
        """Put new rules in force. Raises Rejected `response.syntax`, `response.key`,
        `response.too-large`, `response.changed` (somebody else was faster), `reason.missing`."""
        policy = response.parse_responses(new.document.encode(), file="responses")
        return await self._store.run(lambda tx: _set(tx, new, policy, actor=actor, now=now))

    async def undo_responses(self, undo: Undo, *, actor: str, now: float) -> ResponseView:
        """Put an earlier version in force, as a new one. Raises Rejected `response.unknown`, `response.changed`,
        `reason.missing`."""
        return await self._store.run(lambda tx: _undo(tx, undo, actor=actor, now=now))

    async def list_responses(self, *, after: str | None = None, limit: int = 100) -> Page[ResponseView]:
        """All versions, newest first."""
        found = await self._store.run(lambda tx: rows.history(tx, before=number(after), limit=limit + 1))
        return cut(found, limit, lambda view: str(view.version))

    async def suppress(self, new: NewSuppression, *, scope: Scope, actor: str, now: float) -> SuppressionView:
        """Keep something quiet for a while, on nodes in scope: the selector is narrowed to it. Raises Rejected `selector.*`,
        `scope.several`, `suppression.never`, `suppression.until`, `reason.missing`."""
        return await self._store.run(lambda tx: _suppress(tx, new, scope, actor=actor, now=now))

    async def end_suppression(
        self, suppression: int, *, actor: str, reason: str, now: float
    ) -> SuppressionView:
        """End one before its time. Raises Rejected `suppression.unknown`, `suppression.closed`, `reason.missing`."""
        return await self._store.run(lambda tx: _end(tx, suppression, actor=actor, reason=reason, now=now))

    async def list_suppressions(
        self, *, scope: Scope, all_: bool = False, after: str | None = None, limit: int = 100, now: float
    ) -> Page[SuppressionView]:
        """Newest first, those that mean nothing outside the scope; `all_` lists ended ones too."""
        found = await self._store.run(
            lambda tx: rows.page(
                tx,
                all_=all_,
                now=now,
                before=number(after),
                limit=limit + 1,
                wanted=lambda view: scope.everywhere or scope.holds_all(parse_selector(view.selector)),
            )
        )
        return cut(found, limit, lambda view: str(view.id))

    async def plan_drill(self, site: str, *, now: float) -> DrillPlan:
        """Say what isolating a site would do; nothing is stored and nothing is sent. Raises Rejected `site.unknown`."""
        return await self._store.look(lambda tx: drills.plan(tx, self._settings, site, now=now))

    async def record_drill(self, view: DrillView, *, actor: str, reason: str, now: float) -> DrillView:
        """Write down what a drill has shown. Raises Rejected `reason.missing`."""
        return await self._store.run(lambda tx: drills.record(tx, view, actor=actor, reason=reason, now=now))


def in_force(tx: Transaction) -> ResponseView:
    """Return the rules in force."""
    return _view(tx)


def _view(tx: Transaction, version: int | None = None) -> ResponseView:
    found = rows.version(tx, version)
    if found is None and version is not None:
        raise Rejected("response.unknown", f"version {version}")
    return found or ResponseView(version=0, document="", set_at=0.0, set_by="", reason="")


def _replacing(tx: Transaction, replaces: int) -> ResponseView:
    rows.lock(tx)
    before = _view(tx)
    if before.version != replaces:
        raise Rejected(
            "response.changed", f"version {before.version} of {before.set_by} is in force, not {replaces}"
        )
    return before


def _set(
    tx: Transaction, new: NewResponses, policy: response.ResponsePolicy, *, actor: str, now: float
) -> ResponseView:
    why = acts.checked_reason(new.reason)
    before = _replacing(tx, new.replaces)
    made = ResponseView(
        version=before.version + 1,
        document=new.document,
        set_at=now,
        set_by=actor,
        reason=why,
        notes=response.against(policy.rule, sites.policies(tx)),
    )
    return _store(tx, made, actor=actor, now=now)


def _undo(tx: Transaction, undo: Undo, *, actor: str, now: float) -> ResponseView:
    why = acts.checked_reason(undo.reason)
    before = _replacing(tx, undo.replaces)
    to = before.version - 1 if undo.to is None else undo.to
    document = "" if to == 0 else _view(tx, to).document
    policy = response.parse_responses(document.encode(), file=f"version {to}")
    made = ResponseView(
        version=before.version + 1,
        document=document,
        set_at=now,
        set_by=actor,
        reason=f"back to version {to}: {why}"[:1024],
        notes=response.against(policy.rule, sites.policies(tx)),
    )
    return _store(tx, made, actor=actor, now=now)


def _store(tx: Transaction, made: ResponseView, *, actor: str, now: float) -> ResponseView:
    rows.add(tx, made)
    names = ", ".join(f"{r.name} ({r.stage})" for r, _ in response.compiled(made.document)) or "none"
    acts.record(
        tx,
        "response.set",
        f"response rules version {made.version}: {names}"[:2048],
        actor=actor,
        target=f"response rules {made.version}",
        reason=made.reason,
        now=now,
        severity="warning",
    )
    return made


def _suppress(
    tx: Transaction, new: NewSuppression, scope: Scope, *, actor: str, now: float
) -> SuppressionView:
    why = acts.checked_reason(new.reason)
    selector = scope.limited(parse_selector(new.selector))
    if new.kind.startswith(NEVER_QUIET) or new.kind + "." in NEVER_QUIET:
        raise Rejected("suppression.never", f"{new.kind}: identity and forged evidence are always told")
    if not now < new.until <= now + MAX_SUPPRESSION_S:
        raise Rejected(
            "suppression.until", f"wanted a time within {MAX_SUPPRESSION_S / 86400:g} days from now"
        )
    made = SuppressionView(
        id=0,
        selector=str(selector),
        kind=new.kind,
        acts=new.acts,
        until=new.until,
        reason=why,
        created_at=now,
        created_by=actor,
    )
    made = msgspec.structs.replace(made, id=rows.suppress(tx, made))
    what = "incidents, alerts and automatic acts" if new.acts else "incidents and alerts"
    acts.record(
        tx,
        "suppression.made",
        f"suppression {made.id}: {what} of {new.kind} on {selector} until {new.until:.0f}"[:2048],
        actor=actor,
        target=f"suppression {made.id}",
        reason=why,
        now=now,
        severity="warning",
    )
    return made


def _end(tx: Transaction, suppression: int, *, actor: str, reason: str, now: float) -> SuppressionView:
    why = acts.checked_reason(reason)
    found = rows.suppression(tx, suppression)
    if found is None:
        raise Rejected("suppression.unknown", str(suppression))
    if found.ended_at is not None or found.until <= now:
        raise Rejected("suppression.closed", "it has ended already")
    rows.end(tx, suppression, actor=actor, now=now)
    acts.record(
        tx,
        "suppression.ended",
        f"suppression {suppression} ended before its time",
        actor=actor,
        target=f"suppression {suppression}",
        reason=why,
        now=now,
    )
    return msgspec.structs.replace(found, ended_at=now, ended_by=actor)
