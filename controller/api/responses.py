"""Response rules, suppressions and drills: what is done by itself, what is kept quiet, and rehearsing the worst."""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

from controller.api.route import AnyRoute, Call, Nothing, Paging, Reason, Reasoned, Route
from controller.drill_records import DrillView
from controller.fleet import editing
from controller.records import Page, Strict
from controller.response_records import (
    NewResponses,
    NewSuppression,
    ResponseView,
    SuppressionView,
    Undo,
)

MAX_RULES_BODY_BYTES = 128 * 1024


class SuppressionQuery(Paging, frozen=True, kw_only=True):
    """Which suppressions; `all` lists ended ones too."""

    all: bool = False


class Drill(Strict, frozen=True, kw_only=True):
    """A rehearsal."""

    reason: Reason
    wait_s: Annotated[float, Meta(gt=0, le=30)] = 10.0
    """How long connected nodes have to answer."""


async def get_responses(call: Call[Nothing, Nothing]) -> ResponseView:
    """The rules in force; version 0 while none were ever set."""
    return await call.services.fleet.responses()


async def set_responses(call: Call[Nothing, NewResponses]) -> ResponseView:
    """Replace the rules."""
    return await call.services.fleet.set_responses(call.body, actor=call.person.name, now=call.now)


async def undo_responses(call: Call[Nothing, Undo]) -> ResponseView:
    """Put an earlier version in force."""
    return await call.services.fleet.undo_responses(call.body, actor=call.person.name, now=call.now)


async def list_responses(call: Call[Paging, Nothing]) -> Page[ResponseView]:
    """Versions, newest first."""
    return await call.services.fleet.list_responses(after=call.query.cursor, limit=call.query.limit)


async def list_suppressions(call: Call[SuppressionQuery, Nothing]) -> Page[SuppressionView]:
    """Suppressions, newest first."""
    wanted = call.query
    return await call.services.fleet.list_suppressions(
        scope=call.scope, all_=wanted.all, after=wanted.cursor, limit=wanted.limit, now=call.now
    )


async def suppress(call: Call[Nothing, NewSuppression]) -> SuppressionView:
    """Keep something quiet for a while, on nodes in scope."""
    return await call.services.fleet.suppress(
        call.body, scope=call.scope, actor=call.person.name, now=call.now
    )


async def end_suppression(call: Call[Nothing, Reasoned]) -> SuppressionView:
    """End a suppression before its time."""
    return await call.services.fleet.end_suppression(
        call.number("suppression"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def drill_site(call: Call[Nothing, Drill]) -> DrillView:
    """Do all of isolating a site but the last step: nothing is sent but a challenge, and no posture changes."""
    services, begun = call.services, time.perf_counter()
    plan = await services.fleet.plan_drill(call.name("site"), now=call.now)
    planned_ms = (time.perf_counter() - begun) * 1000
    nodes = sorted([*plan.would_isolate, *plan.isolated_already])
    answers = await services.challenge(nodes, wait_s=call.body.wait_s)
    view = DrillView(
        plan=plan,
        connected=sorted(answers),
        away=[node for node in nodes if node not in answers],
        silent=sorted(node for node, took_s in answers.items() if took_s is None),
        planned_ms=planned_ms,
        answered_ms=sorted(took_s * 1000 for took_s in answers.values() if took_s is not None),
    )
    return await services.fleet.record_drill(
        view, actor=call.person.name, reason=call.body.reason, now=call.now
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/responses",
        needs="fleet.read",
        about="fleet",
        summary="Look at the response rules in force",
        handler=get_responses,
        query=Nothing,
        body=Nothing,
        reply=ResponseView,
        whole=editing.responses,
    ),
    Route(
        method="PUT",
        path="/responses",
        needs="response.set",
        about="fleet",
        summary="Replace the response rules",
        handler=set_responses,
        query=Nothing,
        body=NewResponses,
        reply=ResponseView,
        max_body_bytes=MAX_RULES_BODY_BYTES,
        whole=editing.responses,
        match="may",
    ),
    Route(
        method="GET",
        path="/responses/history",
        needs="fleet.read",
        about="fleet",
        summary="List versions of the response rules",
        handler=list_responses,
        query=Paging,
        body=Nothing,
        reply=Page[ResponseView],
    ),
    Route(
        method="POST",
        path="/responses/undo",
        needs="response.set",
        about="fleet",
        summary="Put earlier response rules in force",
        handler=undo_responses,
        query=Nothing,
        body=Undo,
        reply=ResponseView,
    ),
    Route(
        method="GET",
        path="/suppressions",
        needs="fleet.read",
        about="listed",
        summary="List suppressions",
        handler=list_suppressions,
        query=SuppressionQuery,
        body=Nothing,
        reply=Page[SuppressionView],
    ),
    Route(
        method="POST",
        path="/suppressions",
        needs="incident.suppress",
        about="listed",
        summary="Keep incidents of a kind quiet for a while",
        handler=suppress,
        query=Nothing,
        body=NewSuppression,
        reply=SuppressionView,
        status=201,
    ),
    Route(
        method="POST",
        path="/suppressions/{suppression}/end",
        needs="incident.suppress",
        about="suppression",
        summary="End a suppression before its time",
        handler=end_suppression,
        query=Nothing,
        body=Reasoned,
        reply=SuppressionView,
    ),
    Route(
        method="POST",
        path="/sites/{site}/drill",
        needs="isolation.act",
        about="site",
        summary="Rehearse the isolation of a site",
        handler=drill_site,
        query=Nothing,
        body=Drill,
        reply=DrillView,
    ),
)
