"""`ringfence-controller` and `ringfence` as real processes over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import click
import pytest

from controller import cli as admin
from controller import main as controller_main
from controller.api.routes import ROUTES
from controller.cli.show import harmless
from controller.config import Config
from tests.parts.cluster import free_port
from tests.parts.simulator import ek_id, enrol, new_fleet

BIN = Path(sys.executable).parent
REPO = Path(__file__).resolve().parent.parent.parent


def run(
    program: str, *arguments: object, env: dict[str, str] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run one of our programs to its end."""
    return subprocess.run(
        [BIN / program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        **more,
    )


class Running:
    """A served controller and a logged-in admin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "c"
        self.nodes, self.admins = free_port(), free_port()
        self.token_file = folder / "token"
        made = run(
            "ringfence-controller", "init", "--dir", self.folder,
            "--node-url", f"https://localhost:{self.nodes}", "--node-listen", f"127.0.0.1:{self.nodes}",
            "--admin-url", f"https://localhost:{self.admins}", "--admin-listen", f"127.0.0.1:{self.admins}",
            "--enrol-retry", "0.1", "--token-file", self.token_file,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        self.token = self.token_file.read_text().strip()
        assert self.token not in made.stdout + made.stderr
        self.env = {"RINGFENCE_PROFILE": str(folder / "profile.json")}
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self.process = subprocess.Popen(
            [BIN / "ringfence-controller", "serve", "--dir", self.folder], stderr=subprocess.PIPE, text=True
        )
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.admins)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the controller does not come up")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Stop it; exit code and log."""
        assert self.process is not None
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log

    def ringfence(
        self, *arguments: object, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The admin command, in this process: a start costs half a second each. Two tests start it for real."""
        before, out, err = dict(os.environ), io.StringIO(), io.StringIO()
        os.environ.update({**self.env, **(env or {})})
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = admin.run([str(argument) for argument in arguments])
        finally:
            os.environ.clear()
            os.environ.update(before)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def first_push(self) -> None:
        """Offline keys, one signed baseline, pushed."""
        offline = self.folder.parent / "offline"
        shutil.copy(REPO / "baselines/factory.toml", self.folder.parent)
        for arguments in (
            ("keys", "new", "--plain", "--out", offline, "--online-key", self.folder / "keys/online.pub"),
            (
                *("baseline", "sign", self.folder.parent / "factory.toml"),
                *("--repository", offline / "repository", "--key", offline / "keys/targets-1.pem"),
            ),
            ("baseline", "push", offline / "repository"),
        ):
            done = self.ringfence(*arguments)
            assert done.returncode == 0, done.stderr

    def login(self) -> None:
        """Log in with the first token."""
        done = self.ringfence(
            "login",
            "--url",
            f"https://localhost:{self.admins}",
            "--ca",
            self.folder / "controller-ca.pem",
            "--token-file",
            self.token_file,
        )
        assert done.returncode == 0, done.stderr
        assert self.token not in done.stdout + done.stderr


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop(signal.SIGKILL)


def test_from_init_to_isolation_and_release(controller: Running, tmp_path: Path) -> None:
    assert controller.ringfence("status").returncode == admin.NOT_ALLOWED
    controller.login()
    assert (tmp_path / "profile.json").stat().st_mode & 0o777 == 0o600
    assert controller.ringfence("site", "create", "factory").returncode == 0
    again = controller.ringfence("site", "create", "factory")
    assert again.returncode == admin.REFUSED and "site.exists" in again.stderr
    identity = new_fleet("factory", 1)[0]
    expected = controller.ringfence("enrolments", "preregister", ek_id(identity), "--site", "factory")
    assert expected.returncode == 0, expected.stderr

    controller.first_push()

    async def enrolled() -> None:
        async with aiohttp.ClientSession() as http:
            ca = (controller.folder / "controller-ca.pem").read_text()
            await enrol(http, f"https://localhost:{controller.nodes}", ca, identity)

    asyncio.run(enrolled())
    nodes = json.loads(controller.ringfence("nodes", "--json").stdout)
    assert [node["node"] for node in nodes] == [identity.name]
    assert identity.name in controller.ringfence("nodes").stdout
    assert identity.name in controller.ringfence("node", identity.name).stdout
    # c16: nothing named is an error, never everything
    for wrong in (("isolate", "--reason", "x"), ("isolate", "--node", "a", "--site", "b", "--reason", "x")):
        assert controller.ringfence(*wrong).returncode == admin.USAGE
    assert controller.ringfence("isolate", "--node", "", "--reason", "x").returncode == admin.REFUSED
    assert controller.ringfence("isolate", "--site", "", "--reason", "x").returncode == admin.REFUSED
    assert json.loads(controller.ringfence("sites", "--json").stdout)[0]["hold"] is None
    assert controller.ringfence("isolate", "--site", "factory", "--reason", "drill").returncode == 0
    assert json.loads(controller.ringfence("sites", "--json").stdout)[0]["hold"]["reason"] == "drill"
    code, log = controller.stop()
    assert code == 0 and controller.token not in log and "Traceback" not in log
    assert controller.ringfence("status").returncode == admin.UNREACHABLE
    controller.start()
    assert json.loads(controller.ringfence("sites", "--json").stdout)[0]["hold"]["reason"] == "drill"
    assert controller.ringfence("release", "--site", "factory", "--reason", "over").returncode == 0
    kinds = [
        json.loads(line)["kind"] for line in controller.ringfence("events", "--json").stdout.splitlines()
    ]
    assert [kind for kind in kinds if kind.startswith("site.")] == [
        "site.created",
        "site.isolated",
        "site.released",
    ]


def test_events_are_followed_as_they_come(controller: Running) -> None:
    controller.login()
    assert run("ringfence", "status", env=controller.env).returncode == 0
    follower = subprocess.Popen(
        [BIN / "ringfence", "events", "--follow", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **controller.env},
    )
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["kind"] == "token.added"  # by init: it follows from here on
    controller.ringfence("site", "create", "shop")
    assert json.loads(follower.stdout.readline())["kind"] == "site.created"
    follower.kill()
    follower.communicate()


def test_errors_say_what_to_do(controller: Running, tmp_path: Path) -> None:
    controller.login()
    wrong_ca = tmp_path / "other.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null",
         "-subj", "/CN=other", "-out", wrong_ca], check=True, capture_output=True,
    )  # fmt: skip
    env = {"RINGFENCE_URL": f"https://localhost:{controller.admins}", "RINGFENCE_TOKEN": "rfa_x"}
    other = controller.ringfence("status", env={**env, "RINGFENCE_CA": str(wrong_ca)})
    assert other.returncode == admin.UNREACHABLE and "controller-ca.pem" in other.stderr
    denied = controller.ringfence(
        "status", env={**env, "RINGFENCE_CA": str(controller.folder / "controller-ca.pem")}
    )
    assert denied.returncode == admin.NOT_ALLOWED and "ringfence login" in denied.stderr
    (tmp_path / "profile.json").chmod(0o644)
    exposed = controller.ringfence("status")
    assert exposed.returncode == admin.NOT_ALLOWED and "login.exposed" in exposed.stderr
    unknown = controller.ringfence("--help", env={})
    assert unknown.returncode == 0
    assert "_RINGFENCE_COMPLETE" in controller.ringfence("completion", "bash").stdout


def test_init_writes_over_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("mine")
    refused = run("ringfence-controller", "init", "--dir", tmp_path / "c")
    assert refused.returncode == 1 and "init.exists" in refused.stderr
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]
    broken = run(
        "ringfence-controller", "init", "--dir", tmp_path / "d", "--database", "mysql://nobody@localhost/x"
    )
    assert broken.returncode != 0 and not (tmp_path / "d").exists()
    bad_url = run("ringfence-controller", "init", "--dir", tmp_path / "e", "--node-url", "http://x")
    assert bad_url.returncode == 1 and "node_url" in bad_url.stderr and not (tmp_path / "e").exists()
    assert run("ringfence-controller", "serve", "--dir", tmp_path / "nothing").returncode == 1


def test_a_way_back_in_when_every_token_is_lost(controller: Running) -> None:
    made = run("ringfence-controller", "token", "rescue", "--role", "admin", "--dir", controller.folder)
    assert made.returncode == 0
    env = {
        "RINGFENCE_URL": f"https://localhost:{controller.admins}",
        "RINGFENCE_CA": str(controller.folder / "controller-ca.pem"),
        "RINGFENCE_TOKEN": made.stdout.splitlines()[0],
    }
    assert json.loads(controller.ringfence("whoami", "--json", env=env).stdout)["name"] == "rescue"


def test_c12_text_of_a_node_cannot_paint_on_the_terminal() -> None:
    assert harmless("a\x1b[31mred\nb\u202ec\x07") == "a\\x1b[31mred\\nb\\u202ec\\x07"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group."""
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


@pytest.mark.parametrize("page", ["operate.md", "controller.md"])
def test_the_operators_pages_name_only_what_exists(page: str) -> None:
    text = (REPO / "docs" / page).read_text()
    for program, group in (("ringfence", admin.cli), ("ringfence-controller", controller_main.cli)):
        known = {path for path, _ in commands(group, program)}
        for line in re.findall(rf"^{program} ([a-z-]+(?: [a-z-]+)?)", text.replace("$(", "\n"), re.MULTILINE):
            words = line.split()
            assert f"{program} {words[0]}" in known, line
            if isinstance(group.commands[words[0]], click.Group) and len(words) > 1:
                assert f"{program} {line}" in known, line


def test_the_operators_page_explains_every_key_of_the_configuration() -> None:
    text = (REPO / "docs" / "operate.md").read_text()
    for name in Config.__struct_fields__:
        kind = Config.__annotations__[name]
        section = getattr(sys.modules["controller.config"], str(kind), None)
        if section is None or not hasattr(section, "__struct_fields__"):
            assert f"`{name}`" in text, name
            continue
        for key in section.__struct_fields__:
            assert f"`{name}.{key}`" in text, f"{name}.{key}"


def test_every_act_of_the_api_has_a_command() -> None:
    """The admin command is over the API and nothing else: its sources name every path of the table."""
    sources = "".join(path.read_text() for path in (REPO / "controller" / "cli").glob("*.py"))
    for route in ROUTES:
        first = route.path.split("/")[1]
        assert f'"/{first}' in sources or f"/{first}/" in sources or first in ("audit", "holds"), route.path
