"""Enrolments: who wants in, who is expected, and the one-use tokens for technicians."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

from msgspec import Meta

from contract.messages import Name
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.enrolment_records import EnrolmentState, EnrolmentView, EnrolTokenView, PreregistrationView
from controller.fleet.subjects import Subject
from controller.records import Page, Record, Strict

EkId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class EnrolmentQuery(Paging, frozen=True, kw_only=True):
    """Which enrolments."""

    state: EnrolmentState | None = None


class Approval(Strict, frozen=True, kw_only=True):
    """Let a node in."""

    site: Name | None = None
    """Where the node named none, or another than it named."""
    replace: bool = False
    """The node of this id has come with new keys on the same TPM: what it had before is revoked."""


class Expected(Strict, frozen=True, kw_only=True):
    """An endorsement key that is expected."""

    ek_id: EkId
    """SHA-256 of the EK's SubjectPublicKeyInfo, hex."""
    site: Name
    node: Name | None = None


class NewToken(Strict, frozen=True, kw_only=True):
    """A one-use token for one enrolment."""

    site: Name
    node: Name | None = None
    hours: Annotated[float, Meta(gt=0, le=24 * 90)] = 24.0


class NewTokenMade(Record, frozen=True, kw_only=True):
    """The token, shown this once."""

    token: str
    about: EnrolTokenView


async def list_enrolments(call: Call[EnrolmentQuery, Nothing]) -> Page[EnrolmentView]:
    """Enrolments, newest first."""
    wanted = call.query
    return await call.services.fleet.list_enrolments(
        scope=call.scope, state=wanted.state, after=wanted.cursor, limit=wanted.limit
    )


async def approve(call: Call[Nothing, Approval]) -> EnrolmentView:
    """Let a node in; it gets its certificate when it asks next."""
    view = await call.services.fleet.approve(
        call.enrolment(),
        actor=call.person.name,
        now=call.now,
        site=call.body.site,
        replace=call.body.replace,
    )
    await call.services.drop(view.node)  # one that is open with the keys that were just revoked
    return view


async def reject(call: Call[Nothing, Reasoned]) -> EnrolmentView:
    """Turn a node away."""
    return await call.services.fleet.reject(
        call.enrolment(), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def list_expected(call: Call[Paging, Nothing]) -> Page[PreregistrationView]:
    """Expected endorsement keys."""
    return await call.services.fleet.list_preregistrations(
        scope=call.scope, after=call.query.cursor, limit=call.query.limit
    )


async def preregister(call: Call[Nothing, Expected]) -> PreregistrationView:
    """Expect an endorsement key: its node is let in by itself."""
    return await call.services.fleet.preregister(
        call.body.ek_id, site=call.body.site, node=call.body.node, actor=call.person.name, now=call.now
    )


async def new_token(call: Call[Nothing, NewToken]) -> NewTokenMade:
    """Make a one-use token. It is stored as a digest and shown this once."""
    token = "rfe_" + secrets.token_urlsafe(32)
    about = await call.services.fleet.new_enrol_token(
        hashlib.sha256(token.encode()).digest(),
        site=call.body.site,
        node=call.body.node,
        expires_at=call.now + call.body.hours * 3600,
        actor=call.person.name,
        now=call.now,
    )
    return NewTokenMade(token=token, about=about)


def _approval_names(body: Approval) -> list[Subject]:
    return [] if body.site is None else [Subject("site", body.site)]


def _expected_names(body: Expected) -> list[Subject]:
    claimed = [] if body.node is None else [Subject("claimed-node", body.node)]
    return [Subject("site", body.site), *claimed, Subject("claimed-ek", body.ek_id)]


def _token_names(body: NewToken) -> list[Subject]:
    claimed = [] if body.node is None else [Subject("claimed-node", body.node)]
    return [Subject("site", body.site), *claimed]


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/enrolments",
        needs="fleet.read",
        about="listed",
        summary="List enrolments",
        handler=list_enrolments,
        query=EnrolmentQuery,
        body=Nothing,
        reply=Page[EnrolmentView],
    ),
    Route(
        method="POST",
        path="/enrolments/{enrolment}/approve",
        needs="node.admit",
        about="enrolment",
        names=_approval_names,
        summary="Let a node in",
        handler=approve,
        query=Nothing,
        body=Approval,
        reply=EnrolmentView,
    ),
    Route(
        method="POST",
        path="/enrolments/{enrolment}/reject",
        needs="node.admit",
        about="enrolment",
        summary="Turn a node away",
        handler=reject,
        query=Nothing,
        body=Reasoned,
        reply=EnrolmentView,
    ),
    Route(
        method="GET",
        path="/preregistrations",
        needs="fleet.read",
        about="listed",
        summary="List expected endorsement keys",
        handler=list_expected,
        query=Paging,
        body=Nothing,
        reply=Page[PreregistrationView],
    ),
    Route(
        method="POST",
        path="/preregistrations",
        needs="node.expect",
        about="named",
        names=_expected_names,
        summary="Expect an endorsement key",
        handler=preregister,
        query=Nothing,
        body=Expected,
        reply=PreregistrationView,
        status=201,
    ),
    Route(
        method="POST",
        path="/enrolment-tokens",
        needs="node.expect",
        about="named",
        names=_token_names,
        summary="Make a one-use enrolment token",
        handler=new_token,
        query=Nothing,
        body=NewToken,
        reply=NewTokenMade,
        status=201,
    ),
)
