"""`?dry_run=true` at every mutation, from the table of routes: the answer of the real one, and nothing else of it."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
import pytest
import pytest_asyncio

from controller.api.routes import ROUTES
from controller.cli import cli
from tests.controller.bodies import ACTS, NOT_HERE, ask, in_order
from tests.controller.live import Live, running
from tests.controller.twosites import OWN, everything, place

MUTATIONS = {f"{route.method} {route.path}": route for route in ROUTES if route.mutates}


@pytest_asyncio.fixture
async def live(tmp_path: Path, database_url: str) -> AsyncIterator[Live]:
    async with running(tmp_path, database=database_url) as controller:
        yield controller


@pytest_asyncio.fixture
async def one(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


async def test_a_rehearsal_answers_as_the_real_one_and_leaves_nothing(live: Live) -> None:
    at = await place(live, OWN)
    socket = at.node._socket
    assert socket is not None
    inbox: asyncio.Queue[object] = asyncio.Queue()

    async def listen() -> None:
        async for frame in socket:
            inbox.put_nowait(frame)

    listening = asyncio.create_task(listen())
    done: set[str] = set()
    for key, route in in_order(at):
        before, rings = await everything(live), live.services.bell.listen()
        heard, root = inbox.qsize(), live.services.signed_files.newest_root
        status, answer, headers = await ask(live, route, at, "?dry_run=true")
        assert status >= 400 or headers["Ringfence-Dry-Run"] == "true"
        assert await everything(live) == before, f"{key} has changed something: {status} {answer}"
        assert not rings.done() and inbox.qsize() == heard, f"{key} has told somebody"
        assert live.services.signed_files.newest_root == root
        really, real, _ = await ask(live, route, at)
        assert (status, answer.keys()) == (really, real.keys()), f"{key}: {answer}, then {real}"
        if key in NOT_HERE:
            assert answer["code"] == real["code"] == NOT_HERE[key], f"{key}: {answer}"
            continue
        assert really < 300, f"{key}: {real}"
        assert await everything(live) != before, f"{key} changes nothing when it is real"
        done.add(key)
    listening.cancel()
    assert done | NOT_HERE.keys() >= ACTS.keys()
    assert inbox.qsize() > 0, "nothing was heard of the real ones: this could not tell"


@pytest.mark.parametrize("key", sorted(MUTATIONS.keys() - ACTS.keys()))
async def test_c10_what_tries_a_secret_is_never_rehearsed(one: Live, key: str) -> None:
    route = MUTATIONS[key]
    status, answer = await one.call(route.method, f"/api/v1{route.path}?dry_run=true", {})
    assert (status, answer["code"]) == (400, "query.malformed")
    assert route.proves


@pytest.mark.parametrize("wanted", ["", "1", "True", "yes", "true&dry_run=true"])
async def test_a_rehearsal_is_wanted_clearly_or_the_request_is_refused(one: Live, wanted: str) -> None:
    path = f"/api/v1/sites/factory/isolate?dry_run={wanted}"
    status, answer = await one.call("POST", path, {"reason": "x"})
    assert (status, answer["code"]) == (400, "query.malformed")
    assert "site.isolated" not in await one.kinds()


async def test_c09_a_rehearsal_needs_the_right_to_the_real_one(one: Live) -> None:
    path = "/api/v1/sites/factory/isolate?dry_run=true"
    status, answer = await one.call("POST", path, {"reason": "x"}, role="viewer")
    assert (status, answer["code"]) == (403, "role.insufficient")


def test_every_command_that_changes_something_can_be_rehearsed() -> None:
    """What the commands send is looked for in their text; logging in cannot be rehearsed."""
    without = set()
    for path, command in _commands(cli, ()):
        text = inspect.getsource(inspect.getmodule(command.callback) or cli) if command.callback else ""
        body = inspect.getsource(command.callback) if command.callback else ""
        sends = re.search(r"client\.(send|upload)\(|\b_(act|put|made)\(", body)
        if sends and "/login" not in text and not any("--dry-run" in p.opts for p in command.params):
            without.add(" ".join(path))
    assert without == {"response check"}


def _commands(group: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from _commands(command, (*path, name))
    else:
        yield path, group
