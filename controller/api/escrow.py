"""Keys in escrow: what to seal to, put, list, revoke. No route gives a key out: only a node's own session does."""

from __future__ import annotations

from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route, shown_whole
from controller.escrow_records import KeyView, NewKey, SealingView
from controller.fleet import editing
from controller.records import Page


async def get_sealing(call: Call[Nothing, Nothing]) -> SealingView:
    """What a key for this node must be sealed to."""
    return await call.services.escrow.sealing(call.name("node"))


async def list_keys(call: Call[Paging, Nothing]) -> Page[KeyView]:
    """Keys of one node, by name."""
    return await call.services.escrow.listed(
        call.name("node"), after=call.query.cursor, limit=call.query.limit
    )


async def put_key(call: Call[Nothing, NewKey]) -> KeyView:
    """Take a key that was sealed where it was put in."""
    return await call.services.escrow.put(
        call.name("node"), call.name("name"), call.body, actor=call.person.name, now=call.now
    )


async def revoke_key(call: Call[Nothing, Reasoned]) -> KeyView:
    """Make a key unopenable for good."""
    return await call.services.escrow.revoke(
        call.name("node"),
        call.name("name"),
        actor=call.person.name,
        reason=call.body.reason,
        now=call.now,
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/nodes/{node}/sealing",
        needs="key.put",
        about="node",
        summary="What a key for this node must be sealed to",
        handler=get_sealing,
        query=Nothing,
        body=Nothing,
        reply=SealingView,
    ),
    Route(
        method="GET",
        path="/nodes/{node}/keys",
        needs="fleet.read",
        about="node",
        summary="List the keys that a node has in escrow",
        handler=list_keys,
        query=Paging,
        body=Nothing,
        reply=Page[KeyView],
    ),
    shown_whole("/nodes/{node}/keys/{name}", editing.key, editing.KeyHeld, "A key in escrow", about="node"),
    Route(
        method="PUT",
        path="/nodes/{node}/keys/{name}",
        needs="key.put",
        about="node",
        summary="Put a sealed key in escrow",
        handler=put_key,
        query=Nothing,
        body=NewKey,
        reply=KeyView,
        whole=editing.key,
        match="must",
        makes=True,
    ),
    Route(
        method="POST",
        path="/nodes/{node}/keys/{name}/revoke",
        needs="key.revoke",
        about="node",
        summary="Revoke a key for good",
        handler=revoke_key,
        query=Nothing,
        body=Reasoned,
        reply=KeyView,
    ),
)
