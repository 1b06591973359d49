"""Inventories: what nodes say they consist of, now, at a moment, and since when; which nodes have a package."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from contract.inventory import MAX_NAME_BYTES, MAX_VALUE_BYTES, Kind
from controller.api.route import AnyRoute, Call, Nothing, Paging, Route
from controller.inventory_records import FactView, HolderView, InventoryView
from controller.records import Page


class InventoryQuery(Paging, frozen=True, kw_only=True):
    """What of it, and when."""

    at: Annotated[float, Meta(ge=0, le=2**40)] | None = None
    """Seconds since 1970; None is now."""
    kind: Kind | None = None


class HistoryQuery(Paging, frozen=True, kw_only=True):
    """What of it."""

    kind: Kind | None = None


class PackageQuery(Paging, frozen=True, kw_only=True):
    """Which package: name and version exactly as the node's database has them."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
    version: Annotated[str, Meta(min_length=1, max_length=MAX_VALUE_BYTES)] | None = None


async def get_inventory(call: Call[InventoryQuery, Nothing]) -> InventoryView:
    """The node's own word, in the order in which it became known."""
    wanted = call.query
    return await call.services.fleet.inventory(
        call.name("node"), at=wanted.at, kind=wanted.kind, after=wanted.cursor, limit=wanted.limit
    )


async def get_history(call: Call[HistoryQuery, Nothing]) -> Page[FactView]:
    """All that is and was so, what changed last first."""
    wanted = call.query
    return await call.services.fleet.inventory_history(
        call.name("node"), kind=wanted.kind, after=wanted.cursor, limit=wanted.limit
    )


async def find_package(call: Call[PackageQuery, Nothing]) -> Page[HolderView]:
    """Nodes that say they have it now, by name."""
    wanted = call.query
    return await call.services.fleet.package_holders(
        wanted.name, version=wanted.version, scope=call.scope, after=wanted.cursor, limit=wanted.limit
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/nodes/{node}/inventory",
        needs="fleet.read",
        about="node",
        summary="What a node says it consists of",
        handler=get_inventory,
        query=InventoryQuery,
        body=Nothing,
        reply=InventoryView,
    ),
    Route(
        method="GET",
        path="/nodes/{node}/inventory/history",
        needs="fleet.read",
        about="node",
        summary="What a node said it consists of, and until when",
        handler=get_history,
        query=HistoryQuery,
        body=Nothing,
        reply=Page[FactView],
    ),
    Route(
        method="GET",
        path="/inventory/packages",
        needs="fleet.read",
        about="listed",
        summary="Which nodes say they have a package",
        handler=find_package,
        query=PackageQuery,
        body=Nothing,
        reply=Page[HolderView],
    ),
)
