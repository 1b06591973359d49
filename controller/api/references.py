"""Reference values: announce, list, withdraw; the boot a node is held to; accepting an update for all its nodes."""

from __future__ import annotations

from contract.messages import Name
from controller.api.each import Outcomes, outcomes
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reason, Reasoned, Route
from controller.records import Change, Page, Strict
from controller.reference_records import Accepted, Announcement, BootView, ReferenceView

MAX_ANNOUNCEMENT_BYTES = 4 * 1024 * 1024


class ReferenceQuery(Paging, frozen=True, kw_only=True):
    """Which sets; `all` lists withdrawn ones too."""

    site: Name | None = None
    all: bool = False


class Acceptance(Strict, frozen=True, kw_only=True):
    """Why an update is accepted; `own_values`: also on nodes that show a value no other shows."""

    reason: Reason
    own_values: bool = False


async def list_references(call: Call[ReferenceQuery, Nothing]) -> Page[ReferenceView]:
    """Sets, newest first."""
    wanted = call.query
    return await call.services.fleet.list_references(
        scope=call.scope, site=wanted.site, withdrawn=wanted.all, after=wanted.cursor, limit=wanted.limit
    )


async def announce(call: Call[Nothing, Announcement]) -> Outcomes[ReferenceView]:
    """Expect values from a time on. Nodes are judged by them with their next boot or report."""
    made = await call.services.fleet.announce(
        call.body.references,
        scope=call.scope,
        actor=call.person.name,
        reason=call.body.reason,
        now=call.now,
    )
    return outcomes((str(place), each) for place, each in enumerate(made))


async def withdraw(call: Call[Nothing, Reasoned]) -> ReferenceView:
    """Expect a set no more."""
    return await call.services.fleet.withdraw_reference(
        call.number("reference"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def get_boot(call: Call[Nothing, Nothing]) -> BootView:
    """The boot that a node is held to."""
    return await call.services.fleet.boot(call.name("node"))


async def accept_incident(call: Call[Nothing, Acceptance]) -> Accepted:
    """Accept the boots of all nodes of an incident, and ask each for a report."""
    accepted = await call.services.fleet.accept_incident(
        call.number("incident"),
        own_values=call.body.own_values,
        actor=call.person.name,
        reason=call.body.reason,
        now=call.now,
    )
    await call.services.tell(Change(affected=accepted.affected), call.now, ask_for_report=True)
    return accepted


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/references",
        needs="fleet.read",
        about="listed",
        summary="List announced reference values",
        handler=list_references,
        query=ReferenceQuery,
        body=Nothing,
        reply=Page[ReferenceView],
    ),
    Route(
        method="POST",
        path="/references",
        needs="boot.accept",
        about="listed",
        summary="Announce reference values, each on its own",
        handler=announce,
        query=Nothing,
        body=Announcement,
        reply=Outcomes[ReferenceView],
        max_body_bytes=MAX_ANNOUNCEMENT_BYTES,
    ),
    Route(
        method="POST",
        path="/references/{reference}/withdraw",
        needs="boot.accept",
        about="reference",
        summary="Withdraw announced reference values",
        handler=withdraw,
        query=Nothing,
        body=Reasoned,
        reply=ReferenceView,
    ),
    Route(
        method="GET",
        path="/nodes/{node}/boot",
        needs="fleet.read",
        about="node",
        summary="Look at the boot that a node is held to",
        handler=get_boot,
        query=Nothing,
        body=Nothing,
        reply=BootView,
    ),
    Route(
        method="POST",
        path="/incidents/{incident}/accept",
        needs="boot.accept",
        about="incident",
        summary="Accept the boots of all nodes of an incident",
        handler=accept_incident,
        query=Nothing,
        body=Acceptance,
        reply=Accepted,
    ),
)
