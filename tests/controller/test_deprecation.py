"""A route that goes says so with every answer (RFC 9745, RFC 8594) and in the document, and long enough before."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from controller import app as program
from controller import openapi
from controller.api.route import MIN_NOTICE, Deprecated
from controller.api.routes import ROUTES
from tests.controller.live import TOKENS, running

SINCE = date(2026, 3, 1)
GOING = Deprecated(since=SINCE, sunset=SINCE + MIN_NOTICE, instead="GET /nodes")
ONE = tuple(
    dataclasses.replace(route, deprecated=GOING) if route.path == "/me" else route for route in ROUTES
)


@pytest.mark.parametrize(("token", "status"), [(TOKENS["viewer"], 200), ("rfa_" + "x" * 43, 401)])
async def test_every_answer_of_a_route_that_goes_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, status: int
) -> None:
    monkeypatch.setattr(program, "ROUTES", ONE)
    async with running(tmp_path) as live:
        headers = {"Authorization": f"Bearer {token}"}
        async with live.http.get(f"{live.admin_url}/api/v1/me", headers=headers, ssl=live.tls) as reply:
            assert reply.status == status
            assert reply.headers["Deprecation"] == "@1772323200"
            assert parsedate_to_datetime(reply.headers["Sunset"]).date() == SINCE + MIN_NOTICE
            assert 'rel="deprecation"' in reply.headers["Link"]
        async with live.http.get(f"{live.admin_url}/api/v1/status", headers=headers, ssl=live.tls) as reply:
            assert not {"Deprecation", "Sunset", "Link"} & set(reply.headers)


def test_the_document_says_what_to_use_instead() -> None:
    paths = openapi.document(ONE, "1")["paths"]
    assert isinstance(paths, dict)
    told = paths["/api/v1/me"]["get"]
    assert told["deprecated"] is True and "`GET /nodes`" in told["description"]
    assert not any(
        "deprecated" in each
        for path in openapi.document(ROUTES, "1")["paths"].values()
        for each in path.values()
    )  # type: ignore[attr-defined]


def test_a_notice_that_is_too_short_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="180 days"):
        Deprecated(since=SINCE, sunset=SINCE + MIN_NOTICE - timedelta(days=1), instead="GET /nodes")


def test_what_goes_names_a_route_that_stays() -> None:
    staying = {f"{route.method} {route.path}" for route in ROUTES if route.deprecated is None}
    assert all(route.deprecated is None or route.deprecated.instead in staying for route in ROUTES)
