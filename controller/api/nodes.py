"""Nodes: list, look at one, isolate, release, accept a changed boot."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from contract.messages import Name
from controller.api.each import Outcomes, outcomes
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reason, Reasoned, Route, shown_whole
from controller.fleet import editing
from controller.records import Change, NodeDetail, NodeView, Page, Relabel, Standing, Strict
from controller.selector import MAX_CHARS, parse_selector
from controller.store.selecting import SortKey


class NodeQuery(Paging, frozen=True, kw_only=True):
    """Which nodes."""

    site: Name | None = None
    standing: Standing | None = None
    selector: Annotated[str, Meta(max_length=MAX_CHARS)] | None = None
    """`site=lyon,line in (3,4)`; `all` is every node, nothing else is."""
    sort: SortKey = "node"
    descending: bool = False


class NewLabels(Strict, frozen=True, kw_only=True):
    """All labels of a node, which replace those before."""

    labels: dict[str, str]
    reason: Reason


async def list_nodes(call: Call[NodeQuery, Nothing]) -> Page[NodeView]:
    """Nodes by name."""
    wanted = call.query
    return await call.services.fleet.list_nodes(
        scope=call.scope,
        site=wanted.site,
        standing=wanted.standing,
        selector=None if wanted.selector is None else parse_selector(wanted.selector),
        sort=wanted.sort,
        descending=wanted.descending,
        after=wanted.cursor,
        limit=wanted.limit,
    )


async def get_node(call: Call[Nothing, Nothing]) -> NodeDetail:
    """One node."""
    return await call.services.fleet.node(call.name("node"))


async def set_labels(call: Call[Nothing, NewLabels]) -> NodeView:
    """Replace a node's labels."""
    return await call.services.fleet.set_labels(
        call.name("node"), call.body.labels, actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def relabel(call: Call[Nothing, Relabel]) -> Outcomes[NodeView]:
    """Set and take away labels of many nodes, each on its own. A selector means nodes in scope."""
    found = await call.services.fleet.relabel(
        call.body, scope=call.scope, actor=call.person.name, now=call.now
    )
    return outcomes(found)


async def isolate_node(call: Call[Nothing, Reasoned]) -> Change:
    """Place a hold on one node and tell it at once."""
    change = await call.services.fleet.isolate_node(
        call.name("node"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return change


async def release_node(call: Call[Nothing, Reasoned]) -> Change:
    """Release the hold on one node and tell it at once."""
    change = await call.services.fleet.release_node(
        call.name("node"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return change


async def accept_boot(call: Call[Nothing, Reasoned]) -> Change:
    """Take the boot seen last as the one to hold the node to."""
    change = await call.services.fleet.accept_boot(
        call.name("node"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now, ask_for_report=True)
    return change


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/nodes",
        needs="fleet.read",
        about="listed",
        summary="List nodes",
        handler=list_nodes,
        query=NodeQuery,
        body=Nothing,
        reply=Page[NodeView],
    ),
    Route(
        method="GET",
        path="/nodes/{node}",
        needs="fleet.read",
        about="node",
        summary="Look at one node",
        handler=get_node,
        query=Nothing,
        body=Nothing,
        reply=NodeDetail,
    ),
    shown_whole("/nodes/{node}/labels", editing.labels, editing.Labels, "A node's labels", about="node"),
    Route(
        method="PUT",
        path="/nodes/{node}/labels",
        needs="node.label",
        about="node",
        summary="Replace a node's labels",
        handler=set_labels,
        query=Nothing,
        body=NewLabels,
        reply=NodeView,
        whole=editing.labels,
        match="must",
    ),
    Route(
        method="POST",
        path="/labels",
        needs="node.label",
        about="listed",
        summary="Set and take away labels of many nodes, each on its own",
        handler=relabel,
        query=Nothing,
        body=Relabel,
        reply=Outcomes[NodeView],
    ),
    Route(
        method="POST",
        path="/nodes/{node}/isolate",
        needs="isolation.act",
        about="node",
        summary="Isolate a node",
        handler=isolate_node,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
    Route(
        method="POST",
        path="/nodes/{node}/release",
        needs="isolation.act",
        about="node",
        summary="Release a node",
        handler=release_node,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
    Route(
        method="POST",
        path="/nodes/{node}/accept-boot",
        needs="boot.accept",
        about="node",
        summary="Accept the boot that a node showed last",
        handler=accept_boot,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
)
