"""`ringfence apply`: what files in version control say, against a running controller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from controller.cli.apply import apply
from controller.permissions import EVERYWHERE
from tests.controller.live import Live, running
from tests.controller.terminal import environment

FILES = {
    "lyon.toml": '[[site]]\nname = "lyon"\nbaseline = "factory/1"\npolicy = { interval_s = 30 }\n',
    "factory.toml": '[[site]]\nname = "factory"\npolicy = { interval_s = 15, reenrol = "same-ek" }\n'
    '[[node]]\nname = "press-1"\nlabels = { line = "3" }\n',
}


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller") as controller:
        yield controller


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


async def applied(live: Live, folder: Path, *arguments: str) -> Result:
    env = environment(live, folder)
    wanted = ["-f", str(folder), "--reason", "as reviewed", "--json", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, apply, wanted, env=env)


async def test_files_are_applied_once_and_say_nothing_the_second_time(live: Live, tmp_path: Path) -> None:
    await live.node("press-1", connect=False)
    folder = written(tmp_path / "fleet", FILES)
    dry = await applied(live, folder, "--dry-run")
    assert dry.exit_code == 0, dry.output
    told = json.loads(dry.output)["changes"]
    assert [(c["target"], c["what"]) for c in told] == [
        ("site factory", "policy"), ("site lyon", "site"), ("site lyon", "baseline"), ("node press-1", "labels"),
    ]  # fmt: skip
    assert {c["result"] for c in told} == {"would change"}
    assert [s.site for s in (await live.fleet.list_sites(scope=EVERYWHERE)).items] == ["factory"], (
        "nothing was changed"
    )

    made = await applied(live, folder)
    assert made.exit_code == 0, made.output
    assert {c["result"] for c in json.loads(made.output)["changes"]} == {"changed"}
    site = await live.fleet.site("lyon")
    assert (site.policy.interval_s, site.baseline and site.baseline.version) == (30, 1)
    assert (await live.fleet.site("factory")).policy.reenrol == "same-ek"
    assert (await live.fleet.list_nodes(scope=EVERYWHERE)).items[0].labels == {"line": "3"}
    again = await applied(live, folder)
    assert json.loads(again.output) == {"changes": [], "not_in_the_files": []}


async def test_what_is_refused_is_told_item_by_item_and_the_rest_is_made(live: Live, tmp_path: Path) -> None:
    files = {**FILES, "lyon.toml": FILES["lyon.toml"].replace("factory/1", "factory/9")}
    done = await applied(live, written(tmp_path / "fleet", files))
    assert done.exit_code == 1
    results = {(c["target"], c["what"]): c["result"] for c in json.loads(done.output)["changes"]}
    assert results[("site lyon", "site")] == "changed"
    assert results[("site lyon", "baseline")].startswith("refused: baseline.unknown")
    assert results[("node press-1", "labels")].startswith("refused: node.unknown")


async def test_sites_that_no_file_names_are_left_alone_and_told(live: Live, tmp_path: Path) -> None:
    done = await applied(live, written(tmp_path / "fleet", {"lyon.toml": FILES["lyon.toml"]}))
    assert json.loads(done.output)["not_in_the_files"] == ["site factory"]
    assert (await live.fleet.site("factory")).policy.interval_s == 60


RULE = (
    '# reviewed\n[[rule]]\nname = "usb"\nwhen = { event = "usb.refused" }\nthen = ["alert"]\nstage = "act"\n'
)
ROLES = (
    '[[person]]\nname = "jordan"\nrights = ["operator@factory[line=3]", "viewer@all"]\n'
    '[[token]]\nname = "backup"\nrights = ["auditor@all"]\n'
)


async def test_response_rules_and_rights_are_applied_from_files_too(live: Live, tmp_path: Path) -> None:
    for path in ("/users", "/tokens"):
        name = {"/users": "jordan", "/tokens": "backup"}[path]
        body = {"name": name, "rights": [{"role": "viewer", "sites": "all"}]}
        assert (await live.call("POST", "/api/v1" + path, body))[0] in (200, 201)
    folder = written(tmp_path / "fleet", {"responses.toml": RULE, "roles.toml": ROLES})
    dry = await applied(live, folder, "--dry-run")
    told = [(c["target"], c["before"], c["after"]) for c in json.loads(dry.output)["changes"]]
    assert told == [
        ("responses", "version 0", "1 rules"),
        ("person jordan", "viewer@all", "operator@factory[line=3] viewer@all"),
        ("token backup", "viewer@all", "auditor@all"),
    ]
    assert (await live.fleet.responses()).version == 0, "nothing was changed"
    made = await applied(live, folder)
    assert made.exit_code == 0, made.output
    assert (await live.fleet.responses()).document == RULE
    (person,) = (await live.call("GET", "/api/v1/users"))[1]["items"]  # type: ignore[misc, call-overload]
    assert [right["role"] for right in person["rights"]] == ["operator", "viewer"]
    again = await applied(live, folder)
    assert json.loads(again.output)["changes"] == []


async def test_nobody_is_made_by_a_file(live: Live, tmp_path: Path) -> None:
    done = await applied(live, written(tmp_path / "fleet", {"roles.toml": ROLES}))
    assert done.exit_code == 1
    assert {c["before"]: c["result"].split(":")[1].strip() for c in json.loads(done.output)["changes"]} == {
        "no such person": "user.unknown", "no such token": "token.unknown",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no *.toml"),
        ({"a.toml": '[[site]]\nname = "lyon"\npolcy = {}\n'}, "a.toml:3"),
        ({"a.toml": '[[site]]\nname = "Lyon!"\n'}, "a.toml:2"),
        ({"a.toml": '[[site]]\nname = "a"\n', "b.toml": '[[site]]\nname = "a"\n'}, "stands in"),
        ({"a.toml": '[[site]]\nname = "a"\nbaseline = "factory"\n'}, "a.toml:3"),
        ({"a.toml": '[[node]]\nname = "a"\nlabels = { site = "x" }\n'}, "field of every node"),
        ({"a.toml": "[[site]\n"}, "a.toml"),
        ({"a.toml": '[[person]]\nname = "a"\nrights = ["king@all"]\n'}, "a.toml: rights of a: 'king'"),
        ({"a.toml": '[[person]]\nname = "a"\nrights = ["viewer@"]\n'}, "wanted ROLE@all"),
        ({"a.toml": '[[token]]\nname = "a"\nrights = ["viewer@lyon[line in]"]\n'}, "rights of a"),
        ({"a.toml": '[[token]]\nname = "a"\nrights = []\n'}, "a.toml"),
        ({"responses.toml": RULE + "stege = 1\n"}, "responses.toml:7"),
        ({"a.toml": '[[site]]\nname = "a"\npolicy = { interval_s = -1 }\n'}, "a.toml:3"),
    ],
)
async def test_a09_a_wrong_file_changes_nothing(
    live: Live, tmp_path: Path, files: dict[str, str], told: str
) -> None:
    good = {"0-good.toml": FILES["lyon.toml"]} if files else {}
    done = await applied(live, written(tmp_path / "fleet", {**good, **files}))
    assert done.exit_code == 2
    assert told in done.output
    assert [s.site for s in (await live.fleet.list_sites(scope=EVERYWHERE)).items] == ["factory"]
