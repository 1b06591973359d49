"""People who log in here: list, make, change, disable, enable, reset, unlock. No answer holds a password or a secret of one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from contract.messages import Name
from controller.api.entry import token_digest
from controller.api.route import AnyRoute, Call, Nothing, Reason, Reasoned, Route, shown_whole
from controller.api.tokens import NewRights
from controller.fleet import editing
from controller.logins import new_setup_code
from controller.people_records import UserView
from controller.permissions import Rights
from controller.records import Record, Strict


class NewUser(Strict, frozen=True, kw_only=True):
    """A person to be."""

    name: Name
    rights: Rights


class Invited(Record, frozen=True, kw_only=True):
    """The code with which the person is set up, shown this once: `ringfence login --setup`."""

    setup: str
    expires_at: float
    about: UserView


class EndSessions(Strict, frozen=True, kw_only=True):
    """Whose sessions: a user, or `oidc:NAME`."""

    person: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: Reason


class Ended(Record, frozen=True, kw_only=True):
    """How many there were."""

    ended: int


class Users(Record, frozen=True, kw_only=True):
    """People."""

    items: list[UserView]


async def list_users(call: Call[Nothing, Nothing]) -> Users:
    """People by name."""
    return Users(items=await call.services.people.list_users(scope=call.scope, now=call.now))


async def new_user(call: Call[Nothing, NewUser]) -> Invited:
    """Make a person. Nobody but that person will know the password."""
    setup, end = new_setup_code(), _setup_end(call.now, call.services.config.people.setup_hours)
    about = await call.services.people.add_user(
        call.body.name,
        call.body.rights,
        token_digest(setup),
        by=call.person,
        setup_expires_at=end,
        now=call.now,
    )
    return Invited(setup=setup, expires_at=end, about=about)


async def set_rights(call: Call[Nothing, NewRights]) -> UserView:
    """Replace the rights of a person; they hold with the next request."""
    return await call.services.people.set_user_rights(
        call.name("user"), call.body.rights, by=call.person, reason=call.body.reason, now=call.now
    )


async def disable(call: Call[Nothing, Reasoned]) -> UserView:
    """Shut a person out at once, with every session and token of their own."""
    return await call.services.people.disable_user(
        call.name("user"), by=call.person, reason=call.body.reason, now=call.now
    )


async def enable(call: Call[Nothing, Reasoned]) -> UserView:
    """Let a disabled person log in again."""
    return await call.services.people.enable_user(
        call.name("user"), by=call.person, reason=call.body.reason, now=call.now
    )


async def reset(call: Call[Nothing, Reasoned]) -> Invited:
    """Forget password, codes and sessions of a person, who is set up anew."""
    setup, end = new_setup_code(), _setup_end(call.now, call.services.config.people.setup_hours)
    about = await call.services.people.reset_user(
        call.name("user"),
        token_digest(setup),
        by=call.person,
        reason=call.body.reason,
        setup_expires_at=end,
        now=call.now,
    )
    return Invited(setup=setup, expires_at=end, about=about)


async def unlock(call: Call[Nothing, Reasoned]) -> UserView:
    """Forget the wrong tries under a person's name."""
    return await call.services.people.unlock_user(
        call.name("user"), by=call.person, reason=call.body.reason, now=call.now
    )


async def end_sessions(call: Call[Nothing, EndSessions]) -> Ended:
    """End every session of a person, also of one whom an issuer vouches for."""
    ended = await call.services.people.end_sessions(
        call.body.person, by=call.person, reason=call.body.reason, now=call.now
    )
    return Ended(ended=ended)


def _setup_end(now: float, hours: float) -> float:
    return now + hours * 3600.0


def _act(verb: str, summary: str, handler: object, reply: object) -> AnyRoute:
    return Route(
        method="POST",
        path=f"/users/{{user}}/{verb}",
        needs="people.manage",
        about="user",
        summary=summary,
        handler=handler,  # type: ignore[arg-type]
        query=Nothing,
        body=Reasoned,
        reply=reply,
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/users",
        needs="people.read",
        about="listed",
        summary="List people who log in here",
        handler=list_users,
        query=Nothing,
        body=Nothing,
        reply=Users,
    ),
    Route(
        method="POST",
        path="/users",
        needs="people.manage",
        about="given",
        summary="Make a person",
        handler=new_user,
        query=Nothing,
        body=NewUser,
        reply=Invited,
        status=201,
    ),
    shown_whole(
        "/users/{user}/rights",
        editing.rights_of_user,
        editing.Held,
        "The rights of a person",
        about="user",
        needs="people.read",
    ),
    Route(
        method="PUT",
        path="/users/{user}/rights",
        needs="people.manage",
        about="user",
        summary="Replace the rights of a person",
        handler=set_rights,
        query=Nothing,
        body=NewRights,
        reply=UserView,
        whole=editing.rights_of_user,
        match="must",
    ),
    Route(
        method="POST",
        path="/sessions/end",
        needs="people.manage",
        about="fleet",
        summary="End every session of a person",
        handler=end_sessions,
        query=Nothing,
        body=EndSessions,
        reply=Ended,
    ),
    _act("disable", "Shut a person out", disable, UserView),
    _act("enable", "Let a disabled person log in again", enable, UserView),
    _act("reset", "Forget password, codes and sessions of a person", reset, Invited),
    _act("unlock", "Forget wrong tries under a person's name", unlock, UserView),
)
