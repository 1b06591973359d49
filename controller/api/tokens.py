"""Admins' tokens: list, make, revoke; and who one is."""

from __future__ import annotations

import secrets
from typing import Annotated

from msgspec import Meta

from contract.messages import Name
from controller.api.entry import token_digest
from controller.api.route import AnyRoute, Call, Nothing, Route
from controller.records import ApiTokenView, Record, Role, Strict

TOKEN_PREFIX = "rfa_"  # noqa: S105  (a prefix that lets scanners find leaked tokens)


class NewApiToken(Strict, frozen=True, kw_only=True):
    """A token for a person or a program."""

    name: Name
    role: Role
    days: Annotated[float, Meta(gt=0, le=3650)] | None = 90.0
    """None: until it is revoked."""


class ApiTokenMade(Record, frozen=True, kw_only=True):
    """The token, shown this once."""

    token: str
    about: ApiTokenView


class Me(Record, frozen=True, kw_only=True):
    """Who the token says one is."""

    name: str
    role: Role
    controller: str


class ApiTokens(Record, frozen=True, kw_only=True):
    """All tokens."""

    items: list[ApiTokenView]


def make_token() -> str:
    """Return a new token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


async def whoami(call: Call[Nothing, Nothing]) -> Me:
    """Name and role of the token in use."""
    return Me(name=call.person.name, role=call.person.role, controller=call.services.config.name)


async def list_tokens(call: Call[Nothing, Nothing]) -> ApiTokens:
    """Tokens by name, never the tokens themselves."""
    return ApiTokens(items=await call.services.fleet.list_api_tokens())


async def new_token(call: Call[Nothing, NewApiToken]) -> ApiTokenMade:
    """Make a token. It is stored as a digest and shown this once."""
    token = make_token()
    about = await call.services.fleet.add_api_token(
        call.body.name,
        call.body.role,
        token_digest(token),
        expires_at=None if call.body.days is None else call.now + call.body.days * 86400,
        actor=call.person.name,
        now=call.now,
    )
    return ApiTokenMade(token=token, about=about)


async def revoke_token(call: Call[Nothing, Nothing]) -> None:
    """Revoke a token at once."""
    await call.services.fleet.revoke_api_token(call.name("token"), actor=call.person.name, now=call.now)


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/me",
        role="viewer",
        summary="Who am I",
        handler=whoami,
        query=Nothing,
        body=Nothing,
        reply=Me,
    ),
    Route(
        method="GET",
        path="/tokens",
        role="admin",
        summary="List tokens",
        handler=list_tokens,
        query=Nothing,
        body=Nothing,
        reply=ApiTokens,
    ),
    Route(
        method="POST",
        path="/tokens",
        role="admin",
        summary="Make a token",
        handler=new_token,
        query=Nothing,
        body=NewApiToken,
        reply=ApiTokenMade,
        status=201,
    ),
    Route(
        method="DELETE",
        path="/tokens/{token}",
        role="admin",
        summary="Revoke a token",
        handler=revoke_token,
        query=Nothing,
        body=Nothing,
        reply=None,
        status=204,
    ),
)
