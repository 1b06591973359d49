"""`ringfence inventory` against a running controller: tables, JSON and CSV, with text that a node chose."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from contract.inventory import Fact, Facts
from controller import cli as admin
from controller.cli import show
from tests.controller.live import Live, running
from tests.controller.terminal import command, environment
from tests.parts.fleets import digest


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        for name, value in environment(controller, tmp_path, "viewer").items():
            monkeypatch.setenv(name, value)
        yield controller


async def stock(live: Live, node: str, *facts: Sequence[str], ago_s: float = 0.0) -> None:
    made = [Fact(*fact) for fact in facts]  # type: ignore[arg-type]
    now = time.time() - ago_s
    await live.fleet.take_inventory(node, digest(repr(made)), Facts(facts=made), now=now)


async def test_a_node_its_history_and_who_has_a_package(live: Live) -> None:
    await live.node("press-1", connect=False)
    await live.node("find", connect=False)
    assert await command("inventory", "press-1") == (
        0,
        "KIND  NAME  VALUE  SEEN FROM\npress-1 has sent no inventory yet\n",
    )
    await stock(live, "press-1", ("package", "bash", "5.1"), ("system", "kernel", "6.1"), ago_s=3600)
    await stock(live, "press-1", ("package", "bash", "5.2"), ("system", "kernel", "6.1"))
    await stock(live, "find", ("package", "bash", "5.1"))
    code, text = await command("inventory", "press-1")
    assert code == 0
    assert [line.split()[:3] for line in text.splitlines()[1:]] == [
        ["system", "kernel", "6.1"],
        ["package", "bash", "5.2"],
    ]
    _, text = await command("inventory", "press-1", "--history", "--kind", "package")
    assert [line.split()[2] for line in text.splitlines()[1:]] == ["5.2", "5.1"]
    assert [line.rstrip().endswith("now") for line in text.splitlines()[1:]] == [True, False]
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 1800))
    _, text = await command("inventory", "press-1", "--at", moment, "--json")
    assert {item["value"] for item in json.loads(text)["items"]} == {"5.1", "6.1"}
    _, text = await command("inventory", "find", "package", "bash", "--json")
    assert [(one["node"], one["version"]) for one in json.loads(text)] == [
        ("find", "5.1"),
        ("press-1", "5.2"),
    ]
    _, text = await command("inventory", "find", "package", "bash", "5.2")
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["press-1"]
    assert (await command("inventory", "show", "find"))[1].splitlines()[1].split()[:2] == ["package", "bash"]
    assert (await command("inventory", "nobody"))[0] == admin.REFUSED
    assert (await command("inventory", "press-1", "--history", "--at", moment))[0] == admin.USAGE


async def test_c12_a_package_that_tries_to_be_a_formula_or_to_paint_is_text(live: Live) -> None:
    await live.node("press-1", connect=False)
    evil = ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(A1)", ' =1,"2"', "[bold red]x[/]", "plain,comma"]
    await stock(live, "press-1", *(("package", name, "=1+1") for name in evil))
    code, text = await command("inventory", "press-1", "--csv")
    assert code == 0
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["KIND", "NAME", "VALUE", "SEEN FROM"]
    assert len(rows) == 1 + len(evil)
    assert all(cell.lstrip()[:1] not in ("=", "+", "-", "@") for row in rows for cell in row)
    assert {row[1].removeprefix("'") for row in rows[1:]} == set(evil)
    _, table = await command("inventory", "press-1")
    assert "[bold red]x[/]" in table


def test_c12_control_characters_never_reach_a_csv(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_csv(("A",), [("x\x1b[2J\r\n=1",), (None,), ("\t=1",)])
    assert capsys.readouterr().out == 'A\r\nx\\x1b[2J\\r\\n=1\r\n""\r\n\\t=1\r\n'
