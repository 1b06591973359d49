"""Stored evidence and signed results: list, export, and the key that others verify results with."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from msgspec import Meta

from contract.errors import Rejected
from controller.api.route import AnyRoute, Call, Nothing, Paging, Route
from controller.evidence_records import BundleView, EvidenceView, ResultKeyView, ResultView
from controller.records import Page, Strict

NEWEST = "newest"


class ResultQuery(Strict, frozen=True, kw_only=True):
    """What the result must echo, so that it was not signed before it was asked for."""

    nonce: Annotated[str, Meta(max_length=88)] | None = None
    """8 to 64 bytes, base64url."""


async def list_evidence(call: Call[Paging, Nothing]) -> Page[EvidenceView]:
    """Stored evidence of one node, newest first."""
    return await call.services.archive.listed(
        call.name("node"), after=call.query.cursor, limit=call.query.limit
    )


async def get_evidence(call: Call[Nothing, Nothing]) -> BundleView:
    """One piece of evidence as files."""
    which = call.path["evidence"]
    if which != NEWEST and not which.isdigit():
        raise Rejected("evidence.unknown", f"wanted a number or {NEWEST!r}")
    number = None if which == NEWEST else call.number("evidence")
    return await call.services.archive.bundle(call.name("node"), number, now=call.now)


async def get_result(call: Call[ResultQuery, Nothing]) -> ResultView:
    """The result in force, signed now."""
    return await call.services.archive.result(
        call.name("node"), now=call.now, nonce=_decoded(call.query.nonce)
    )


async def get_result_key(call: Call[Nothing, Nothing]) -> ResultKeyView:
    """The public key of results, as JWK and PEM."""
    key = call.services.archive.key
    return ResultKeyView(jwk=key.jwk, pem=key.pem.decode())


def _decoded(nonce: str | None) -> bytes | None:
    if nonce is None:
        return None
    try:
        return base64.b64decode(nonce + "=" * (-len(nonce) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Rejected("result.nonce", "wanted base64url") from None


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/nodes/{node}/evidence",
        needs="evidence.read",
        about="node",
        summary="List the stored evidence of a node",
        handler=list_evidence,
        query=Paging,
        body=Nothing,
        reply=Page[EvidenceView],
    ),
    Route(
        method="GET",
        path="/nodes/{node}/evidence/{evidence}",
        needs="evidence.read",
        about="node",
        summary="Export one piece of evidence, or the newest",
        handler=get_evidence,
        query=Nothing,
        body=Nothing,
        reply=BundleView,
    ),
    Route(
        method="GET",
        path="/nodes/{node}/result",
        needs="fleet.read",
        about="node",
        summary="The attestation result in force, signed",
        handler=get_result,
        query=ResultQuery,
        body=Nothing,
        reply=ResultView,
    ),
    Route(
        method="GET",
        path="/results/key",
        needs="fleet.read",
        about="nothing",
        summary="The public key of attestation results",
        handler=get_result_key,
        query=Nothing,
        body=Nothing,
        reply=ResultKeyView,
    ),
)
