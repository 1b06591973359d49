"""What a machine is said to consist of: from real package databases, a real software TPM, and sysfs as a kernel shows it."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import stocktaking
from agent.config import RootsConfig
from agent.host import Host
from agent.inventory import machine_facts, package_facts, tpm_facts
from agent.packages import PackageDatabase
from agent.probes import Surroundings, models
from agent.stocktaking import Stocktaking
from agent.tpm import Tpm
from contract.inventory import Fact, Taken, unpacked
from tests.agent.probes.case import probe_of
from tests.controller.live import EVENT_LOG
from tests.parts.packagekit import Dpkg, Rpm
from tests.parts.swtpm import SoftwareTpm

MODEL = """[models]
[[models.model]]
name = "vision"
version = "7"
root = "/opt/vision"
classification = "internal"
reason = "for a test"
"""


async def until(what: str, probe: Callable[[], Awaitable[object]]) -> None:
    """Wait for a true value."""
    deadline = time.monotonic() + 60
    while not await probe():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def facts(taken: Taken) -> set[tuple[str, str, str]]:
    return {(fact.kind, fact.name, fact.value) for fact in unpacked(taken.packed, taken.sha256).facts}


def test_hardware_firmware_and_system_are_what_the_kernel_shows(tmp_path: Path) -> None:
    dmi, pci = tmp_path / "sys/class/dmi/id", tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    for folder in (dmi, pci, tmp_path / "proc/sys/kernel", tmp_path / "etc"):
        folder.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("Press Works\x1b[31m\n")
    (dmi / "bios_version").write_text("1.7.2\n")
    for name, value in (("vendor", "0x10de"), ("device", "0x2204"), ("class", "0x030000")):
        (pci / name).write_text(value)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-28-amd64\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16314532 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor\n")
    (tmp_path / "etc/os-release").write_text("ID=debian\nVERSION_ID=12\n")
    roots = RootsConfig(sysfs=f"{tmp_path}/sys", proc=f"{tmp_path}/proc", root=str(tmp_path))
    found = {(fact.kind, fact.name): fact.value for fact in machine_facts(roots)}
    assert found["hardware", "vendor"] == "Press Works\\x1b[31m"
    assert found["firmware", "version"] == "1.7.2"
    assert found["hardware", "pci 0000:01:00.0"] == "10de:2204 class 030000"
    assert found["hardware", "memory"] == "15932 MiB"
    assert found["hardware", "processor"] == "Some Processor"
    assert found["system", "release"] == "debian 12"
    assert found["system", "kernel"] == "6.1.0-28-amd64"
    assert ("hardware", "serial") not in found


def test_addresses_are_those_that_ip_shows() -> None:
    shown = subprocess.run(["ip", "-o", "addr", "show", "scope", "global"], capture_output=True, text=True)
    wanted = {tuple(line.split()[1:4:2]) for line in shown.stdout.splitlines()}
    found = {(f.name, f.value) for f in machine_facts(RootsConfig()) if f.kind == "interface"}
    assert {each for each in found if not each[1].startswith("mac ")} == wanted
    assert "lo" not in {name for name, _ in found}


def test_packages_are_those_of_dpkg(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", {"usr/bin/tool": b"one"})
    assert package_facts(PackageDatabase(dpkg.root)) == [Fact("package", "tool", "1.0")]
    status = dpkg.root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("install ok installed", "install ok half-configured"))
    assert package_facts(PackageDatabase(dpkg.root)) == [Fact("package", "tool", "1.0 (half-configured)")]
    assert package_facts(PackageDatabase(tmp_path / "nothing")) == []


def test_packages_are_those_of_rpm(tmp_path: Path) -> None:
    rpm = Rpm(tmp_path)
    rpm.install("tool", "1.0", {"usr/bin/tool": b"one"})
    (fact,) = package_facts(PackageDatabase(rpm.root))
    assert (fact.kind, fact.name, fact.value.partition("-")[0]) == ("package", "tool", "1.0")


def test_a_tpm_says_who_made_it(tmp_path: Path) -> None:
    machine = SoftwareTpm.manufacture(tmp_path / "tpm")
    machine.reboot(EVENT_LOG.read_bytes())
    tpm = Tpm(machine.tcti)
    try:
        said = {fact.name: fact.value for fact in tpm_facts(tpm.properties())}
        witness = subprocess.run(
            ["tpm2_getcap", "-T", machine.tcti, "properties-fixed"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        tpm.close()
        machine.close()
    assert said["manufacturer"] == "IBM"
    assert said["specification"].startswith("2.0 revision 1.")
    raw = int(witness.partition("TPM2_PT_FIRMWARE_VERSION_1:")[2].partition("raw: ")[2].split()[0], 16)
    assert said["firmware"].startswith(f"{raw >> 16}.{raw & 0xFFFF}.")


def test_models_are_told_as_they_were_found(tmp_path: Path) -> None:
    root = tmp_path / "opt/vision"
    root.mkdir(parents=True)
    for name, content in (("good", b"good"), ("bad", b"evil"), ("longer", b"1234567")):
        (root / name).write_bytes(content)
    entries = "".join(
        f'[[models.model.file]]\npath = "{name}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n'
        f'size_bytes = {len(content)}\nkind = "weights"\n'
        for name, content in (("good", b"good"), ("bad", b"fine"), ("longer", b"12"), ("gone", b"x"))
    )
    probe = probe_of("models", MODEL + entries, Surroundings(host=Host(root=tmp_path)))
    assert isinstance(probe, models.Probe)
    try:
        probe.observe(time.time())
        assert probe.contents() == {
            "/opt/vision/good": f"sha256:{hashlib.sha256(b'good').hexdigest()}",
            "/opt/vision/bad": f"sha256:{hashlib.sha256(b'evil').hexdigest()}",
            "/opt/vision/longer": "not read: 7 bytes, which is not its size",
        }
    finally:
        probe.undo()


class NoTpm(Tpm):
    """A machine that has none to ask."""

    def properties(self) -> dict[str, str]:
        return {}


class Shelf:
    """One machine with real packages."""

    def __init__(self, folder: Path) -> None:
        self.dpkg = Dpkg(folder)
        self.dpkg.install("tool", "1.0", {"usr/bin/tool": b"one"})
        self.contents: dict[str, str] | None = {}
        self.asked = 0
        roots = RootsConfig(sysfs=f"{folder}/sys", proc=f"{folder}/proc", root=str(self.dpkg.root))
        self.stock = Stocktaking(roots, PackageDatabase(self.dpkg.root), NoTpm("none"), self._models)

    async def _models(self) -> dict[str, str] | None:
        self.asked += 1
        return self.contents

    async def has(self, version: str) -> bool:
        latest = await self.stock.latest()
        return latest is not None and ("package", "tool", version) in facts(latest)


async def test_it_is_taken_when_packages_changed_and_else_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(stocktaking, "boottime", lambda: now[0])
    shelf = Shelf(tmp_path)
    assert await shelf.stock.latest() is None
    await until("the first", lambda: shelf.has("1.0"))
    shelf.dpkg.install("tool", "2.0", {"usr/bin/tool": b"two"})
    now[0] += stocktaking.SETTLED_S - 1
    for _ in range(3):
        assert await shelf.has("1.0")
    assert shelf.asked == 1  # an upgrade that goes on is not looked at again and again
    now[0] += 1
    await until("the upgrade", lambda: shelf.has("2.0"))
    asked = shelf.asked
    now[0] += stocktaking.EVERY_S - 1
    for _ in range(3):
        assert await shelf.has("2.0")
    assert shelf.asked == asked  # at rest nothing is read
    before = await shelf.stock.latest()
    shelf.contents = {"/opt/a": "sha256:0"}
    now[0] += 1

    async def changed() -> bool:
        return (await shelf.stock.latest()) != before

    await until("the hour", changed)


async def test_it_waits_for_models_that_are_still_being_read(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.contents = None
    for _ in range(5):
        assert await shelf.stock.latest() is None
        await asyncio.sleep(0)
    shelf.contents = {"/opt/a": "sha256:0"}
    await until("the models", lambda: shelf.has("1.0"))


async def test_a_database_that_cannot_be_read_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(stocktaking, "boottime", lambda: now[0])
    shelf = Shelf(tmp_path)
    await until("the first", lambda: shelf.has("1.0"))
    status = shelf.dpkg.root / "var/lib/dpkg/status"
    kept = status.read_bytes()
    status.unlink()
    status.mkdir()
    now[0] += stocktaking.EVERY_S
    asked = shelf.asked

    async def tried() -> bool:
        await shelf.stock.latest()
        return shelf.asked > asked

    await until("the next try", tried)
    assert await shelf.has("1.0")  # not "all packages were removed"
    asked = shelf.asked
    now[0] += 2 * stocktaking.SETTLED_S - 1
    for _ in range(3):
        assert await shelf.has("1.0")
    assert shelf.asked == asked  # nor is it tried without a pause
    now[0] += 1
    await until("the try after that", tried)
    asked = shelf.asked
    now[0] += 2 * stocktaking.SETTLED_S
    assert await shelf.has("1.0")
    assert shelf.asked == asked
    status.rmdir()
    status.write_bytes(kept.replace(b"Version: 1.0", b"Version: 3.0"))
    await until("it can be read again", lambda: shelf.has("3.0"))
