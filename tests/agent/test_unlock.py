"""A disk key from `ringfence key put` to `ringfence-agent unlock-key`: real programs, real sessions, real (software) TPMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from agent.config import TpmConfig
from agent.tpm import Tpm, TpmUnavailable
from agent.unlock import SOCKET_NAME, Unlocks, unlock
from agent.uplink import Uplink
from contract.errors import Rejected
from contract.escrow import answer, ask, seal
from contract.messages import KeyRefused, KeyReleased
from contract.tomltext import render
from tests.agent.wholenode import NODE, WholeNode, until
from tests.controller.live import EVENT_LOG, TOKENS, Live, running
from tests.parts.swtpm import SoftwareTpm

BIN = Path(sys.executable).parent
REPO = Path(__file__).resolve().parents[2]
KEY = bytes(range(256))
OTHER_BOOT = EVENT_LOG.parents[1] / "cmdline-changed" / "eventlog.bin"


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    made = SoftwareTpm.manufacture(tmp_path_factory.mktemp("tpm"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    """Another machine's TPM, with an attestation key of its own."""
    made = SoftwareTpm.manufacture(tmp_path_factory.mktemp("other-tpm"))
    made.start()
    tpm = Tpm(made.tcti)
    tpm.create_ak()
    yield tpm
    tpm.close()
    made.close()


@pytest.fixture
def machine(manufactured: SoftwareTpm) -> SoftwareTpm:
    manufactured.reboot(EVENT_LOG.read_bytes())
    return manufactured


class Scene:
    """A controller, and a machine with its disk."""

    def __init__(self, live: Live, node: WholeNode, machine: SoftwareTpm, folder: Path) -> None:
        self.live = live
        self.node = node
        self.machine = machine
        self.folder = folder
        (folder / "admin-ca.pem").write_text(live.ca)

    async def ringfence(self, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        """The admin's command, as an admin."""
        env = {
            **os.environ,
            "RINGFENCE_URL": self.live.admin_url,
            "RINGFENCE_CA": str(self.folder / "admin-ca.pem"),
            "RINGFENCE_TOKEN": TOKENS["admin"],
        }
        return await _run([BIN / "ringfence", *map(str, arguments)], env)

    async def agent(self, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        """The node's command, with the node's configuration."""
        config = self.node.config
        path = self.folder / "agent.toml"
        path.write_text(
            render(
                {
                    "node": config.node,
                    "state_dir": config.state_dir,
                    "controller": {"url": config.controller.url, "ca": config.controller.ca},
                }
            )
        )
        return await _run(
            [BIN / "ringfence-agent", *map(str, arguments), "--config", str(path)], dict(os.environ)
        )

    async def put(self) -> str:
        """Put the key in escrow; return the EK that it was sealed to."""
        (self.folder / "key").write_bytes(KEY)
        detail = await self.live.fleet.node(NODE)
        done = await self.ringfence(
            *("key", "put", NODE, "disk", "--from-file", self.folder / "key"),
            *("--ek", detail.ek_id, "--reason", "first installation"),
        )
        assert done.returncode == 0, done.stderr
        return detail.ek_id

    async def refused_code(self) -> str:
        """Why the running agent gets no key."""
        with pytest.raises(Rejected) as refused:
            await asyncio.to_thread(unlock, self.node.config.state, "disk", timeout_s=30.0)
        return refused.value.code

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[Uplink]:
        """The agent runs, and has been judged."""
        before = (await self.live.fleet.node(NODE)).summary.last_report_at or 0.0

        async def judged() -> bool:
            at = (await self.live.fleet.node(NODE)).summary.last_report_at
            return at is not None and at > before

        async with self.node.running() as uplink:
            server = await uplink.unlocks.serve(self.node.config.state)
            try:
                await until("a report", judged)
                yield uplink
            finally:
                server.close()


async def _run(command: list[object], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    env = {
        **env,
        "PYTHONPATH": str(REPO),
    }  # this tree's programs, wherever the virtual environment was made for
    return await asyncio.to_thread(
        subprocess.run, list(map(str, command)), capture_output=True, timeout=60, env=env
    )


@pytest_asyncio.fixture
async def scene(tmp_path: Path, machine: SoftwareTpm) -> AsyncIterator[Scene]:
    async with running(tmp_path, interval_s=0.5) as live:
        node = WholeNode(tmp_path / "disk", live, machine)
        await node.expected(node=NODE)
        await node.enrol()
        scene = Scene(live, node, machine, tmp_path)
        try:
            yield scene
        finally:
            await scene.node.close()


async def test_a_key_comes_back_to_the_machine_it_was_put_in_for_and_only_to_its_owner(scene: Scene) -> None:
    ek_id = await scene.put()
    out = scene.folder / "opened"
    async with scene.up():
        done = await scene.agent("unlock-key", "disk", "--output", out)
        assert (done.returncode, done.stdout) == (0, b""), done.stderr
        assert out.read_bytes() == KEY and stat.S_IMODE(out.stat().st_mode) == 0o600
        again = await scene.agent("unlock-key", "disk")
        assert (again.returncode, again.stdout) == (0, KEY)
        third = await scene.agent("unlock-key", "disk", "--output", out)
        assert third.returncode == 2 and b"is there already" in third.stderr
        socket_mode = (scene.node.config.state / SOCKET_NAME).stat().st_mode
        assert stat.S_IMODE(socket_mode) == 0o600
        unknown = await scene.agent("unlock-key", "disk-2")
        assert unknown.returncode == 1 and b"key.unknown" in unknown.stderr
    listed = await scene.ringfence("key", "list", NODE, "--json")
    (held,) = msgspec.json.decode(listed.stdout)
    assert (held["state"], held["releases"]) == ("held", 2)
    wrong = await scene.ringfence(
        *("key", "put", NODE, "disk", "--from-file", scene.folder / "key", "--ek", "ab" * 32, "--reason", "x")
    )
    assert wrong.returncode == 1 and b"key.other-ek" in wrong.stderr and ek_id.encode() in wrong.stderr
    stopped = await scene.agent("unlock-key", "disk")
    assert stopped.returncode == 1 and b"not running" in stopped.stderr


async def test_s03_a_machine_that_booted_something_else_gets_a_refusal(scene: Scene) -> None:
    await scene.put()
    async with scene.up():
        assert await asyncio.to_thread(unlock, scene.node.config.state, "disk", timeout_s=30.0) == KEY
    await scene.node.close()
    scene.machine.reboot(OTHER_BOOT.read_bytes())
    scene.node = WholeNode(scene.folder / "disk", scene.live, scene.machine)
    scene.node.rig.config = scene.node.config = msgspec.structs.replace(
        scene.node.config, tpm=TpmConfig(tcti=scene.machine.tcti, event_log=str(OTHER_BOOT))
    )
    async with scene.up():
        assert await scene.refused_code() == "key.not-affirming"
    refused = [event for event in await scene.live.events() if event.kind == "key.refused"]
    assert [event.node for event in refused] == [NODE]
    assert (await scene.live.fleet.node(NODE)).summary.tier == "contraindicated"


async def test_s04_an_isolated_machine_gets_a_refusal(scene: Scene) -> None:
    await scene.put()
    async with scene.up():
        done = await scene.ringfence("isolate", "--node", NODE, "--reason", "it may be stolen")
        assert done.returncode == 0, done.stderr
        assert await scene.refused_code() == "key.isolated"


async def test_s02_s05_another_tpm_opens_neither_the_key_nor_a_recorded_answer(
    scene: Scene, stranger: Tpm
) -> None:
    await scene.put()
    recorded: list[KeyReleased] = []
    async with scene.up() as uplink:
        take = uplink.unlocks.take

        def listening(message: KeyReleased | KeyRefused) -> None:
            assert isinstance(message, KeyReleased)
            recorded.append(message)
            take(message)

        uplink.unlocks.take = listening  # type: ignore[method-assign]
        assert await asyncio.to_thread(unlock, scene.node.config.state, "disk", timeout_s=30.0) == KEY
    sealed = recorded[0].sealed
    with pytest.raises(
        (ValueError, TpmUnavailable)
    ):  # libtpms says TPM_RC_FAILURE to an RSA secret of another EK
        await asyncio.to_thread(stranger.activate, sealed.credential_blob, sealed.encrypted_secret)
    # The right TPM, and what was recorded: without the key that lived in memory the share stays shut.
    later = Unlocks(NODE, scene.node.tpm, lambda: None)
    fetching = asyncio.create_task(later.fetch("disk"))
    await asyncio.sleep(0)
    later.take(recorded[0])
    with pytest.raises(Rejected) as refused:
        await fetching
    assert refused.value.code == "escrow.share"


async def test_s02_an_answer_that_this_tpm_cannot_open_says_so(scene: Scene, stranger: Tpm) -> None:
    own_ek, _ = await asyncio.to_thread(scene.node.tpm.endorsement)
    their_ek, _ = await asyncio.to_thread(stranger.endorsement)
    own_ak = scene.node.keys().ak_public
    theirs = (await asyncio.to_thread(stranger.create_ak)).public
    codes = []
    for ek, ak in ((own_ek, theirs), (their_ek, own_ak)):
        sealed, share = seal(KEY, node=NODE, name="disk", ek_public=ek, ak_public=ak)
        unlocks = Unlocks(NODE, scene.node.tpm, lambda: None)
        fetching = asyncio.create_task(unlocks.fetch("disk"))
        await asyncio.sleep(0)
        (wanted,) = unlocks.wanted()
        unlocks.take(answer(sealed, share, wanted, node=NODE))
        with pytest.raises(Rejected) as refused:
            await fetching
        codes.append(refused.value.code)
    assert codes[0] == "escrow.other-tpm" and codes[1] in {"escrow.other-tpm", "tpm.unavailable"}


async def test_answers_that_nobody_asked_for_are_dropped_and_one_waits_for_a_name(tmp_path: Path) -> None:
    unlocks = Unlocks(NODE, Tpm("swtpm:path=/nowhere"), lambda: None)
    unlocks.take(KeyRefused(name="disk", code="key.unknown"))
    fetching = asyncio.create_task(unlocks.fetch("disk"))
    await asyncio.sleep(0)
    with pytest.raises(Rejected) as busy:
        await unlocks.fetch("disk")
    assert busy.value.code == "unlock.busy"
    unlocks.take(KeyRefused(name="disk", code="key.isolated"))
    with pytest.raises(Rejected) as refused:
        await fetching
    assert (refused.value.code, unlocks.wanted()) == ("key.isolated", [])


async def test_a_caller_that_hangs_up_is_asked_for_no_longer(tmp_path: Path) -> None:
    unlocks = Unlocks(NODE, Tpm("swtpm:path=/nowhere"), lambda: None)
    server = await unlocks.serve(tmp_path)
    _, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
    writer.write(b"disk\n")
    await until("a request", unlocks.wanted, within_s=5.0)
    writer.close()
    await until("no request", lambda: not unlocks.wanted(), within_s=5.0)
    for line in (b"NO NAME\n", b"x" * 200 + b"\n"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
        writer.write(line)
        assert b"name.invalid" in (await reader.read()) or len(line) > 100
        writer.close()
    server.close()


def test_two_requests_have_nothing_in_common() -> None:
    assert ask("disk")[0].ephemeral != ask("disk")[0].ephemeral
