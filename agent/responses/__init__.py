"""Responses by name: one file each in this folder, module name = response name. No list, no edit elsewhere.

A directive names responses; it cannot say what they do. A response is level-triggered: `wanted` is pure and
says what the machine is to look like while the request stands; the reconcile loop keeps it so on every pass
(and again after a restart, from the stored directive). `apply` is only the quick part that must not wait for
the pass; `undo` puts away what `apply` left and the pass would not.

Refuses: a name that is no file here (the whole directive is refused, ATTACKS a07), addresses that are none.
Relies on: the caller having verified the directive's signature; one thread calling.
"""

from __future__ import annotations

import importlib
import ipaddress
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from msgspec import Struct

from contract import directive
from contract.errors import Rejected
from contract.messages import Posture, Severity

if TYPE_CHECKING:
    from agent.probes import Surroundings


class Wanted(Struct, frozen=True, kw_only=True):
    """What the machine is to look like while a request stands; the loop joins those of all requests."""

    posture: Posture | None = None
    """`isolated` wins over everything; None leaves the directive's own posture."""
    fenced: tuple[str, ...] = ()
    """IP addresses whose packets are dropped, both ways. Checked by `checked_addresses`."""


class Told(Struct, frozen=True, kw_only=True):
    """Something to put into the event spool."""

    kind: str
    severity: Severity
    summary: str
    detail: dict[str, str] = {}


class Response(ABC):
    """One response. The module exposes its subclass under this same name, `Response`; no arguments to make it."""

    @abstractmethod
    def wanted(self, request: directive.Response) -> Wanted:
        """Return what the request wants of the machine. Pure. Raises Rejected `directive.response` for a bad request."""

    @abstractmethod
    def apply(self, around: Surroundings, request: directive.Response) -> list[Told]:
        """Do what must not wait for the next full pass (milliseconds). Idempotent. Returns what to tell.

        Called once when a request is new, and again after a restart while it stands; `around` already
        carries the posture and the fenced addresses that are wanted.
        """

    @abstractmethod
    def undo(self, around: Surroundings) -> list[Told]:
        """Put away what `apply` left, when no request of this name stands any more. Idempotent."""


def checked_addresses(request: directive.Response) -> tuple[str, ...]:
    """Return the request's addresses in canonical form, sorted. Raises Rejected `directive.response`.

    Single hosts only: no prefixes, no zone ids, nothing unspecified, loopback or multicast.
    """
    found = set()
    for untrusted_text in request.addresses:
        try:
            address = ipaddress.ip_address(untrusted_text)
        except ValueError:
            raise Rejected(
                "directive.response", f"{request.name}: {untrusted_text!r} is no IP address"
            ) from None
        if address.is_unspecified or address.is_loopback or address.is_multicast or "%" in untrusted_text:
            raise Rejected("directive.response", f"{request.name}: {untrusted_text!r} is no host's address")
        found.add(str(address))
    return tuple(sorted(found))


@cache
def responses() -> Mapping[str, Response]:
    """Return one instance of every response, by name, found by listing this folder."""
    found = {}
    for entry in pkgutil.iter_modules(__path__):
        module: ModuleType = importlib.import_module(f"{__name__}.{entry.name}")
        found[entry.name] = module.Response()
    return found


def checked(requests: list[directive.Response]) -> list[tuple[directive.Response, Response, Wanted]]:
    """Return each request with its response and what it wants. Raises Rejected for the first that is unknown or bad."""
    out = []
    for request in requests:
        response = responses().get(request.name)
        if response is None:
            raise Rejected("directive.unknown-response", f"no response named {request.name!r}")
        out.append((request, response, response.wanted(request)))
    return out
