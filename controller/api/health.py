"""Health: whether this controller can do its work, and the fleet in figures."""

from __future__ import annotations

from controller.api.route import AnyRoute, Call, Nothing, Route
from controller.records import FleetCounts, Record


class Status(Record, frozen=True, kw_only=True):
    """The fleet in figures."""

    controller: str
    sessions: int
    """Open sessions of this process; where not the whole fleet is in scope, of nodes in scope with any."""
    fleet: FleetCounts
    now: float


async def status(call: Call[Nothing, Nothing]) -> Status:
    """The fleet in figures. Raises StoreUnavailable when the database does not answer."""
    fleet = await call.services.fleet.counts(scope=call.scope)
    return Status(
        controller=call.services.config.name,
        sessions=len(call.services.sessions) if call.scope.everywhere else fleet.connected,
        fleet=fleet,
        now=call.now,
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/status",
        needs="fleet.read",
        about="listed",
        summary="The fleet in figures",
        handler=status,
        query=Nothing,
        body=Nothing,
        reply=Status,
    ),
)
