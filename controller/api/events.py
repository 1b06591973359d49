"""Events by cursor, with waiting for new ones; and the audit of what people did."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from contract.messages import Name
from controller.api.route import MAX_ID, AnyRoute, Call, Limit, Nothing, Route
from controller.records import AuditView, EventView, Record

MAX_WAIT_S = 30.0
LOOK_AGAIN_S = 0.5
"""Another controller over the same database rings no bell here."""

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


class AuditQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acts with an id above `after`, oldest first."""

    after: After = 0
    limit: Limit = 100


class Events(Record, frozen=True, kw_only=True):
    """Events, and the `after` of the next call."""

    items: list[EventView]
    after: int


class Audit(Record, frozen=True, kw_only=True):
    """Acts, and the `after` of the next call."""

    items: list[AuditView]
    after: int


async def list_events(call: Call[EventQuery, Nothing]) -> Events:
    """Events from a cursor on."""
    wanted = call.query
    loop = asyncio.get_running_loop()
    end = loop.time() + (0.0 if wanted.newest_first else wanted.wait_s)
    while True:
        bell = call.services.bell.listen()
        items = await call.services.fleet.list_events(
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


async def list_audit(call: Call[AuditQuery, Nothing]) -> Audit:
    """What people did, and why."""
    items = await call.services.fleet.list_audit(after=call.query.after, limit=call.query.limit)
    return Audit(items=items, after=items[-1].id if items else call.query.after)


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/events",
        role="viewer",
        summary="List events from a cursor, or wait for the next",
        handler=list_events,
        query=EventQuery,
        body=Nothing,
        reply=Events,
    ),
    Route(
        method="GET",
        path="/audit",
        role="admin",
        summary="List what people did",
        handler=list_audit,
        query=AuditQuery,
        body=Nothing,
        reply=Audit,
    ),
)
