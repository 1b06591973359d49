"""A body for each mutating route that takes one, such as it succeeds in the world of `twosites`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from controller.api.route import AnyRoute
from controller.api.routes import ROUTES
from tests.controller.live import TOKENS, Live
from tests.controller.test_escrow import sealed_body
from tests.controller.twosites import Place
from tests.parts.signing import minimal_baseline
from tests.parts.simulator import Node

EK = "ab" * 32
REASON = {"reason": "in a test"}
VIEWER = [{"role": "viewer", "sites": "all"}]

LATER = float(int(time.time())) + 3600
BODIES: dict[str, Callable[[Live, Place], object]] = {
    "PUT /nodes/{node}/labels": lambda live, at: {"labels": {"line": "3"}, **REASON},
    "POST /labels": lambda live, at: {"nodes": [at.names["node"]], "set": {"area": "b"}, **REASON},
    "POST /nodes/{node}/isolate": lambda live, at: REASON,
    "POST /nodes/{node}/release": lambda live, at: REASON,
    "POST /nodes/{node}/accept-boot": lambda live, at: REASON,
    "POST /sites": lambda live, at: {"site": "new-site"},
    "PUT /sites/{site}/policy": lambda live, at: {"policy": {"interval_s": 33}, **REASON},
    "PUT /sites/{site}/baseline": lambda live, at: {"name": "factory", **REASON},
    "POST /sites/{site}/isolate": lambda live, at: REASON,
    "POST /sites/{site}/release": lambda live, at: REASON,
    "POST /sites/{site}/drill": lambda live, at: {"wait_s": 0.1, **REASON},
    "POST /enrolments/{enrolment}/approve": lambda live, at: {"site": at.site},
    "POST /enrolments/{enrolment}/reject": lambda live, at: REASON,
    "POST /preregistrations": lambda live, at: {"ek_id": EK, "site": at.site},
    "POST /enrolment-tokens": lambda live, at: {"site": at.site},
    "POST /baselines": lambda live, at: _bundle(live),
    "POST /plans": lambda live, at: {"baseline": "factory", "selector": f"site={at.site}"},
    "POST /rollouts/{rollout}/approve": lambda live, at: REASON,
    "POST /rollouts/{rollout}/pause": lambda live, at: REASON,
    "POST /rollouts/{rollout}/resume": lambda live, at: REASON,
    "POST /rollouts/{rollout}/abort": lambda live, at: REASON,
    "POST /rollouts": lambda live, at: {"plan": int(at.names["plan"]), **REASON},
    "POST /incidents/{incident}/close": lambda live, at: REASON,
    "POST /incidents/{incident}/accept": lambda live, at: REASON,
    "PUT /responses": lambda live, at: {"document": "", "replaces": 0, **REASON},
    "POST /responses/undo": lambda live, at: {"replaces": 1, **REASON},
    "POST /suppressions": lambda live, at: {
        "selector": f"site={at.site}",
        "kind": "drift",
        "until": LATER,
        **REASON,
    },
    "POST /suppressions/{suppression}/end": lambda live, at: REASON,
    "POST /references": lambda live, at: {
        "references": [{"site": at.site, "values": {"kernel": [EK]}, "valid_from": 1.0}],
        **REASON,
    },
    "POST /references/{reference}/withdraw": lambda live, at: REASON,
    "PUT /nodes/{node}/keys/{name}": lambda live, at: _sealed(at.node, at.names["name"]),
    "POST /nodes/{node}/keys/{name}/revoke": lambda live, at: REASON,
    "POST /grants": lambda live, at: {
        "node": at.names["node"],
        "who": "A. Technician",
        "company": "Press Works",
        "evidence": "4711",
        "access": {"doors": ["north"]},
        "ends": LATER,
        **REASON,
    },
    "POST /grants/{grant}/approve": lambda live, at: REASON,
    "POST /grants/{grant}/revoke": lambda live, at: REASON,
    "POST /nodes/{node}/break-glass": lambda live, at: {"count": 1, **REASON},
    "POST /nodes/{node}/break-glass/{code}/revoke": lambda live, at: REASON,
    "POST /outlets/{outlet}/retry": lambda live, at: REASON,
    "POST /restore/confirm": lambda live, at: REASON,
    "POST /tokens": lambda live, at: {"name": "new-token", "rights": VIEWER},
    "POST /me/tokens": lambda live, at: {"name": "my-token", "rights": VIEWER},
    "PUT /tokens/{token}/rights": lambda live, at: {"rights": VIEWER, **REASON},
    "POST /tokens/{token}/renew": lambda live, at: {},
    "POST /users": lambda live, at: {"name": "new-user", "rights": VIEWER},
    "PUT /users/{user}/rights": lambda live, at: {"rights": VIEWER, **REASON},
    "POST /users/{user}/disable": lambda live, at: REASON,
    "POST /users/{user}/enable": lambda live, at: REASON,
    "POST /users/{user}/reset": lambda live, at: REASON,
    "POST /users/{user}/unlock": lambda live, at: REASON,
    "POST /sessions/end": lambda live, at: {"person": at.names["user"], **REASON},
}
"""In an order in which each can be done after those before it, with a few that a test world cannot bring about."""

NOT_HERE = {
    "POST /nodes/{node}/accept-boot": "boot.no-candidate",
    "POST /incidents/{incident}/accept": "incident.closed",
    "POST /enrolments/{enrolment}/reject": "enrolment.decided",
    "POST /outlets/{outlet}/retry": "outlet.unknown",
    "POST /restore/confirm": "restore.none",
    "POST /me/tokens": "token.nobodys",
    "POST /logout": "login.none",
}
"""What is refused, and how: its state cannot be had in this world, or the ones before have ended it."""


ACTS = {f"{route.method} {route.path}": route for route in ROUTES if route.acts}
_ENDS = ("POST /tokens/{token}/renew", "DELETE /tokens/{token}", "POST /logout")


def in_order(at: Place) -> Iterator[tuple[str, AnyRoute]]:
    """All acts, each of which can be done after those before it."""
    for key in dict.fromkeys((*BODIES, *(key for key in ACTS if key not in _ENDS), *_ENDS)):
        if key in _ENDS:
            at.names["token"] = "new-token"  # of one's own making, so that it may be renewed
        if key not in _ENDS or key in ACTS:
            yield key, ACTS[key]


async def ask(
    live: Live, route: AnyRoute, at: Place, query: str = "", **headers: str
) -> tuple[int, dict[str, object], Mapping[str, str]]:
    """One call by the admin: status, answer, headers of the answer."""
    body = BODIES.get(f"{route.method} {route.path}")
    sent = None if body is None else body(live, at)
    kind = "application/octet-stream" if isinstance(sent, bytes) else "application/json"
    sent_headers = {"Authorization": f"Bearer {TOKENS['admin']}", "Content-Type": kind}
    if route.match:
        sent_headers["If-Match"] = "*"
    sent_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = sent if isinstance(sent, bytes | None) else msgspec.json.encode(sent)
    url = f"{live.admin_url}/api/v1{at.path(route.path)}{query}"
    async with live.http.request(route.method, url, data=data, headers=sent_headers, ssl=live.tls) as reply:
        content = await reply.read()
        return reply.status, msgspec.json.decode(content) if content else {}, reply.headers


@functools.cache
def _sealed(node: Node, name: str) -> dict[str, object]:
    return sealed_body(node, name)


def _bundle(live: Live) -> bytes:
    assert live.kit is not None
    if live.kit.targets.version < 2:
        live.kit.targets.version = 2
        live.kit.add(minimal_baseline(version=2))
    return live.kit.bundle()
