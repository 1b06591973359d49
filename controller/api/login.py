"""Logging in and out, being set up, and one's own password. What is typed here is never logged and never shown again.

Every try of an address is counted before it is looked at, right or wrong, as each costs a slow hash.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from contract.errors import Rejected
from contract.messages import Name
from controller.api.entry import token_digest
from controller.api.route import AnyRoute, Call, Nothing, Route
from controller.idtoken import MAX_TOKEN_CHARS
from controller.oidc import Oidc
from controller.people_records import LoggedIn, OidcOffer, SetUp
from controller.records import Strict
from controller.services import Services

Password = Annotated[str, Meta(min_length=1, max_length=1024)]
Code = Annotated[str, Meta(min_length=6, max_length=64)]
Setup = Annotated[str, Meta(min_length=1, max_length=128)]


class Credentials(Strict, frozen=True, kw_only=True):
    """Who says they are who."""

    user: Name
    password: Password
    code: Code
    """Of the authenticator, or a recovery code."""


class Invitation(Strict, frozen=True, kw_only=True):
    """A person who was made or reset."""

    user: Name
    setup: Setup
    """The code that whoever made the person was shown."""


class FirstLogin(Strict, frozen=True, kw_only=True):
    """A person who sets themselves up."""

    user: Name
    setup: Setup
    password: Password
    code: Code
    """The first of the authenticator."""


class IdToken(Strict, frozen=True, kw_only=True):
    """What the issuer gave."""

    id_token: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]


class NewPassword(Strict, frozen=True, kw_only=True):
    """One's own password, replaced."""

    password: Password
    code: Code
    new_password: Password


async def log_in(call: Call[Nothing, Credentials]) -> LoggedIn:
    """Begin a session: a token that ends by itself after some hours."""
    call.services.tries.count(call.source, call.now)
    body = call.body
    return await call.services.logins.log_in(body.user, body.password, body.code, now=call.now)


async def offer(call: Call[Nothing, Invitation]) -> SetUp:
    """What the authenticator of a new person must be given."""
    call.services.tries.count(call.source, call.now)
    return await call.services.logins.offer(call.body.user, call.body.setup, now=call.now)


async def set_up(call: Call[Nothing, FirstLogin]) -> LoggedIn:
    """Choose a password, show the first code, get recovery codes, and begin a session."""
    call.services.tries.count(call.source, call.now)
    body = call.body
    return await call.services.logins.set_up(body.user, body.setup, body.password, body.code, now=call.now)


async def log_out(call: Call[Nothing, Nothing]) -> None:
    """End the session in use."""
    await call.services.logins.log_out(token_digest(call.token), call.person, now=call.now)


async def set_password(call: Call[Nothing, NewPassword]) -> None:
    """Replace one's own password. Every session ends, this one too."""
    if call.person.user is None:
        raise Rejected("token.nobodys", "only who has logged in here by name has a password")
    call.services.tries.count(call.source, call.now)
    body = call.body
    await call.services.logins.set_password(
        call.person.user, body.password, body.code, body.new_password, now=call.now
    )


async def begin_oidc(call: Call[Nothing, Nothing]) -> OidcOffer:
    """Where to log in with the issuer, and the nonce that its token must bring."""
    call.services.tries.count(call.source, call.now)
    return await _issuer(call.services).begin(now=call.now)


async def log_in_oidc(call: Call[Nothing, IdToken]) -> LoggedIn:
    """Begin a session on the issuer's word."""
    call.services.tries.count(call.source, call.now)
    return await _issuer(call.services).log_in(call.body.id_token, now=call.now)


def _issuer(services: Services) -> Oidc:
    if services.oidc is None:
        raise Rejected("oidc.unknown", "no issuer is configured here: [oidc] in controller.toml")
    return services.oidc


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/login",
        needs="public",
        about="nothing",
        summary="Log in by password and code",
        proves=True,
        handler=log_in,
        query=Nothing,
        body=Credentials,
        reply=LoggedIn,
    ),
    Route(
        method="POST",
        path="/login/setup",
        needs="public",
        about="nothing",
        summary="What the authenticator of a new person must be given",
        proves=True,
        handler=offer,
        query=Nothing,
        body=Invitation,
        reply=SetUp,
    ),
    Route(
        method="POST",
        path="/login/setup/confirm",
        needs="public",
        about="nothing",
        summary="Choose a password, show the first code, and log in",
        proves=True,
        handler=set_up,
        query=Nothing,
        body=FirstLogin,
        reply=LoggedIn,
    ),
    Route(
        method="POST",
        path="/login/oidc/begin",
        needs="public",
        about="nothing",
        summary="Where to log in with the issuer, and with which nonce",
        proves=True,
        handler=begin_oidc,
        query=Nothing,
        body=Nothing,
        reply=OidcOffer,
    ),
    Route(
        method="POST",
        path="/login/oidc",
        needs="public",
        about="nothing",
        summary="Log in by an ID token",
        proves=True,
        handler=log_in_oidc,
        query=Nothing,
        body=IdToken,
        reply=LoggedIn,
    ),
    Route(
        method="POST",
        path="/logout",
        needs="token",
        about="nothing",
        summary="End the session in use",
        handler=log_out,
        query=Nothing,
        body=Nothing,
        reply=None,
        status=204,
    ),
    Route(
        method="PUT",
        path="/me/password",
        needs="token",
        about="nothing",
        summary="Replace one's own password",
        proves=True,
        handler=set_password,
        query=Nothing,
        body=NewPassword,
        reply=None,
        status=204,
    ),
)
