"""The admin API over real TLS: roles by the table of routes, strict input, problems without secrets, paging, waiting."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from contract.messages import Event
from controller import openapi
from controller.api.problem import status_of
from controller.api.route import Nothing
from controller.api.routes import ROUTES
from controller.config import Limits
from controller.permissions import EVERYWHERE
from controller.store import StoreUnavailable
from tests.controller.live import TOKENS, Live, answer_to, running
from tests.controller.pages import PAGES, with_table
from tests.controller.twosites import OWN, place


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


VIEWER = [{"role": "viewer", "sites": "all"}]


async def test_metrics_need_a_token_and_health_does_not(live: Live) -> None:
    assert (await live.call("GET", "/metrics", role=None))[0] == 401
    status, text = await live.call("GET", "/metrics", role="viewer")
    assert status == 200 and b"ringfence_sites 1.0" in text["text"]  # type: ignore[operator]
    assert (await live.call("GET", "/healthz", role=None))[0] == 200
    assert (await live.call("GET", "/api/v1/openapi.json", role=None))[1]["openapi"] == "3.1.0"


async def test_an_expired_or_revoked_token_is_worth_nothing(live: Live) -> None:
    status, made = await live.call("POST", "/api/v1/tokens", {"name": "ci", "rights": VIEWER, "days": 1e-9})
    assert status == 201
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await live.call("GET", "/api/v1/me", role=None, headers=headers))[0] == 401
    _, made = await live.call("POST", "/api/v1/tokens", {"name": "ci-2", "rights": VIEWER})
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await live.call("GET", "/api/v1/me", role=None, headers=headers))[0] == 200
    assert (await live.call("DELETE", "/api/v1/tokens/ci-2"))[0] == 204
    assert (await live.call("GET", "/api/v1/me", role=None, headers=headers))[0] == 401


async def test_c10_the_limit_of_bad_tokens_is_exact_and_spares_others(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(failures_per_minute=5)) as live:
        wrong = {"Authorization": "Bearer rfa_wrong"}
        calls = [await live.call("GET", "/api/v1/me", role=None, headers=wrong) for _ in range(8)]
        assert [status for status, _ in calls] == [401] * 5 + [429] * 3


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/nodes//isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/sites//isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/nodes/isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/sites/isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/nodes/%20/isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/nodes/*/isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/sites/%2A/release", {"reason": "all of them?"}),
        ("POST", "/api/v1/sites/%00/isolate", {"reason": "all of them?"}),
        ("POST", "/api/v1/sites/factory%2F..%2Fshop/isolate", {"reason": "x"}),
        ("PUT", "/api/v1/sites//baseline", {"name": "factory", "reason": "x"}),
        ("PUT", "/api/v1/sites/factory/baseline", {"name": "", "reason": "x"}),
        ("POST", "/api/v1/preregistrations", {"ek_id": "", "site": "factory"}),
        ("POST", "/api/v1/preregistrations", {"ek_id": "0" * 64, "site": ""}),
        ("POST", "/api/v1/enrolment-tokens", {"site": ""}),
    ],
)
async def test_c16_an_empty_or_wild_selector_never_means_all(
    live: Live, method: str, path: str, body: object
) -> None:
    await live.node("press-1", connect=False)
    status, _ = await live.call(method, path, body)
    assert 400 <= status < 500
    assert (await live.fleet.list_holds(scope=EVERYWHERE)).items == []
    assert "site.isolated" not in await live.kinds()


@pytest.mark.parametrize(
    "query", ["site=", "standing=", "site=*", "nodes=", "site=factory&site=shop", "limit=0"]
)
async def test_c16_an_empty_filter_is_refused_not_ignored(live: Live, query: str) -> None:
    status, problem = await live.call("GET", f"/api/v1/nodes?{query}")
    assert (status, problem["code"]) == (400, "query.malformed")


@pytest.mark.parametrize("reason", ["", " ", "\n", None])
async def test_an_act_needs_a_reason(live: Live, reason: str | None) -> None:
    body = {} if reason is None else {"reason": reason}
    status, _ = await live.call("POST", "/api/v1/sites/factory/isolate", body)
    assert status == 400
    assert (await live.fleet.list_holds(scope=EVERYWHERE)).items == []


HOSTILE_NAMES = [
    "a\nb",
    "<script>",
    "../../etc/passwd",
    "a" * 10_000,
    "a" * 64,
    "A",
    "é",
    "a b",
    "-a",
    "a-",
    "",
    "a\0",
    "a;drop table nodes",
    "{{7*7}}",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_b11_hostile_names_are_refused_at_every_entry(live: Live, name: str) -> None:
    for path, body in (
        ("/api/v1/sites", {"site": name}),
        ("/api/v1/tokens", {"name": name, "rights": VIEWER}),
        ("/api/v1/preregistrations", {"ek_id": "0" * 64, "site": "factory", "node": name}),
        ("/api/v1/enrolment-tokens", {"site": "factory", "node": name}),
    ):
        status, problem = await live.call("POST", path, body)
        assert status == 400, path
        assert len(str(problem)) < 1000 and "\n" not in str(problem["detail"])


async def test_input_is_strict(live: Live) -> None:
    for body, code in (
        (b"{", "body.malformed"),
        (b"[]", "body.malformed"),
        (b'{"site":"shop","site2":1}', "body.malformed"),
        (b'{"site":"shop"} trailing', "body.malformed"),
        (b'{"site":7}', "body.malformed"),
        (b'{"site":"shop","policy":{"require_tpm":"no"}}', "body.malformed"),
        (b"[" * 60_000, "body.malformed"),
        (b'{"site":"' + b"x" * 70_000 + b'"}', "body.too-large"),
    ):
        status, problem = await live.call("POST", "/api/v1/sites", body)
        assert problem["code"] == code, body[:40]
        assert status == (413 if code == "body.too-large" else 400)
    headers = {"Content-Type": "text/plain"}
    assert (await live.call("POST", "/api/v1/sites", {"site": "shop"}, headers=headers))[0] == 415
    assert (await live.call("GET", "/api/v1/sites/shop"))[0] == 404
    assert (await live.call("GET", "/nothing"))[1]["code"] == "route.unknown"
    assert (await live.call("DELETE", "/api/v1/sites"))[1]["code"] == "method.refused"
    assert (await live.call("GET", "/api/v1/incidents/99999999999999999999"))[1]["code"] == "path.number"
    assert (await live.call("GET", "/api/v1/incidents/-1"))[1]["code"] == "path.number"


async def test_a_bundle_that_is_none_is_refused_whole(live: Live) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    status, problem = await live.call("POST", "/api/v1/baselines", b"garbage", headers=headers)
    assert (status, problem["code"]) == (422, "bundle.malformed")
    _, listed = await live.call("GET", "/api/v1/baselines")
    assert [(each["name"], each["version"]) for each in listed["items"]] == [("factory", 1)]  # type: ignore[attr-defined]


async def test_errors_are_problem_details(live: Live) -> None:
    async with live.http.get(
        live.admin_url + "/api/v1/nodes/nobody",
        headers={"Authorization": f"Bearer {TOKENS['admin']}"},
        ssl=live.tls,
    ) as reply:
        assert reply.status == 404 and reply.content_type == "application/problem+json"
        assert reply.headers["Cache-Control"] == "no-store"
        problem = await reply.json(content_type=None)
    assert problem == {
        "type": "urn:ringfence:error:node.unknown",
        "title": "There is no such thing",
        "status": 404,
        "code": "node.unknown",
        "detail": "nobody",
    }


async def test_c14_a_fault_and_its_log_show_no_values(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cret-in-an-exception"

    async def broken(*args: object, **named: object) -> object:
        raise ValueError(f"{secret} {TOKENS['admin']}")

    live.services.fleet = type("Broken", (), {"counts": broken, "leave": live.fleet.leave})()  # type: ignore[assignment]
    caplog.set_level(logging.DEBUG)
    status, problem = await live.call("GET", "/api/v1/status")
    assert (status == 500 and problem["code"] == "internal" and "detail" not in problem) or problem[
        "detail"
    ] == ""
    assert secret not in str(problem) and secret not in caplog.text and TOKENS["admin"] not in caplog.text
    assert "ValueError" in caplog.text


async def test_c14_tokens_are_in_no_answer_event_log_or_database(
    live: Live, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, api = await live.call("POST", "/api/v1/tokens", {"name": "ci", "rights": VIEWER})
    _, enrolment = await live.call("POST", "/api/v1/enrolment-tokens", {"site": "factory"})
    secrets = [str(api["token"]), str(enrolment["token"]), TOKENS["admin"]]
    shown = [
        str(await live.call("GET", path)) for path in ("/api/v1/tokens", "/api/v1/events", "/api/v1/audit")
    ]
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("ringfence.db*"))
    for secret in secrets:
        assert all(secret not in text for text in shown) and secret not in caplog.text
        assert secret.encode() not in stored


async def test_c03_without_a_database_nothing_is_answered(live: Live) -> None:
    async def away(*args: object, **named: object) -> object:
        raise StoreUnavailable("disk I/O error at /var/lib/secret-place")

    live.services.fleet = type("Away", (), {"counts": away, "leave": away})()  # type: ignore[assignment]
    for path in ("/api/v1/status", "/healthz"):
        status, problem = await live.call("GET", path)
        assert (status, problem["code"]) == (503, "store.unavailable") and "secret-place" not in str(problem)


async def test_lists_come_in_pages(live: Live) -> None:
    for number in range(7):
        assert (await live.call("POST", "/api/v1/sites", {"site": f"shop-{number}"}))[0] == 201
    seen: list[str] = []
    cursor = ""
    while True:
        _, page = await live.call("GET", f"/api/v1/sites?limit=3{cursor}")
        seen += [site["site"] for site in page["items"]]  # type: ignore[attr-defined]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == sorted(seen) and len(seen) == 8 and len(set(seen)) == 8


async def test_events_wait_for_the_next_one(live: Live) -> None:
    node = await live.node("press-1")
    await answer_to(node, node.report())
    _, page = await live.call("GET", "/api/v1/events?limit=500")
    begun = time.monotonic()
    waiting = asyncio.create_task(live.call("GET", f"/api/v1/events?after={page['after']}&wait_s=10"))
    await asyncio.sleep(0.2)
    event = Event(seq=1, at=1.0, kind="usb.refused", severity="warning", summary="a stick", detail={})
    await answer_to(node, node.report(events=[event]))
    _, got = await waiting
    assert [item["kind"] for item in got["items"]] == ["usb.refused"]  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 9
    _, empty = await live.call("GET", f"/api/v1/events?after={got['after']}&wait_s=0.1")
    assert empty == {"items": [], "after": got["after"]}


async def test_answers_are_what_the_document_says(live: Live) -> None:
    at = await place(live, OWN)
    for route in ROUTES:
        if route.method != "GET" or "{outlet}" in route.path:  # there is none in this world
            continue
        path = f"/api/v1{at.path(route.path)}"
        path += "?name=bash" if route.path == "/inventory/packages" else ""
        status, value = await live.call("GET", path)
        assert status == 200, path
        msgspec.convert(value, route.reply, strict=False)


def test_the_document_has_every_route_and_no_dangling_reference() -> None:
    document = msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES, "1")))
    assert sum(len(methods) for methods in document["paths"].values()) == len(ROUTES)
    references = set(re.findall(r"#/components/schemas/([^\"]+)", str(document).replace("'", '"')))
    assert references <= set(document["components"]["schemas"])
    identifiers = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(identifiers) == len(set(identifiers))
    assert all(route.body is not Nothing or route.method != "PUT" for route in ROUTES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_hold_the_tables_of_routes_and_of_roles(page: Path) -> None:
    assert with_table(page) == page.read_text()


@pytest.mark.parametrize(
    ("code", "status"), [("x.unknown", 404), ("site.exists", 409), ("anything.else", 422)]
)
def test_status_of_codes(code: str, status: int) -> None:
    assert status_of(code) == status
