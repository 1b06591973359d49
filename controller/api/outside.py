"""What is served beside the table: the document about it, figures for Prometheus, health. Their answers are no JSON of a type."""

from __future__ import annotations

import functools
import importlib.metadata

import msgspec

from controller import openapi
from controller.api import PREFIX
from controller.api.carrying import Text
from controller.api.route import AnyRoute, Call, Nothing, Route
from controller.api.routes import ROUTES
from controller.metrics import CONTENT_TYPE
from controller.permissions import NOWHERE

VERSION = importlib.metadata.version("ringfence")


@functools.cache
def _document() -> bytes:
    return msgspec.json.encode(openapi.document(ROUTES, VERSION))


async def describe(call: Call[Nothing, Nothing]) -> Text:
    """The OpenAPI document: the same for everybody."""
    return Text(_document(), "application/json")


async def metrics(call: Call[Nothing, Nothing]) -> Text:
    """Figures of the sites in scope; those of the process only for whom the whole fleet is in scope."""
    fleet = call.services.fleet
    outlets = await fleet.list_outlets() if call.scope.everywhere else None
    return Text(call.services.metrics.text(await fleet.counts(scope=call.scope), outlets), CONTENT_TYPE)


async def health(call: Call[Nothing, Nothing]) -> Text:
    """Whether the database answers, and nothing else."""
    await call.services.fleet.counts(scope=NOWHERE)
    return Text(b"ok\n", "text/plain; charset=utf-8")


OUTSIDE: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path=f"{PREFIX}/openapi.json",
        needs="public",
        about="nothing",
        summary="This document",
        handler=describe,
        query=Nothing,
        body=Nothing,
        reply=bytes,
    ),
    Route(
        method="GET",
        path="/metrics",
        needs="fleet.read",
        about="listed",
        summary="Figures for Prometheus",
        handler=metrics,
        query=Nothing,
        body=Nothing,
        reply=bytes,
    ),
    Route(
        method="GET",
        path="/healthz",
        needs="public",
        about="nothing",
        summary="Health",
        handler=health,
        query=Nothing,
        body=Nothing,
        reply=bytes,
    ),
)
"""Paths from the root."""
