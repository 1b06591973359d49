"""Incidents and holds: what was found, what was done, and closing what is settled."""

from __future__ import annotations

from contract.messages import Name
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.records import HoldView, IncidentState, IncidentView, Page


class IncidentQuery(Paging, frozen=True, kw_only=True):
    """Which incidents."""

    state: IncidentState | None = None
    site: Name | None = None


class HoldQuery(Paging, frozen=True, kw_only=True):
    """Which holds; `all` lists released ones too."""

    site: Name | None = None
    all: bool = False


async def list_incidents(call: Call[IncidentQuery, Nothing]) -> Page[IncidentView]:
    """Incidents, newest first."""
    wanted = call.query
    return await call.services.fleet.list_incidents(
        scope=call.scope, state=wanted.state, site=wanted.site, after=wanted.cursor, limit=wanted.limit
    )


async def get_incident(call: Call[Nothing, Nothing]) -> IncidentView:
    """One incident."""
    return await call.services.fleet.incident(call.number("incident"), scope=call.scope)


async def close_incident(call: Call[Nothing, Reasoned]) -> IncidentView:
    """Close an incident. Holds stay: releasing is an act of its own."""
    return await call.services.fleet.close_incident(
        call.number("incident"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def list_holds(call: Call[HoldQuery, Nothing]) -> Page[HoldView]:
    """Holds, newest first."""
    wanted = call.query
    return await call.services.fleet.list_holds(
        scope=call.scope, active=not wanted.all, site=wanted.site, after=wanted.cursor, limit=wanted.limit
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/incidents",
        needs="fleet.read",
        about="listed",
        summary="List incidents",
        handler=list_incidents,
        query=IncidentQuery,
        body=Nothing,
        reply=Page[IncidentView],
    ),
    Route(
        method="GET",
        path="/incidents/{incident}",
        needs="fleet.read",
        about="incident",
        summary="Look at one incident",
        handler=get_incident,
        query=Nothing,
        body=Nothing,
        reply=IncidentView,
    ),
    Route(
        method="POST",
        path="/incidents/{incident}/close",
        needs="incident.close",
        about="incident",
        summary="Close an incident",
        handler=close_incident,
        query=Nothing,
        body=Reasoned,
        reply=IncidentView,
    ),
    Route(
        method="GET",
        path="/holds",
        needs="fleet.read",
        about="listed",
        summary="List isolations",
        handler=list_holds,
        query=HoldQuery,
        body=Nothing,
        reply=Page[HoldView],
    ),
)
