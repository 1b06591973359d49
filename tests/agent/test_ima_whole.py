"""One whole node with IMA against a real controller: its log file, its software TPM's PCR 10, what is agreed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest_asyncio

from agent.tpm import Tpm
from controller.records import NodeDetail
from tests.agent.wholenode import NODE, WholeNode, until
from tests.controller.live import EVENT_LOG, Live, running
from tests.parts import imalog
from tests.parts.packagekit import Dpkg
from tests.parts.simulator import replayed
from tests.parts.swtpm import SoftwareTpm

ONE, TWO = b"one\n", b"two\n"
TOOL = hashlib.sha256(ONE).hexdigest()
PATH = "/usr/bin/tool"
IMA = f"""\
[ima]
[[ima.package]]
name = "tool"
version = "1.0"
files = ["/usr/bin/ tool"]
sha256 = ["{base64.b64encode(bytes.fromhex(TOOL)).decode()}"]
"""


class Machine:
    """The TPM and the kernel's log of one machine."""

    def __init__(self, folder: Path) -> None:
        self.tpm = SoftwareTpm.manufacture(folder / "tpm")
        self.log = folder / "binary_runtime_measurements"

    def boot(self) -> None:
        """Switch on; the kernel measures its first lines."""
        self.tpm.reboot(EVENT_LOG.read_bytes())
        self.log.write_bytes(b"")
        self.measure(imalog.of_boot(replayed(EVENT_LOG.read_bytes()), {PATH: bytes.fromhex(TOOL)}))

    def measure(self, lines: bytes) -> None:
        """As the kernel does: first the log, then the TPM (ima_add_template_entry)."""
        with self.log.open("ab") as log:
            log.write(lines)
        self.tpm.extend(imalog.measurements(lines))


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    made = await asyncio.to_thread(Machine, tmp_path)
    await asyncio.to_thread(made.boot)
    yield made
    await asyncio.to_thread(made.tpm.close)


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path, interval_s=0.3) as controller:
        await controller.assign(2, extra=IMA)
        yield controller


@pytest_asyncio.fixture
async def node(live: Live, machine: Machine, tmp_path: Path) -> AsyncIterator[WholeNode]:
    """Enrolled; its packages are those of a root of its own."""
    made = WholeNode(tmp_path / "disk", live, machine.tpm)
    config = made.config
    made.config = made.rig.config = msgspec.structs.replace(
        config,
        tpm=msgspec.structs.replace(config.tpm, ima_log=str(machine.log)),
        roots=msgspec.structs.replace(config.roots, root=str(tmp_path / "packages/root")),
    )
    await made.expected(node=NODE)
    await made.enrol()
    yield made
    await made.close()


async def detail(live: Live) -> NodeDetail:
    return await live.fleet.node(NODE)


async def agreed(live: Live, machine: Machine) -> bool:
    """Whether everything measured so far was agreed."""
    return (await detail(live)).ima_bytes == len(machine.log.read_bytes())


async def trusted(live: Live) -> bool:
    """Whether nothing is said of the node, and the baseline that is wanted is in force."""
    found = await detail(live)
    return found.summary.baseline_since is not None and not found.findings


async def test_m14_an_upgrade_is_one_explained_drift_and_a_reboot_begins_again(
    node: WholeNode, live: Live, machine: Machine, tmp_path: Path
) -> None:
    packages = Dpkg(tmp_path / "packages")
    packages.install("tool", "1.0", {"usr/bin/tool": ONE})
    async with node.running():
        await until("the boot's lines agreed", lambda: agreed(live, machine))
        await until("trusted with its baseline in force", lambda: trusted(live))
        await asyncio.to_thread(packages.install, "tool", "1.1", {"usr/bin/tool": TWO})
        line = imalog.record(PATH, hashlib.sha256(TWO).digest())
        await asyncio.to_thread(machine.measure, line)
        await until("the new line agreed", lambda: agreed(live, machine))
        found = await detail(live)
        assert [finding.code for finding in found.findings] == ["ima.package-updated"]
        assert "tool 1.0 -> 1.1" in found.findings[0].detail
        assert (found.summary.tier, found.summary.standing) == ("warning", "healthy")
    await asyncio.to_thread(machine.boot)
    async with node.running():
        await until("the new boot's lines agreed", lambda: agreed(live, machine))
        found = await detail(live)
        # The simulator is switched off as when the power goes: its clock is not sure, and that is all.
        assert {finding.code for finding in found.findings} <= {"quote.clock-unsafe"}
        assert (found.summary.tier, found.ima_lines) == ("affirming", 2)
    assert "node.rebooted" in await live.kinds(NODE)


class Meanwhile(Tpm):
    """A TPM during whose next quote something happens."""

    happens: Callable[[], None] | None = None

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes, dict[int, bytes]]:
        """Let it happen, then quote."""
        if self.happens is not None:
            self.happens()
            self.happens = None
        return super().quote(qualifying_data, pcrs)


async def test_m14_an_upgrade_that_goes_on_while_the_tpm_signs_is_explained_all_the_same(
    node: WholeNode, live: Live, machine: Machine, tmp_path: Path
) -> None:
    packages = Dpkg(tmp_path / "packages")
    packages.install("tool", "1.0", {"usr/bin/tool": ONE})
    await node.close()
    node.tpm = tpm = Meanwhile(machine.tpm.tcti)

    def upgrade() -> None:
        packages.install("tool", "1.1", {"usr/bin/tool": TWO})
        machine.measure(imalog.record(PATH, hashlib.sha256(TWO).digest()))

    async with node.running():
        await until("the boot's lines agreed", lambda: agreed(live, machine))
        tpm.happens = upgrade
        await until("it happened", lambda: tpm.happens is None)
        await until("the new line agreed", lambda: agreed(live, machine))
        assert [finding.code for finding in (await detail(live)).findings] == ["ima.package-updated"]
    assert "node.untrusted" not in await live.kinds(NODE)


async def test_a_file_that_no_package_accounts_for_is_an_attack(
    node: WholeNode, live: Live, machine: Machine
) -> None:
    async with node.running():
        await until("the boot's lines agreed", lambda: agreed(live, machine))
        await asyncio.to_thread(machine.measure, imalog.record("/usr/bin/rootkit", bytes(32)))
        await until("the new line agreed", lambda: agreed(live, machine))
        found = await detail(live)
        assert found.summary.tier == "contraindicated"
        assert "ima.unknown-file" in [finding.code for finding in found.findings]


async def test_a_machine_without_ima_says_so(node: WholeNode, live: Live, machine: Machine) -> None:
    machine.log.unlink()
    async with node.running():
        await until("it is told", lambda: _codes(live))
        assert "ima.no-log" in await _codes(live)


async def _codes(live: Live) -> list[str]:
    return [finding.code for finding in (await detail(live)).findings]
