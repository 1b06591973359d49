"""What a route of the admin API is, and what its handler is given.

A route says which permission it needs and what it is about; one without either cannot be written, and one whose path and
whose `about` differ ends the program at import. `controller.api.gate` holds both against whoever asks before a handler runs.
The table of routes is what the server serves and what the OpenAPI document is made from, so they cannot differ. Handlers know
nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from email.utils import format_datetime
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.messages import Name
from contract.names import checked_name
from controller.fleet.editing import Whole
from controller.fleet.subjects import Subject
from controller.permissions import Permission, Person, Scope
from controller.services import Services

MAX_JSON_BYTES = 64 * 1024
MAX_ID = 2**53
MIN_NOTICE: Final = timedelta(days=180)
"""Between the first release that says that a route goes, and the first without it."""

Needs = Permission | Literal["public", "token"]
"""Who may use a route: `public` needs no token, `token` any valid one, else a right with this permission."""
InPath = Literal[
    "site",
    "node",
    "enrolment",
    "incident",
    "grant",
    "reference",
    "plan",
    "rollout",
    "suppression",
    "token",
    "user",
]
About = InPath | Literal["nothing", "fleet", "listed", "named", "given"]
"""What a route reads or changes. One thing that its path names; `named`: what its body names (`names`); `listed`: what there is
of a kind, where the handler takes no more than `call.scope` holds; `given`: rights in its body, which nobody gives who has
them not; `fleet`: the whole of it; `nothing` of any site."""

Cursor = Annotated[str, Meta(max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=500)]
Reason = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]

Q = TypeVar("Q", bound=Struct)
B = TypeVar("B")

PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
_ENROLMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_NUMBERED: Final[frozenset[str]] = frozenset(
    {"incident", "grant", "reference", "plan", "rollout", "suppression"}
)
Number = Annotated[int, Meta(ge=0, le=MAX_ID)]
PATH_TYPES: Final[Mapping[str, object]] = {
    **dict.fromkeys(("site", "node", "token", "user", "outlet", "name"), Name),
    **dict.fromkeys((*_NUMBERED, "act", "code"), Number),
    "enrolment": Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")],
    "evidence": Annotated[str, Meta(pattern=r"\A(newest|[0-9]{1,15})\Z")],
}
"""What each path parameter is, as the document has it; `Call` holds them to it."""


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No query parameters, or no body."""


class Paging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cursor pagination: `cursor` is the `next` of the page before."""

    cursor: Cursor | None = None
    limit: Limit = 100


class Reasoned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An act needs a reason."""

    reason: Reason


def named_in(path: Mapping[str, str], kind: InPath) -> Subject:
    """Return what a path names. Raises Rejected `name.invalid`, `path.number`, `enrolment.unknown`."""
    if kind in _NUMBERED:
        return Subject(kind, str(number_in(path, kind)))
    if kind == "enrolment":
        if _ENROLMENT.fullmatch(path[kind]) is None:
            raise Rejected("enrolment.unknown")
        return Subject(kind, path[kind])
    return Subject(kind, checked_name(path[kind], kind))


def number_in(path: Mapping[str, str], parameter: str) -> int:
    """Return a path parameter that is a number. Raises Rejected `path.number`."""
    text = path[parameter]
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_ID):
        raise Rejected("path.number", f"{parameter}: wanted a whole number")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """One authorised, parsed request."""

    services: Services
    person: Person
    scope: Scope
    """Where the person has the permission that the route needs."""
    path: Mapping[str, str]
    query: Q
    body: B
    now: float
    source: str
    """The address that asks, as it counts: an IPv6 /64 is one."""
    token: str
    """As it was sent; empty where none is needed."""

    def name(self, parameter: str) -> str:
        """Return a path parameter that is a name. Raises Rejected `name.invalid`."""
        return checked_name(self.path[parameter], parameter)

    def number(self, parameter: str) -> int:
        """Return a path parameter that is a number. Raises Rejected `path.number`."""
        return number_in(self.path, parameter)

    def enrolment(self) -> str:
        """Return the enrolment that the path names. Raises Rejected `enrolment.unknown`."""
        return named_in(self.path, "enrolment").key


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecated:
    """That a route goes, and what comes in its place (RFC 9745, RFC 8594). Times are midnight, UTC."""

    since: date
    sunset: date
    """From then on it may be gone: at least MIN_NOTICE after `since`."""
    instead: str
    """The route to use, as `GET /nodes`."""

    def __post_init__(self) -> None:
        """Raise ValueError for a notice that is too short."""
        if self.sunset - self.since < MIN_NOTICE:
            raise ValueError(f"{self.instead}: {MIN_NOTICE.days} days are promised between notice and end")

    def headers(self) -> dict[str, str]:
        """Return what every answer of the route carries."""
        since, sunset = (datetime.combine(day, time(), UTC) for day in (self.since, self.sunset))
        return {
            "Deprecation": f"@{int(since.timestamp())}",
            "Sunset": format_datetime(sunset, usegmt=True),
            "Link": '</api/v1/openapi.json>; rel="deprecation"; type="application/json"',
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[Q, B]):
    """One entry of the table."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    """After the prefix: `/nodes/{node}`."""
    needs: Needs
    about: About
    summary: str
    handler: Callable[[Call[Q, B]], Awaitable[object]]
    query: type[Q]
    body: type[B]
    """A struct (JSON), or bytes (application/octet-stream)."""
    reply: object
    """Type of what the handler returns; None for an empty answer."""
    names: Callable[[B], Sequence[Subject]] | None = None
    """What the body names beside the path: each must be in scope as well."""
    status: int = 200
    whole: Whole | None = None
    """What it shows (GET), or edits, as one whole with an ETag."""
    match: Literal["", "may", "must"] = ""
    """Whether who edits it says what they have seen (If-Match): `must` where a lost update would hurt."""
    makes: bool = False
    """Where there is none it makes one: who wants that says so (If-None-Match: *)."""
    proves: bool = False
    """It tries a password, a code or a secret: each try counts, so it is neither rehearsed nor answered again."""
    max_body_bytes: int = MAX_JSON_BYTES
    deprecated: Deprecated | None = None
    """It goes, and says so with every answer."""

    @property
    def mutates(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"

    @property
    def acts(self) -> bool:
        """Whether it is an act that can be rehearsed (`dry_run`) and answered again (`Idempotency-Key`)."""
        return self.mutates and not self.proves

    def __post_init__(self) -> None:
        """Raise ValueError for a route whose path and whose rule do not fit."""
        parameters = PARAMETER.findall(self.path)
        inside = [name for name in parameters if name in get_args(InPath)]
        if not PATH_TYPES.keys() >= set(parameters):
            raise ValueError(f"{self.path}: its parameters are of no known type")
        wanted = [self.about] if self.about in get_args(InPath) else []
        if inside != wanted:
            raise ValueError(f"{self.path}: its path names {inside}, its rule {self.about!r}")
        if (self.match != "") != (self.whole is not None and self.mutates):
            raise ValueError(f"{self.path}: what is edited as a whole says whether If-Match must be there")
        if self.makes and not self.match:
            raise ValueError(f"{self.path}: what it makes is a whole with an ETag")
        if self.about == "named" and self.names is None:
            raise ValueError(f"{self.path}: it does not say what its body names")
        if self.needs == "public" and self.mutates and not self.proves:
            raise ValueError(f"{self.path}: what changes something and needs no token proves who one is")
        if self.needs == "public" and self.about != "nothing":
            raise ValueError(f"{self.path}: what needs no token is about nothing")


AnyRoute = Route[Any, Any]
"""A route in the table, where the types of query and body differ from line to line."""


def shown_whole(
    path: str, whole: Whole, reply: object, summary: str, *, about: InPath, needs: Needs = "fleet.read"
) -> AnyRoute:
    """Return the GET of what a PUT at the same path edits: its ETag is what that PUT wants."""

    async def show(call: Call[Nothing, Nothing]) -> object:
        """It as it is, with its ETag."""
        return await call.services.fleet.whole(whole, call.path)

    return Route(
        method="GET",
        path=path,
        needs=needs,
        about=about,
        summary=summary,
        handler=show,
        query=Nothing,
        body=Nothing,
        reply=reply,
        whole=whole,
    )
