"""What a route of the admin API is, and what its handler is given.

A route names the least role that may use it; one without a role cannot be written. The table of routes is
what the server serves and what the OpenAPI document is made from, so they cannot differ. Handlers know nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.names import checked_name
from controller.records import Role
from controller.services import Services

MAX_JSON_BYTES = 64 * 1024
MAX_ID = 2**53

Access = Role | Literal["public"]
"""Who may use a route: `public` needs no token, `viewer` any token, `admin` a token with that role."""

Cursor = Annotated[str, Meta(max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=500)]
Reason = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]

Q = TypeVar("Q", bound=Struct)
B = TypeVar("B")


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No query parameters, or no body."""


class Paging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cursor pagination: `cursor` is the `next` of the page before."""

    cursor: Cursor | None = None
    limit: Limit = 100


class Reasoned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An act needs a reason."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Person:
    """Who is asking, as their token says."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """One authorised, parsed request."""

    services: Services
    person: Person
    path: Mapping[str, str]
    query: Q
    body: B
    now: float

    def name(self, parameter: str) -> str:
        """Return a path parameter that is a name. Raises Rejected `name.invalid`."""
        return checked_name(self.path[parameter], parameter)

    def number(self, parameter: str) -> int:
        """Return a path parameter that is a number. Raises Rejected `path.number`."""
        text = self.path[parameter]
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_ID):
            raise Rejected("path.number", f"{parameter}: wanted a whole number")
        return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[Q, B]):
    """One entry of the table."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    """After the prefix: `/nodes/{node}`."""
    role: Access
    summary: str
    handler: Callable[[Call[Q, B]], Awaitable[object]]
    query: type[Q]
    body: type[B]
    """A struct (JSON), or bytes (application/octet-stream)."""
    reply: object
    """Type of what the handler returns; None for an empty answer."""
    status: int = 200
    max_body_bytes: int = MAX_JSON_BYTES
    tag: str = ""


AnyRoute = Route[Any, Any]
"""A route in the table, where the types of query and body differ from line to line."""
