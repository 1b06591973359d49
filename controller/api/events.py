"""Events by cursor, with waiting for new ones."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from contract.messages import Name
from controller.api.route import MAX_ID, AnyRoute, Call, Limit, Nothing, Route
from controller.records import EventView, Record

MAX_WAIT_S = 30.0
LOOK_AGAIN_S = 2.0
"""Another controller rings this bell too (controller.replica); a ring may be lost while the database is away."""

After = Annotated[int, Meta(ge=0, le=MAX_ID)]


class EventQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Events with an id above `after`, oldest first; with `newest_first` those below it (0: from the end)."""

    after: After = 0
    limit: Limit = 100
    node: Name | None = None
    site: Name | None = None
    newest_first: bool = False
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    """How long to wait for the first event when there is none yet."""


class Events(Record, frozen=True, kw_only=True):
    """Events, and the `after` of the next call."""

    items: list[EventView]
    after: int


async def list_events(call: Call[EventQuery, Nothing]) -> Events:
    """Events from a cursor on."""
    wanted = call.query
    loop = asyncio.get_running_loop()
    end = loop.time() + (0.0 if wanted.newest_first else wanted.wait_s)
    while True:
        bell = call.services.bell.listen()
        items = await call.services.fleet.list_events(
            scope=call.scope,
            after=wanted.after,
            limit=wanted.limit,
            node=wanted.node,
            site=wanted.site,
            newest_first=wanted.newest_first,
        )
        left = end - loop.time()
        if items or left <= 0:
            return Events(items=items, after=items[-1].id if items else wanted.after)
        await asyncio.wait([bell], timeout=min(left, LOOK_AGAIN_S))


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/events",
        needs="fleet.read",
        about="listed",
        summary="List events from a cursor, or wait for the next",
        handler=list_events,
        query=EventQuery,
        body=Nothing,
        reply=Events,
    ),
)
