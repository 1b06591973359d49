"""A database that was put back: what waits for a person, which nodes are ahead of it, and the word that it may go on."""

from __future__ import annotations

from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.records import Page
from controller.restore_records import AheadNode, RestoreView, WaitingRestore


async def get_restore(call: Call[Nothing, Nothing]) -> RestoreView:
    """The restore that waits for a person, where one does."""
    return await call.services.fleet.restore()


async def list_ahead(call: Call[Paging, Nothing]) -> Page[AheadNode]:
    """Nodes that are ahead of the restored database, by name."""
    return await call.services.fleet.ahead(after=call.query.cursor, limit=call.query.limit)


async def confirm_restore(call: Call[Nothing, Reasoned]) -> WaitingRestore:
    """Go on as usual. Nodes get their new directives with their next reports: nothing about it is so urgent as to tell all at once."""
    found = await call.services.fleet.confirm_restore(
        actor=call.person.name, reason=call.body.reason, now=call.now
    )
    call.services.ring()
    return found


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/restore",
        needs="fleet.read",
        about="fleet",
        summary="Whether a restored database waits for a person",
        handler=get_restore,
        query=Nothing,
        body=Nothing,
        reply=RestoreView,
    ),
    Route(
        method="GET",
        path="/restore/nodes",
        needs="fleet.read",
        about="fleet",
        summary="List nodes that are ahead of a restored database",
        handler=list_ahead,
        query=Paging,
        body=Nothing,
        reply=Page[AheadNode],
    ),
    Route(
        method="POST",
        path="/restore/confirm",
        needs="restore.confirm",
        about="fleet",
        summary="Let a restored database go on as usual",
        handler=confirm_restore,
        query=Nothing,
        body=Reasoned,
        reply=WaitingRestore,
    ),
)
