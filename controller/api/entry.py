"""The one way into the admin API: who, may they, what do they say; then the handler; then the answer or the problem.

The order is fixed: route, failures of the address, token, permission, what the path names, and only then is the body read and
what it names looked at. Compressed bodies are refused, so nothing can swell. A fault of ours is logged without the values it held.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from contract.errors import Rejected
from contract.wire import decode_json
from controller.api import PREFIX
from controller.api.carrying import (
    Answer,
    Wish,
    carry_out,
    refusal_of,
    wanted_key,
    wanted_match,
    wants_rehearsal,
)
from controller.api.gate import admit, admit_body
from controller.api.problem import RETRY_S, Problem, bug, problem_of
from controller.api.route import AnyRoute, Call, Nothing
from controller.budget import Later
from controller.faults import log_fault
from controller.listener import source_of
from controller.permissions import Person, Scope
from controller.services import Services
from controller.store import StoreUnavailable

_HEADERS = {
    "Server": "ringfence",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
GOING = web.RequestKey("ringfence.going", dict)
"""Where a request keeps what a route that goes says of it with every answer."""
_ANYBODY = Person("nobody", ())
MAX_TOKEN_CHARS = 128
WAITED_S = 1.0
"""Who was let in so long ago is asked again before what was waited for is given."""


def add_routes(
    app: web.Application, services: Services, routes: Sequence[AnyRoute], prefix: str = PREFIX
) -> None:
    """Serve `routes` under `prefix`."""
    for route in routes:
        app.router.add_route(route.method, prefix + route.path, _endpoint(services, route))


def _endpoint(services: Services, route: AnyRoute) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        now, begun = time.time(), time.monotonic()
        request[GOING] = {} if route.deprecated is None else route.deprecated.headers()
        source = source_of(request.remote or "0.0.0.0")
        person, scope = await _let_in(services, route, request, now)
        if route.needs != "public":
            services.budget.spend(person.name, begun)
        query, rehearsal = _query(route, request)
        key, match = wanted_key(route, request.headers), wanted_match(route, request.headers)
        content = await _content(services, route, request)
        body = _body(route, request, content)
        await admit_body(services, route, body, scope)
        call = Call(
            services=services,
            person=person,
            scope=scope,
            path=request.match_info,
            query=query,
            body=body,
            now=now,
            source=source,
            token="" if route.needs == "public" else _token(request),
        )
        wish = Wish(rehearsal=rehearsal, key=key, request_sha256=_digest(request, content), match=match)
        answer = await carry_out(route, call, wish)
        waited = route.method == "GET" and time.monotonic() - begun > WAITED_S
        if waited and await _let_in(services, route, request, time.time()) != (person, scope):
            raise Rejected("token.invalid", "your rights have changed meanwhile; ask again")
        return _response(answer)

    return handle


@web.middleware
async def problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn everything that is raised into problem details. Outermost: nothing gets past it."""
    answer = await _answered(request, handler)
    answer.headers.update(request.get(GOING, {}))
    return answer


async def _answered(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Rejected as error:
        return _problem(problem_of(error), error.retry_after if isinstance(error, Later) else None)
    except StoreUnavailable:
        return _problem(problem_of(Rejected("store.unavailable", "the database does not answer")))
    except web.HTTPNotFound:
        return _problem(problem_of(Rejected("route.unknown")))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = _problem(problem_of(Rejected("method.refused", f"allowed: {allowed}")))
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPException as error:
        return _problem(Problem(type="about:blank", title=error.reason, status=error.status, code="http"))
    except Exception as error:  # outermost place of the admin listener: answered, recorded, the process lives
        log_fault(f"{request.method} {request.match_info.route.name or type(error).__name__}", error)
        return _problem(bug())


def token_digest(token: str) -> bytes:
    """Return what is stored of a token. Tokens are 256 random bits, so a plain SHA-256 is enough."""
    return hashlib.sha256(token.encode()).digest()


async def _let_in(
    services: Services, route: AnyRoute, request: web.Request, now: float
) -> tuple[Person, Scope]:
    """Return who asks, and where they may use the route."""
    if route.needs == "public":
        return _ANYBODY, await admit(services, route, _ANYBODY, request.match_info)
    source = source_of(request.remote or "0.0.0.0")
    services.failures.check(source, now)
    try:
        person = await _person(services, request, now)
    except Rejected:
        # Of many that asked at once, those past the limit learn no more than that: the count is exact.
        services.failures.count(source, now)
        raise
    services.failures.check(source, now)
    return person, await admit(services, route, person, request.match_info)


async def _person(services: Services, request: web.Request, now: float) -> Person:
    found = await services.people.whose(token_digest(_token(request)), now=now)
    if found is None:
        raise Rejected("token.invalid", "unknown, expired or revoked")
    return found


def _token(request: web.Request) -> str:
    header = request.headers.getall("Authorization", [])
    if len(header) != 1:
        raise Rejected("token.missing", "wanted one header 'Authorization: Bearer TOKEN'")
    scheme, _, untrusted_token = header[0].partition(" ")
    if (
        scheme.lower() != "bearer"
        or not 0 < len(untrusted_token) <= MAX_TOKEN_CHARS
        or not untrusted_token.isascii()
    ):
        raise Rejected("token.missing", "wanted one header 'Authorization: Bearer TOKEN'")
    return untrusted_token


def _query(route: AnyRoute, request: web.Request) -> tuple[msgspec.Struct, bool]:
    """Return the query, and whether it wants a rehearsal."""
    untrusted: dict[str, str] = {}
    for key, value in request.query.items():
        if key in untrusted:
            raise Rejected("query.malformed", f"{key[:64]!r} is there twice")
        untrusted[key] = value
    rehearsal = wants_rehearsal(route, untrusted)
    try:
        query: msgspec.Struct = msgspec.convert(untrusted, route.query, strict=False)
        return query, rehearsal
    except msgspec.ValidationError as error:
        raise Rejected("query.malformed", str(error)) from None


async def _content(services: Services, route: AnyRoute, request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Rejected("body.encoding", "send it uncompressed")
    return await read_body(request, route.max_body_bytes, services.config.limits.request_s)


def _body(route: AnyRoute, request: web.Request, untrusted: bytes) -> object:
    if route.body is Nothing:
        if untrusted not in (b"", b"{}"):
            raise Rejected("body.malformed", "wanted no body")
        return Nothing()
    if route.body is bytes:
        return untrusted
    if request.content_type != "application/json":
        raise Rejected("body.type", "wanted application/json")
    try:
        return decode_json(untrusted, route.body, max_bytes=route.max_body_bytes)
    except Rejected as rejected:
        if isinstance(rejected.__context__, msgspec.ValidationError) and rejected.__context__.__cause__:
            raise Rejected(
                "body.refused", rejected.detail
            ) from None  # of the right shape: a type's own check
        raise


def _digest(request: web.Request, content: bytes) -> bytes:
    """Return a digest of all that makes a request what it is, but for who asks and by which key."""
    parts = [request.method, request.path_qs, request.content_type, request.headers.get("If-Match", "")]
    parts += request.headers.getall("If-None-Match", [])
    found = hashlib.sha256()
    for part in (*(part.encode() for part in parts), content):
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


async def read_body(request: web.Request, max_bytes: int, within_s: float) -> bytes:
    """Read a body of at most `max_bytes`. Raises Rejected `body.too-large`, `body.slow`, `body.malformed`."""
    if request.content_length is not None and request.content_length > max_bytes:
        raise Rejected("body.too-large", f"{request.content_length} bytes, at most {max_bytes}")
    parts = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for part in request.content.iter_any():
                parts += part
                if len(parts) > max_bytes:
                    raise Rejected("body.too-large", f"at most {max_bytes} bytes")
    except TimeoutError:
        raise Rejected("body.slow", f"not here after {within_s:g} s") from None
    except (web.RequestPayloadError, ConnectionError):
        raise Rejected("body.malformed", "the transfer is broken") from None
    return bytes(parts)


def _response(answer: Answer) -> web.Response:
    headers = {**_HEADERS, **answer.headers}
    if answer.content_type:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=answer.content or None, headers=headers)


def _problem(problem: Problem, retry_after: str | None = None) -> web.Response:
    headers: dict[str, str] = {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status in RETRY_S:
        headers["Retry-After"] = retry_after or RETRY_S[problem.status]
    if problem.status in (408, 413):
        headers["Connection"] = "close"
    return _response(refusal_of(problem, headers))
