"""A restored database over the admin API and the `ringfence` command: looked at, rehearsed, confirmed by an admin of the fleet."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.messages import BaselineRef
from controller.permissions import Right
from controller.store import restores
from tests.controller.live import Live, answer_to, digest, running
from tests.controller.terminal import command, environment
from tests.controller.twosites import everything
from tests.parts.signing import minimal_baseline

REASON = {"reason": "nobody is ahead"}


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """A restored controller; press-1 has said since that it holds version 2, of press-2 nothing is known."""
    async with running(tmp_path) as controller:
        for name, value in environment(controller, tmp_path).items():
            monkeypatch.setenv(name, value)
        await controller.fleet.assign_baseline(
            "factory", "factory", 1, actor="tester", reason="test", now=time.time()
        )
        now = time.time()
        await controller.controller._store.run(lambda tx: restores.add(tx, at=now, backup_at=now - 600))
        node = await controller.node("press-1")
        newer = BaselineRef(name="factory", version=2, sha256=digest(minimal_baseline(version=2)))
        await answer_to(node, node.report(baseline=newer))
        await controller.node("press-2", connect=False)
        yield controller


async def test_c02_an_admin_of_the_fleet_looks_rehearses_and_confirms(live: Live) -> None:
    status, seen = await live.call("GET", "/api/v1/restore", role="viewer")
    assert status == 200 and isinstance(seen["waiting"], dict)
    assert (seen["waiting"]["ahead"], seen["waiting"]["unheard"]) == (1, 1)
    _, page = await live.call("GET", "/api/v1/restore/nodes?limit=1", role="viewer")
    ahead = {"node": "press-1", "site": "factory", "holds": "factory/2", "chosen": "factory/1"}
    assert page == {"items": [ahead], "next": None}
    before = await everything(live)
    status, would = await live.call("POST", "/api/v1/restore/confirm?dry_run=true", REASON)
    assert (status, would) == (200, seen["waiting"])
    assert await everything(live) == before
    assert await live.call("POST", "/api/v1/restore/confirm", REASON) == (200, would)
    assert (await live.call("GET", "/api/v1/restore"))[1] == {"waiting": None}
    assert (await live.call("GET", "/api/v1/restore/nodes"))[1]["items"] == []
    for query in ("", "?dry_run=true"):
        status, problem = await live.call("POST", f"/api/v1/restore/confirm{query}", REASON)
        assert (status, problem["code"]) == (409, "restore.none")
    [note] = [note for note in await live.fleet.list_audit(limit=500) if note.act == "restore.confirmed"]
    assert (note.actor, note.reason) == ("admin", REASON["reason"])
    assert "restore.confirmed" in await live.kinds()


@pytest.mark.parametrize("role", ["viewer", "auditor", "operator", "approver", "installer"])
async def test_c09_nobody_but_an_admin_confirms(live: Live, role: str) -> None:
    status, problem = await live.call("POST", "/api/v1/restore/confirm", REASON, role=role)  # type: ignore[arg-type]
    assert (status, problem["code"]) == (403, "role.insufficient")


async def test_c09_an_admin_of_one_site_neither_looks_nor_confirms(live: Live) -> None:
    here = await live.token("here", "rfa_here".ljust(47, "x"), Right(role="admin", sites=("factory",)))
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/nodes", None),
        ("POST", "/confirm", REASON),
    ):
        status, problem = await live.call(method, f"/api/v1/restore{path}", body, role=None, headers=here)
        assert (status, problem["code"]) == (403, "scope.insufficient")
    assert (await live.fleet.restore()).waiting is not None


@pytest.mark.parametrize("body", [None, {}, {"reason": " "}, {"reason": ""}])
async def test_an_act_needs_a_reason(live: Live, body: object) -> None:
    status, _ = await live.call("POST", "/api/v1/restore/confirm", body)
    assert status in (400, 415)
    assert (await live.fleet.restore()).waiting is not None


async def test_the_command_shows_rehearses_and_confirms(live: Live) -> None:
    code, text = await command("restore", "show")
    assert code == 0
    assert ["press-1", "factory", "factory/2", "factory/1"] in [line.split() for line in text.splitlines()]
    shown = json.loads((await command("restore", "show", "--json"))[1])
    assert shown["waiting"]["ahead"] == len(shown["nodes"]) == 1
    code, text = await command("restore", "confirm", "--reason", "looked", "--dry-run")
    assert code == 0 and "nothing was changed" in text
    assert (await command("restore", "confirm"))[0] == 2
    code, text = await command("restore", "confirm", "--reason", "looked", "--json")
    assert code == 0 and json.loads(text)["ahead"] == 1
    assert await command("restore", "show") == (0, "no restore waits for confirmation\n")
    code, text = await command("restore", "confirm", "--reason", "looked")
    assert code == 1 and "restore.none" in text


async def test_the_event_at_a_start_names_both_ways(live: Live) -> None:
    await live.fleet.start(name="one", now=time.time())
    [waiting] = [event.summary for event in await live.events() if event.kind == "restore.waiting"]
    assert "`ringfence restore confirm`" in waiting and "`ringfence-controller confirm-restore`" in waiting
