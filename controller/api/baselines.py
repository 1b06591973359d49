"""Baselines: push what was signed offline, list, assign to a site."""

from __future__ import annotations

from contract.messages import Count, Name
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reason, Route, shown_whole
from controller.fleet import editing
from controller.records import BaselineView, Change, Page, Record, Strict
from controller.repository import MAX_BUNDLE_BYTES


class Assignment(Strict, frozen=True, kw_only=True):
    """Which baseline a site is to hold to."""

    name: Name
    version: Count | None = None
    """None: the newest."""
    reason: Reason


class Pushed(Record, frozen=True, kw_only=True):
    """The baselines that were not here before."""

    new: list[BaselineView]


async def list_baselines(call: Call[Paging, Nothing]) -> Page[BaselineView]:
    """Baselines by name and version."""
    return await call.services.fleet.list_baselines(
        scope=call.scope, after=call.query.cursor, limit=call.query.limit
    )


async def push_baselines(call: Call[Nothing, bytes]) -> Pushed:
    """Verify a bundle of signed files and take it in whole, or not at all."""
    new = await call.services.signed_files.push(call.body, actor=call.person.name, now=call.now)
    call.services.ring()
    return Pushed(new=new)


async def assign_baseline(call: Call[Nothing, Assignment]) -> Change:
    """Choose a baseline for one site; every node of it is told at once."""
    body = call.body
    change = await call.services.fleet.assign_baseline(
        call.name("site"), body.name, body.version, actor=call.person.name, reason=body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return change


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/baselines",
        needs="fleet.read",
        about="listed",
        summary="List signed baselines",
        handler=list_baselines,
        query=Paging,
        body=Nothing,
        reply=Page[BaselineView],
    ),
    Route(
        method="POST",
        path="/baselines",
        needs="baseline.push",
        about="fleet",
        summary="Push a bundle of signed baselines",
        handler=push_baselines,
        query=Nothing,
        body=bytes,
        reply=Pushed,
        max_body_bytes=MAX_BUNDLE_BYTES,
    ),
    shown_whole(
        "/sites/{site}/baseline",
        editing.chosen,
        editing.Chosen,
        "The baseline that a site is to hold to",
        about="site",
    ),
    Route(
        method="PUT",
        path="/sites/{site}/baseline",
        needs="baseline.assign",
        about="site",
        summary="Assign a baseline to a site",
        handler=assign_baseline,
        query=Nothing,
        body=Assignment,
        reply=Change,
        whole=editing.chosen,
        match="may",
    ),
)
