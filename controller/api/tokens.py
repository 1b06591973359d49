"""API tokens: list, make, change, renew, revoke; and who one is.

What a token may be given is held against the rights of who gives it by the use cases, for it is the body that says it.
"""

from __future__ import annotations

import secrets
from typing import Annotated

from msgspec import Meta

from contract.messages import Name
from controller.api.entry import token_digest
from controller.api.route import AnyRoute, Call, Nothing, Reason, Route, shown_whole
from controller.fleet import editing
from controller.people_records import ApiTokenView
from controller.permissions import Right, Rights
from controller.records import Record, Strict

TOKEN_PREFIX = "rfa_"  # noqa: S105  (a prefix that lets scanners find leaked tokens)
DAY_S = 86400.0
Days = Annotated[float, Meta(gt=0, le=3650)]


class NewApiToken(Strict, frozen=True, kw_only=True):
    """A token for a program, or one of one's own."""

    name: Name
    rights: Rights
    days: Days | None = 90.0
    """None: until it is revoked."""


class NewRights(Strict, frozen=True, kw_only=True):
    """All rights, which replace the ones before."""

    rights: Rights
    reason: Reason


class Renewal(Strict, frozen=True, kw_only=True):
    """How long the new secret is good."""

    days: Days | None = 90.0


class ApiTokenMade(Record, frozen=True, kw_only=True):
    """The token, shown this once."""

    token: str
    about: ApiTokenView


class Me(Record, frozen=True, kw_only=True):
    """Who the token says one is."""

    name: str
    rights: tuple[Right, ...]
    controller: str


class ApiTokens(Record, frozen=True, kw_only=True):
    """Tokens."""

    items: list[ApiTokenView]


def make_token() -> str:
    """Return a new token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


async def whoami(call: Call[Nothing, Nothing]) -> Me:
    """Name and rights of the token in use."""
    return Me(name=call.person.name, rights=call.person.rights, controller=call.services.config.name)


async def list_tokens(call: Call[Nothing, Nothing]) -> ApiTokens:
    """Tokens by name, never the tokens themselves."""
    return ApiTokens(items=await call.services.people.list_tokens(scope=call.scope))


async def new_token(call: Call[Nothing, NewApiToken]) -> ApiTokenMade:
    """Make a token of a service account. It is stored as a digest and shown this once."""
    return await _made(call, own=False)


async def new_own_token(call: Call[Nothing, NewApiToken]) -> ApiTokenMade:
    """Make a token of one's own, which acts for one. It ends when its person does."""
    return await _made(call, own=True)


async def _made(call: Call[Nothing, NewApiToken], *, own: bool) -> ApiTokenMade:
    token = make_token()
    about = await call.services.people.add_token(
        call.body.name,
        call.body.rights,
        token_digest(token),
        by=call.person,
        own=own,
        expires_at=_end(call.now, call.body.days),
        now=call.now,
    )
    return ApiTokenMade(token=token, about=about)


def _end(now: float, days: float | None) -> float | None:
    return None if days is None else now + days * DAY_S


async def set_rights(call: Call[Nothing, NewRights]) -> ApiTokenView:
    """Replace the rights of a token."""
    return await call.services.people.set_token_rights(
        call.name("token"), call.body.rights, by=call.person, reason=call.body.reason, now=call.now
    )


async def renew_token(call: Call[Nothing, Renewal]) -> ApiTokenMade:
    """Make a new secret for a token; the one before is worthless at once."""
    token = make_token()
    about = await call.services.people.renew_token(
        call.name("token"),
        token_digest(token),
        by=call.person,
        expires_at=_end(call.now, call.body.days),
        now=call.now,
    )
    return ApiTokenMade(token=token, about=about)


async def revoke_token(call: Call[Nothing, Nothing]) -> None:
    """Revoke a token at once."""
    await call.services.people.revoke_token(call.name("token"), by=call.person, now=call.now)


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/me",
        needs="token",
        about="nothing",
        summary="Who am I",
        handler=whoami,
        query=Nothing,
        body=Nothing,
        reply=Me,
    ),
    Route(
        method="POST",
        path="/me/tokens",
        needs="token",
        about="given",
        summary="Make a token of one's own",
        handler=new_own_token,
        query=Nothing,
        body=NewApiToken,
        reply=ApiTokenMade,
        status=201,
    ),
    Route(
        method="GET",
        path="/tokens",
        needs="people.read",
        about="listed",
        summary="List tokens",
        handler=list_tokens,
        query=Nothing,
        body=Nothing,
        reply=ApiTokens,
    ),
    Route(
        method="POST",
        path="/tokens",
        needs="people.manage",
        about="given",
        summary="Make a token for a program",
        handler=new_token,
        query=Nothing,
        body=NewApiToken,
        reply=ApiTokenMade,
        status=201,
    ),
    shown_whole(
        "/tokens/{token}/rights",
        editing.rights_of_token,
        editing.Held,
        "The rights of a token",
        about="token",
        needs="people.read",
    ),
    Route(
        method="PUT",
        path="/tokens/{token}/rights",
        needs="people.manage",
        about="token",
        summary="Replace the rights of a token",
        handler=set_rights,
        query=Nothing,
        body=NewRights,
        reply=ApiTokenView,
        whole=editing.rights_of_token,
        match="must",
    ),
    Route(
        method="POST",
        path="/tokens/{token}/renew",
        needs="people.manage",
        about="token",
        summary="Make a new secret for a token",
        handler=renew_token,
        query=Nothing,
        body=Renewal,
        reply=ApiTokenMade,
    ),
    Route(
        method="DELETE",
        path="/tokens/{token}",
        needs="people.manage",
        about="token",
        summary="Revoke a token",
        handler=revoke_token,
        query=Nothing,
        body=Nothing,
        reply=None,
        status=204,
        whole=editing.rights_of_token,
        match="may",
    ),
)
