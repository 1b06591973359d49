"""c15: two who edit at once. What is edited whole has an ETag, and who has not seen the newest overwrites nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controller.api.route import AnyRoute
from controller.api.routes import ROUTES
from controller.cli.client import Client, Refused
from controller.cli.profile import Profile
from controller.store import escrow
from tests.controller.bodies import REASON, VIEWER, ask
from tests.controller.live import TOKENS, Live, running
from tests.controller.test_escrow import sealed_body
from tests.controller.twosites import OWN, Place, place

EDITED = {f"{route.method} {route.path}": route for route in ROUTES if route.match}
MADE = [route.path for route in ROUTES if route.makes]
SHOWN = {route.path: route for route in ROUTES if route.whole is not None and not route.mutates}
OTHERS: dict[str, object] = {
    "/nodes/{node}/labels": {"labels": {"line": "9"}, **REASON},
    "/sites/{site}/policy": {"policy": {"interval_s": 99}, **REASON},
    "/sites/{site}/baseline": {"name": "factory", "version": 1, **REASON},
    "/responses": {"document": "# another\n", "replaces": 0, **REASON},
    "/tokens/{token}/rights": {"rights": [{"role": "operator", "sites": "all"}], **REASON},
    "/users/{user}/rights": {"rights": [{"role": "operator", "sites": "all"}], **REASON},
    "/nodes/{node}/keys/{name}": {},
}
"""What somebody else puts there meanwhile; a key must be sealed to its node (`others`)."""


def others(path: str, at: Place) -> object:
    return OTHERS[path] or sealed_body(at.node, at.names["name"], least_tier="warning")


@pytest_asyncio.fixture
async def live(tmp_path: Path, database_url: str) -> AsyncIterator[Live]:
    async with running(tmp_path, database=database_url) as controller:
        yield controller


async def put(
    live: Live, route: AnyRoute, at: Place, body: object, match: str | None
) -> tuple[int, dict[str, object]]:
    headers = {} if match is None else {"If-Match": match}
    return await live.call(route.method, f"/api/v1{at.path(route.path)}", body, headers=headers)


@pytest.mark.parametrize("path", OTHERS)
async def test_c15_a_stale_tag_changes_nothing(live: Live, path: str) -> None:
    at = await place(live, OWN)
    shown, route = SHOWN[path], EDITED[f"PUT {path}"]
    status, seen, headers = await ask(live, shown, at)
    assert status == 200
    tag = headers["ETag"]
    assert (await ask(live, shown, at))[2]["ETag"] == tag, "it is the same as long as nothing changes"
    assert (await put(live, route, at, others(path, at), tag))[0] == 200
    after, theirs = (await ask(live, shown, at))[1:]
    assert after != seen and theirs["ETag"] != tag
    for stale in (tag, f"W/{theirs['ETag']}", '"x", "y"'):
        status, problem, _ = await ask(live, route, at, If_Match=stale)
        assert (status, problem["code"]) == (412, "match.stale"), stale
    for none in ("", "x", '"', "*,*", "W/*"):
        status, problem, _ = await ask(live, route, at, If_Match=none)
        assert (status, problem["code"]) == (412, "match.stale"), none
    status, problem, _ = await ask(live, route, at, If_Match="x" * 1025)
    assert (status, problem["code"]) == (400, "match.malformed")
    assert (await ask(live, shown, at))[1] == after
    if path == "/responses":  # its body has the version too
        return
    status, answer, _ = await ask(live, route, at, If_Match=f'"other", {theirs["ETag"]}')
    assert status == 200, answer


async def test_c15_what_would_hurt_is_not_edited_blindly(live: Live) -> None:
    at = await place(live, OWN)
    must = {key for key, route in EDITED.items() if route.match == "must"}
    assert must == {
        "PUT /nodes/{node}/labels",
        "PUT /sites/{site}/policy",
        "PUT /tokens/{token}/rights",
        "PUT /users/{user}/rights",
        "PUT /nodes/{node}/keys/{name}",
    }
    for key, route in EDITED.items():
        status, problem = await put(live, route, at, OTHERS.get(route.path), None)
        if key in must:
            assert (status, problem["code"]) == (428, "match.missing"), key
        else:
            assert status < 300 or key == "DELETE /tokens/{token}", problem


async def test_every_whole_that_is_edited_is_shown_at_the_same_path() -> None:
    assert {route.path for route in EDITED.values()} - {"/tokens/{token}"} == SHOWN.keys() == OTHERS.keys()
    for route in EDITED.values():
        if route.path in SHOWN:
            assert route.whole is SHOWN[route.path].whole


@pytest.mark.parametrize(
    "path",
    ["/nodes/{node}/labels", "/users/{user}/rights", "/sites/{site}/policy", "/nodes/{node}/keys/{name}"],
)
async def test_c15_of_many_at_once_who_saw_the_same_one_comes_first(
    live: Live, tmp_path: Path, path: str
) -> None:
    at = await place(live, OWN)
    (tmp_path / "beside").mkdir()
    several = live.controller._store.dialect == "postgresql"
    beside = running(tmp_path / "beside", database=live.controller._store.url, beside=live)
    async with beside if several else contextlib.nullcontext(live) as second:
        for round_ in range(3):
            tag = (await ask(live, SHOWN[path], at))[2]["ETag"]
            bodies = [_body(path, at, round_ * 100 + n) for n in range(16)]
            answers = await asyncio.gather(
                *(
                    put(each, EDITED[f"PUT {path}"], at, body, tag)
                    for each, body in zip((live, second) * 8, bodies, strict=True)
                )
            )
            statuses = sorted(status for status, _ in answers)
            assert statuses == [200] + [412] * 15, answers


@pytest.mark.parametrize("path", MADE)
async def test_c15_of_many_at_once_who_make_the_same_one_comes_first(live: Live, path: str) -> None:
    at = await place(live, OWN)
    at.names["name"] = "new"
    route, headers = EDITED[f"PUT {path}"], {"If-None-Match": "*"}
    body = sealed_body(at.node, "new")
    url = f"/api/v1{at.path(path)}"
    status, problem = await put(live, route, at, body, "*")
    assert (status, problem["code"]) == (412, "match.stale"), "there is none to replace"
    rehearsed = await live.call("PUT", f"{url}?dry_run=true", body, headers=headers)
    assert rehearsed[0] == 200 and (await live.call("GET", url))[0] == 404
    answers = await asyncio.gather(*(live.call("PUT", url, body, headers=headers) for _ in range(16)))
    assert sorted(status for status, _ in answers) == [200] + [412] * 15, answers
    assert {problem["code"] for status, problem in answers if status != 200} == {"match.stale"}
    assert (await live.call("GET", url))[1]["version"] == 1


async def test_c15_a_key_that_was_revoked_meanwhile_is_not_what_was_seen_and_one_that_was_given_out_is(
    live: Live,
) -> None:
    at = await place(live, OWN)
    shown, route = SHOWN["/nodes/{node}/keys/{name}"], EDITED["PUT /nodes/{node}/keys/{name}"]
    path = {"node": at.names["node"], "name": at.names["name"]}
    tag = (await ask(live, shown, at))[2]["ETag"]
    key = await live.controller._store.run(lambda tx: escrow.get(tx, path["node"], path["name"]))
    assert key is not None
    await live.controller._store.run(lambda tx: escrow.released(tx, key, 1.0))
    assert (await ask(live, shown, at))[2]["ETag"] == tag
    url = f"/api/v1{at.path(route.path)}"
    assert (await live.call("POST", f"{url}/revoke", REASON))[0] == 200
    assert (await ask(live, route, at, If_Match=tag))[1]["code"] == "match.stale"


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"If-None-Match": '"x"'}, (400, "match.malformed")),
        ({"If-None-Match": ""}, (400, "match.malformed")),
        ({"If-None-Match": "*", "If-Match": "*"}, (412, "match.stale")),
        ({}, (428, "match.missing")),
    ],
)
async def test_what_is_not_there_is_said_clearly(
    live: Live, headers: dict[str, str], wanted: tuple[int, str]
) -> None:
    at = await place(live, OWN)
    url = f"/api/v1{at.path('/nodes/{node}/keys/new')}"
    status, problem = await live.call("PUT", url, sealed_body(at.node, "new"), headers=headers)
    assert (status, problem["code"]) == wanted


def _body(path: str, at: Place, number: int) -> dict[str, object]:
    if path in MADE:
        return sealed_body(at.node, at.names["name"], reason=f"number {number}")
    if path.endswith("/labels"):
        return {"labels": {"line": str(number)}, **REASON}
    if path.endswith("/policy"):
        return {"policy": {"interval_s": 10 + number}, **REASON}
    labels = f"line={number}"
    return {"rights": [{"role": "viewer", "sites": "all", "labels": labels}], **REASON}


async def test_c15_a_rehearsal_tells_of_a_stale_tag_too(live: Live) -> None:
    at = await place(live, OWN)
    route = EDITED["PUT /nodes/{node}/labels"]
    tag = (await ask(live, SHOWN[route.path], at))[2]["ETag"]
    for _ in range(2):
        assert (await ask(live, route, at, "?dry_run=true", If_Match=tag))[0] == 200
    assert (await put(live, route, at, OTHERS[route.path], tag))[0] == 200
    assert (await ask(live, route, at, "?dry_run=true", If_Match=tag))[0] == 412


async def test_what_has_no_tag_is_not_held_against_one(live: Live) -> None:
    for headers in ({"If-Match": '"x"'}, {"If-None-Match": "*"}):
        status, problem = await live.call("POST", "/api/v1/sites", {"site": "shop"}, headers=headers)
        assert (status, problem["code"]) == (400, "match.none")
    labels = "/api/v1/nodes/press-1/labels"
    status, problem = await live.call("PUT", labels, {"labels": {}, **REASON}, headers={"If-None-Match": "*"})
    assert (status, problem["code"]) == (400, "match.none"), "labels are always there"


async def test_c15_the_command_overwrites_nothing_that_it_has_not_seen(live: Live) -> None:
    at = await place(live, OWN)
    path = at.path("/nodes/{node}/labels")
    with Client(Profile(url=live.admin_url, ca=live.ca, token=TOKENS["admin"])) as client:
        seen = await asyncio.to_thread(client.whole, path)
        assert (await put(live, EDITED["PUT /nodes/{node}/labels"], at, OTHERS["/nodes/{node}/labels"], "*"))[
            0
        ] == 200

        def send() -> None:
            client.send("PUT", path, {"labels": {"mine": "1"}, **REASON}, match=seen.tag)

        with pytest.raises(Refused, match="look at it again") as refused:
            await asyncio.to_thread(send)
        assert refused.value.code == "match.stale"
    assert VIEWER
