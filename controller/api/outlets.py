"""Outlets: whether receivers take events, try one again, what they refused."""

from __future__ import annotations

from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.outlet_records import DeadLetter, OutletView
from controller.records import Page, Record


class OutletList(Record, frozen=True, kw_only=True):
    """All outlets."""

    items: list[OutletView]


async def list_outlets(call: Call[Nothing, Nothing]) -> OutletList:
    """Outlets by name."""
    return OutletList(items=await call.services.fleet.list_outlets())


async def retry_outlet(call: Call[Nothing, Reasoned]) -> OutletView:
    """Try a failing receiver at once."""
    view = await call.services.fleet.retry_outlet(
        call.name("outlet"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    call.services.ring()
    return view


async def list_dead_letters(call: Call[Paging, Nothing]) -> Page[DeadLetter]:
    """What a receiver refused for good, oldest first."""
    return await call.services.fleet.list_dead_letters(
        call.name("outlet"), after=call.query.cursor, limit=call.query.limit
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/outlets",
        needs="fleet.read",
        about="fleet",
        summary="List outlets",
        handler=list_outlets,
        query=Nothing,
        body=Nothing,
        reply=OutletList,
    ),
    Route(
        method="POST",
        path="/outlets/{outlet}/retry",
        needs="outlet.retry",
        about="fleet",
        summary="Try a failing outlet at once",
        handler=retry_outlet,
        query=Nothing,
        body=Reasoned,
        reply=OutletView,
    ),
    Route(
        method="GET",
        path="/outlets/{outlet}/dead-letters",
        needs="fleet.read",
        about="fleet",
        summary="List what an outlet refused for good",
        handler=list_dead_letters,
        query=Paging,
        body=Nothing,
        reply=Page[DeadLetter],
    ),
)
