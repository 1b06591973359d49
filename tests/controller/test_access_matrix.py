"""Every role against every route against one's own site and another's, over real HTTP; what must come is computed from the table.

A route that is added is in here by itself. It fails until it has a rule that can be held, and until this world knows what its
path names (`twosites.place`) and, where its body names something, what such a body looks like (`BODIES`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import get_args

import msgspec
import msgspec.inspect
import pytest
import pytest_asyncio

from controller.api.outside import OUTSIDE
from controller.api.route import AnyRoute, InPath, Nothing, Route
from controller.api.routes import ROUTES
from controller.permissions import MEANING, ROLES, Permission, Role
from tests.controller.live import TOKENS, Live, running
from tests.controller.twosites import OTHER, OWN, Place, everything, place, token_of

ALL = [("/api/v1", route) for route in ROUTES] + [("", route) for route in OUTSIDE]
EK = "ab" * 32
BODIES: dict[str, Callable[[Place], object]] = {
    "POST /preregistrations": lambda p: {"ek_id": EK, "site": p.site},
    "POST /enrolment-tokens": lambda p: {"site": p.site},
    "POST /grants": lambda p: {
        "node": p.names["node"],
        "who": "A. Technician",
        "company": "Press Works",
        "evidence": "4711",
        "access": {"doors": ["north"]},
        "ends": time.time() + 600,
        "reason": "drive replaced",
    },
    "POST /references": lambda p: {
        "references": [{"site": p.site, "values": {"kernel": [p.digest]}, "valid_from": 1.0}],
        "reason": "update",
    },
    "POST /labels": lambda p: {"nodes": [p.names["node"]], "set": {"line": "3"}, "reason": "moved"},
    "POST /plans": lambda p: {"baseline": "factory", "selector": f"site={p.site}"},
    "POST /suppressions": lambda p: {
        "selector": f"site={p.site}",
        "kind": "drift",
        "until": time.time() + 600,
        "reason": "known",
    },
    "POST /rollouts": lambda p: {"plan": int(p.names["plan"]), "reason": "update"},
    "POST /tokens": lambda p: {"name": f"new-{p.site}", "rights": [{"role": "viewer", "sites": [p.site]}]},
    "POST /users": lambda p: {"name": f"more-{p.site}", "rights": [{"role": "viewer", "sites": [p.site]}]},
    "POST /me/tokens": lambda p: {"name": "mine", "rights": [{"role": "viewer", "sites": [p.site]}]},
}
"""Of routes whose subject is in the body."""
QUERIES = {"GET /inventory/packages": "?name=bash"}
"""Of routes that need one."""
RIGHTS_OR_ALL = {"given", "token", "user", "fleet"}
"""Bodies of these name sites in rights, which the use case holds against the giver's; or need the whole fleet."""
NARROWED = {"/plans", "/suppressions", "/references", "/labels"}
"""Their body holds a selector, which means nodes in scope; or items, each of which is held against the scope on its own."""
REFUSALS = {"role.insufficient", "scope.insufficient", "rights.beyond", "token.missing", "token.invalid"}


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


def key(route: AnyRoute) -> str:
    return f"{route.method} {route.path}"


def wanted(route: AnyRoute, role: Role, *, elsewhere: bool, whole: bool) -> str | None:
    """Return the code that must come; None where the gate must let it pass. `whole`: the token is for every site."""
    if route.needs not in (*ROLES[role], "public", "token"):
        return "role.insufficient"
    if whole:
        return None
    if route.about == "fleet":
        return "scope.insufficient"
    if not elsewhere:
        return None
    if route.about == "given":
        return "rights.beyond"
    if route.about in get_args(InPath):
        return f"{route.about}.unknown"
    if route.about == "named":
        return {"/grants": "node.unknown", "/rollouts": "plan.unknown"}.get(route.path, "site.unknown")
    return "plan.nobody" if route.path == "/plans" else None


async def ask(
    live: Live, prefix: str, route: AnyRoute, at: Place, headers: dict[str, str]
) -> tuple[int, str, str]:
    """Return status, code and text of one call."""
    body = BODIES[key(route)](at) if key(route) in BODIES else None
    path = prefix + at.path(route.path) + QUERIES.get(key(route), "")
    status, value = await live.call(route.method, path, body, role=None, headers=headers)
    return status, str(value.get("code", "")), str(value)


def check(route: AnyRoute, came: tuple[int, str, str], code: str | None, case: str) -> None:
    status, told, text = came
    if code is not None:
        assert told == code, (case, text)
        assert status == (404 if code.endswith(".unknown") else 422 if code == "plan.nobody" else 403), case
        return
    assert told not in REFUSALS and told != f"{route.about}.unknown" and status < 500, (case, text)
    if route.method == "GET" and "{outlet}" not in route.path:  # there is none in this world
        assert status == 200, (case, text)


@pytest.mark.parametrize("role", ROLES)
async def test_c09_each_role_at_each_route_at_each_site(live: Live, role: Role) -> None:
    own, other = await place(live, OWN), await place(live, OTHER)
    here = await token_of(live, role, OWN)
    whole = {"Authorization": f"Bearer {TOKENS[role]}"}
    cases = [
        (prefix, route, at, headers, wanted(route, role, elsewhere=at is other, whole=headers is whole))
        for prefix, route in ALL
        for at in (own, other)
        for headers in (here, whole)
    ]
    before = await everything(live)
    for prefix, route, at, headers, code in cases:
        if code is not None:
            check(route, await ask(live, prefix, route, at, headers), code, f"{role} {key(route)} {at.site}")
    assert await everything(live) == before, "what was refused has changed something"
    for prefix, route, at, headers, code in cases:
        if code is not None or route.method == "DELETE":  # last, for it ends what others name
            continue
        came = await ask(live, prefix, route, at, headers)
        check(route, came, None, f"{role} {key(route)} {at.site}")
        if headers is here and at is own:
            assert OTHER not in came[2], f"{role} {key(route)} tells of the other site"
    for prefix, route, at, headers, code in cases:
        if code is None and route.method == "DELETE" and (at is other) == (headers is whole):
            check(route, await ask(live, prefix, route, at, headers), None, f"{role} {key(route)} {at.site}")


async def test_c10_every_route_refuses_no_token_and_a_wrong_one(live: Live) -> None:
    live.services.failures._limit = 10**6  # more failures than one address may cause are wanted here
    at = await place(live, OTHER)
    wrong = {"Authorization": "Bearer rfa_" + "x" * 43}
    for prefix, route in ALL:
        status, code, _ = await ask(live, prefix, route, at, {})
        if route.needs == "public":
            assert code not in REFUSALS
            continue
        assert (status, code) == (401, "token.missing"), key(route)
        status, code, _ = await ask(live, prefix, route, at, wrong)
        assert (status, code) == (401, "token.invalid"), key(route)


@pytest.mark.parametrize(("prefix", "route"), ALL, ids=[key(route) for _, route in ALL])
def test_c09_a_route_has_a_rule_that_can_be_held(prefix: str, route: AnyRoute) -> None:
    assert route.needs in (*get_args(Permission), "public", "token")
    assert route.summary and route.handler.__doc__
    if route.about in ("named", "given"):
        assert key(route) in BODIES
    if route.method != "GET":
        assert not route.needs.endswith(".read")
        assert route.about != "listed" or route.path in NARROWED
    named = set(_fields(route.body)) & {"site", "sites", "node", "nodes"}
    assert not named or route.names is not None or route.about in RIGHTS_OR_ALL or route.path in NARROWED


def _fields(kind: object) -> list[str]:
    """Names of all fields of a body, however deep."""
    if kind in (Nothing, bytes):
        return []
    schemas, components = msgspec.json.schema_components([kind])
    return [name for schema in (*schemas, *components.values()) for name in schema.get("properties", {})]


def test_every_permission_is_needed_somewhere_and_explained() -> None:
    assert {route.needs for _, route in ALL} == {*get_args(Permission), "public", "token"}
    assert set(MEANING) == set(get_args(Permission)) and set(ROLES) == set(get_args(Role))
    assert ROLES["admin"] == set(get_args(Permission))


async def _nothing(call: object) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("path", "about", "needs"),
    [
        ("/nodes/{node}", "listed", "fleet.read"),
        ("/nodes/{node}", "site", "fleet.read"),
        ("/nodes", "node", "fleet.read"),
        ("/nodes", "named", "fleet.read"),
        ("/nodes", "listed", "public"),
    ],
)
def test_c09_a_route_whose_rule_does_not_fit_cannot_be_written(path: str, about: str, needs: str) -> None:
    with pytest.raises(ValueError, match="/nodes"):
        Route(
            method="GET",
            path=path,
            needs=needs,  # type: ignore[arg-type]
            about=about,  # type: ignore[arg-type]
            summary="x",
            handler=_nothing,
            query=Nothing,
            body=Nothing,
            reply=None,
        )
