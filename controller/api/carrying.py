"""How a mutation is carried out, whatever it is. Declared at the route, done here, known to no handler.

- **Rehearsed** (`?dry_run=true`): the same checks and the same answer, in transactions that leave nothing, and with nobody told.
- **Only on what the asker has seen** (`If-Match`; `If-None-Match: *` where they have seen nothing there): checked in the
  transaction of the act, where the route edits something whole.
- **Once** (`Idempotency-Key`): the same key and the same request, the same answer, from the first time it was carried out.

What proves who one is (`Route.proves`) takes none of them: a try that is not counted is a free guess, and its answer is no one else's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from contract.errors import Rejected
from controller.api.problem import CONTENT_TYPE, Problem, problem_of
from controller.api.route import AnyRoute, Call
from controller.fleet.editing import Match, check_match, parse_match, tag_of
from controller.fleet.once import Asked, Held
from controller.store import StoreUnavailable, Transaction, rehearsed, under

log = logging.getLogger(__name__)

REHEARSED: Final = "Ringfence-Dry-Run"
"""Header of an answer after which everything is as it was."""
REPLAYED: Final = "Idempotency-Replayed"
"""Header of an answer that was given before."""
_TRUTH: Final = {"true": True, "false": False}
_KEY: Final = re.compile(r"\A(?:\"(?P<quoted>[A-Za-z0-9_.:-]{16,128})\"|(?P<bare>[A-Za-z0-9_.:-]{16,128}))\Z")
Job = Callable[[Transaction], object]


class Answer(Struct, frozen=True):
    """What is sent back."""

    status: int
    content: bytes
    content_type: str
    headers: dict[str, str] = {}


class Text(Struct, frozen=True):
    """What a handler returns that is not JSON."""

    content: bytes
    content_type: str


class Wish(Struct, frozen=True, kw_only=True):
    """How the asker wants it carried out."""

    rehearsal: bool = False
    key: str = ""
    """Idempotency-Key; empty: none."""
    request_sha256: bytes = b""
    """Of all that makes the request what it is."""
    match: Match | None = None
    """What the asker has seen."""


class _Terms:
    """What a request adds to its jobs: the first one checks what was seen, each of them marks that something was done."""

    def __init__(self, check: Job | None, mark: Job | None, *, rehearsal: bool) -> None:
        self._check = check
        self._mark = mark
        self._rehearsal = rehearsal
        self.over = False
        """The handler has returned: what it left running is no part of the act."""

    def on(self, fn: Job) -> Job:
        if self._rehearsal:
            return rehearsed(self._with(fn))
        return fn if self.over else self._with(fn)

    def _with(self, fn: Job) -> Job:
        before = [job for job in (self._mark, self._check) if job is not None]
        self._check = None

        def job(tx: Transaction) -> object:
            for each in before:
                each(tx)
            return fn(tx)

        return job


def wants_rehearsal(route: AnyRoute, untrusted_query: dict[str, str]) -> bool:
    """Take `dry_run` out of a query. Raises Rejected `query.malformed`."""
    if not route.acts or "dry_run" not in untrusted_query:
        return False
    wanted = _TRUTH.get(untrusted_query.pop("dry_run"))
    if wanted is None:
        raise Rejected("query.malformed", "dry_run: wanted true or false")
    return wanted


def wanted_key(route: AnyRoute, untrusted_headers: Mapping[str, str]) -> str:
    """Return the Idempotency-Key, or nothing. Raises Rejected `idempotency.key`."""
    text = untrusted_headers.get("Idempotency-Key")
    if text is None or not route.mutates:
        return ""
    found = _KEY.fullmatch(text)
    if found is None or not route.acts:
        wanted = (
            "wanted 16 to 128 of letters, digits and _.:-, new for every act" if route.acts else "not here"
        )
        raise Rejected("idempotency.key", f"Idempotency-Key: {wanted}")
    return found["quoted"] or found["bare"]


def wanted_match(route: AnyRoute, untrusted_headers: Mapping[str, str]) -> Match | None:
    """Return the tags of If-Match, or what If-None-Match says. Raises Rejected `match.malformed`, `match.none`, `match.missing`."""
    text, none = untrusted_headers.get("If-Match"), untrusted_headers.get("If-None-Match")
    if not route.mutates:
        return None
    if none is not None:
        if not route.makes:
            raise Rejected("match.none", "If-None-Match: this makes nothing that could be there before")
        if none.strip() != "*":
            raise Rejected("match.malformed", "If-None-Match: wanted *")
        if text is None:
            return "absent"
        parse_match(text)
        return frozenset()  # nothing is there and is not: what is asked for fits nothing
    if text is None:
        if route.match == "must":
            or_none = "; If-None-Match: * to make it" if route.makes else ""
            raise Rejected(
                "match.missing",
                f"GET it first and send its ETag as If-Match, or * to overwrite whatever it is{or_none}",
            )
        return None
    if route.whole is None:
        raise Rejected("match.none", "what this changes has no ETag")
    return parse_match(text)


async def carry_out(route: AnyRoute, call: Call[Any, Any], wish: Wish) -> Answer:
    """Run the handler as it was wished. Raises what it raises, and Rejected `match.stale`, `idempotency.*`."""
    if not route.mutates:
        return _answer_of(route, await route.handler(call))
    check: Job | None = None
    if wish.match is not None and route.whole is not None:
        whole, match = route.whole, wish.match

        def check(tx: Transaction) -> None:
            check_match(tx, whole, call.path, match)

    if wish.rehearsal:
        call = dataclasses.replace(call, services=dataclasses.replace(call.services, quiet=True))
        with under(_Terms(check, None, rehearsal=True)):
            return _answer_of(route, await route.handler(call), {REHEARSED: "true"})
    if wish.key:
        return await _once(route, call, check, wish)
    return await _handled(route, call, _Terms(check, None, rehearsal=False))


async def _handled(route: AnyRoute, call: Call[Any, Any], terms: _Terms) -> Answer:
    try:
        with under(terms):
            return _answer_of(route, await route.handler(call))
    finally:
        terms.over = True


async def _once(route: AnyRoute, call: Call[Any, Any], check: Job | None, wish: Wish) -> Answer:
    once = call.services.once
    asked = Asked(account=call.person.name, key=wish.key, request_sha256=wish.request_sha256)
    held = await once.begin(asked, now=call.now)
    if not isinstance(held, Held):
        before = msgspec.msgpack.decode(held, type=Answer)
        return msgspec.structs.replace(before, headers={**before.headers, REPLAYED: "true"})
    try:
        terms = _Terms(check, lambda tx: once.mark(tx, held), rehearsal=False)
        answer = await _handled(route, call, terms)
    except Rejected as rejected:
        problem = problem_of(rejected)
        if problem.status >= 500:
            await once.drop(held)
            raise
        answer = refusal_of(problem)
    except BaseException:  # whatever it was goes on: only the key must be free again, where nothing was done
        with contextlib.suppress(StoreUnavailable):
            await once.drop(held)
        raise
    try:
        await once.keep(held, msgspec.msgpack.encode(answer))
    except StoreUnavailable:
        log.warning("%s %s: done, and its answer could not be kept", route.method, route.path)
    return answer


def _answer_of(route: AnyRoute, value: object, headers: Mapping[str, str] | None = None) -> Answer:
    added = dict(headers or {})
    if isinstance(value, Text):
        return Answer(200, value.content, value.content_type, added)
    if route.reply is None:
        return Answer(204, b"", "", added)
    content = msgspec.json.encode(value)
    if route.whole is not None and not route.mutates:
        added["ETag"] = tag_of(content)
    return Answer(route.status, content, "application/json", added)


def refusal_of(problem: Problem, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a problem as it is sent."""
    return Answer(problem.status, msgspec.json.encode(problem), CONTENT_TYPE, dict(headers or {}))
