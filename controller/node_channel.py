"""What the node listener answers: enrolment without a certificate; sessions and signed files with one.

Everything is MessagePack; a refusal is a `Refused` with the HTTP status of its code. Nothing here is reachable
with an admin's token, and nothing of the admin API is reachable here.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable

from aiohttp import WSCloseCode, web
from aiohttp.typedefs import Middleware

from contract.errors import Rejected
from contract.messages import (
    ENROL_BEGIN_PATH,
    ENROL_FINISH_PATH,
    MAX_ENROL_BYTES,
    METADATA_PATH,
    SESSION_PATH,
    TARGETS_PATH,
    Message,
    Refused,
    never_more,
)
from contract.wire import encode
from controller import enrol
from controller.api.entry import read_body
from controller.api.problem import status_of
from controller.authority import CertifiedNode, node_identity
from controller.faults import log_fault
from controller.issuing import Issuing
from controller.listener import source_of
from controller.services import Services
from controller.sessions import SOCKET
from controller.store import StoreUnavailable

CONTENT_TYPE = "application/msgpack"
_METADATA_FILE = re.compile(r"timestamp\.json|[1-9][0-9]{0,15}\.(?:root|snapshot|targets)\.json", re.ASCII)
_TARGET_FILE = re.compile(r"[a-z0-9-]{1,63}/[0-9a-f]{64}\.[0-9]{1,16}\.toml", re.ASCII)
_HANDSHAKE_CODES = {
    "session.no-certificate": 401,
    "session.certificate": 403,
    "session.unknown-node": 403,
    "certificate.identity": 403,
    "certificate.expired": 403,
    "enrolment.proof": 403,
    "enrolment.rejected": 403,
    "enrolment.ek-untrusted": 403,
    "enrolment.ak-revoked": 403,
    "ek.revoked": 403,
    "ek.virtual": 403,
    "ek.firmware": 403,
    "ek.kind-unknown": 403,
    "enrolment.token": 403,
    "enrolment.too-many": 503,
}


def node_app(services: Services, issuing: Issuing) -> web.Application:
    """Return the application of the node listener."""

    async def session(request: web.Request) -> web.StreamResponse:
        return await services.sessions.serve(request, _certified(request))

    async def metadata(request: web.Request) -> web.StreamResponse:
        await _check_bound(services, request)
        return await _file(services, "metadata", request.match_info["name"], _METADATA_FILE)

    async def target(request: web.Request) -> web.StreamResponse:
        await _check_bound(services, request)
        name = f"{request.match_info['baseline']}/{request.match_info['name']}"
        return await _file(services, "targets", name, _TARGET_FILE)

    async def begin(request: web.Request) -> web.StreamResponse:
        return _packed(await _guarded(services, request, lambda body: enrol.begin(services, body)))

    async def finish(request: web.Request) -> web.StreamResponse:
        return _packed(await _guarded(services, request, lambda body: enrol.finish(services, issuing, body)))

    app = web.Application(middlewares=[_refusals(services)], client_max_size=MAX_ENROL_BYTES)
    app.router.add_get(SESSION_PATH, session)
    app.router.add_get(METADATA_PATH + "/{name}", metadata)
    app.router.add_get(TARGETS_PATH + "/{baseline}/{name}", target)
    app.router.add_post(ENROL_BEGIN_PATH, begin)
    app.router.add_post(ENROL_FINISH_PATH, finish)
    return app


def _certified(request: web.Request) -> CertifiedNode:
    """Return who the TLS layer has verified. Raises Rejected `session.no-certificate`, `certificate.*` (b10)."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    der = tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject) else None
    if not der:
        raise Rejected(
            "session.no-certificate", "a client certificate of this controller is needed; enrol first"
        )
    identity = node_identity(der)
    if time.time() >= identity.not_after:
        raise Rejected("certificate.expired", "enrol again")
    return identity


async def _check_bound(services: Services, request: web.Request) -> None:
    identity = _certified(request)
    await services.fleet.check_certificate(identity.node, identity.fingerprint)


async def _file(services: Services, folder: str, name: str, wanted: re.Pattern[str]) -> web.Response:
    content = await services.fleet.trust_file(f"{folder}/{name}") if wanted.fullmatch(name) else None
    if content is None:
        raise Rejected("route.unknown", "no such file")
    return web.Response(body=content, content_type="application/octet-stream")


async def _guarded(
    services: Services, request: web.Request, handle: Callable[[bytes], Awaitable[Message]]
) -> Message:
    """Read a stranger's body and answer it, unless its address has failed too often."""
    source = source_of(request.remote or "0.0.0.0")
    services.failures.check(source, time.time())
    try:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Rejected("body.encoding", "send it uncompressed")
        body = await read_body(request, MAX_ENROL_BYTES, services.config.limits.request_s)
        return await handle(body)
    except Rejected:
        services.failures.count(source, time.time())
        raise


def _packed(message: Message, status: int = 200) -> web.Response:
    return web.Response(status=status, body=encode(message), content_type=CONTENT_TYPE)


def _refused(rejected: Rejected) -> web.Response:
    status = _HANDSHAKE_CODES.get(rejected.code) or status_of(rejected.code)
    return _packed(Refused(code=rejected.code, detail=never_more(rejected.detail, 2048)), status)


def _refusals(services: Services) -> Middleware:
    """Return the outermost middleware of the node listener: whatever is raised becomes a Refused."""

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except Rejected as rejected:
            services.metrics.rejected.labels(rejected.code).inc()
            return _refused(rejected)
        except StoreUnavailable:
            return _refused(Rejected("store.unavailable"))
        except web.HTTPException as error:
            return _packed(Refused(code="route.unknown", detail=error.reason), error.status)
        except (ConnectionError, asyncio.IncompleteReadError):
            raise
        except Exception as fault:  # outermost place of the node listener
            log_fault("the node listener", fault)
            services.metrics.faults.inc()
            if SOCKET in request:  # it is no HTTP any more
                socket: web.WebSocketResponse = request[SOCKET]
                await socket.close(code=WSCloseCode.INTERNAL_ERROR)
                return socket
            return _refused(Rejected("internal"))

    return middleware
