"""How many requests an account may make: exact at once, of its own, and said when again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller import budget as rules
from controller.budget import Budget, Later
from controller.cli.client import Client
from controller.cli.profile import Profile
from controller.config import Limits
from tests.controller.live import TOKENS, running

ADMIN = {"Authorization": f"Bearer {TOKENS['admin']}"}


async def test_c10_of_many_at_once_exactly_the_budget_gets_through(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(requests_per_minute=20)) as live:

        async def me(headers: dict[str, str]) -> tuple[int, str]:
            async with live.http.get(f"{live.admin_url}/api/v1/me", headers=headers, ssl=live.tls) as reply:
                assert reply.status == 200 or (await reply.json())["code"] == "limit.requests"
                return reply.status, reply.headers.get("Retry-After", "")

        answers = await asyncio.gather(*(me(ADMIN) for _ in range(60)))
        assert sorted(status for status, _ in answers) == [200] * 20 + [429] * 40
        assert all(1 <= int(wait) <= 60 for status, wait in answers if status == 429)
        other = {"Authorization": f"Bearer {TOKENS['viewer']}"}
        assert (await me(other))[0] == 200, "the budget is the account's own"
        assert (await live.call("GET", "/healthz", role=None))[0] == 200


async def test_what_is_over_the_budget_is_not_done(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(requests_per_minute=1)) as live:
        assert (await live.call("POST", "/api/v1/sites", {"site": "one"}))[0] == 201
        assert (await live.call("POST", "/api/v1/sites", {"site": "two"}))[0] == 429
        assert (await live.kinds()).count("site.created") == 2, "the factory, and one"


async def test_the_command_waits_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "WINDOW_S", 1.0)
    async with running(tmp_path, limits=Limits(requests_per_minute=5)) as live:
        with Client(Profile(url=live.admin_url, ca=live.ca, token=TOKENS["admin"])) as client:
            for number in range(12):
                await asyncio.to_thread(client.send, "POST", "/sites", {"site": f"shop-{number}"})
        assert (await live.kinds()).count("site.created") == 13


def test_a_window_ends_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = Budget(2)
    spent.spend("ann", 0.0)
    spent.spend("ann", 1.0)
    with pytest.raises(Later) as refused:
        spent.spend("ann", 59.5)
    assert refused.value.retry_after == "1"
    spent.spend("ann", 60.0)
    monkeypatch.setattr(rules, "MAX_ACCOUNTS", 10)
    for number in range(100):
        spent.spend(f"account-{number}", 61.0)
    assert len(spent._spent) <= 11
