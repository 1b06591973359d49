"""One whole node that boots an updated kernel, against a real controller: what a person is told of it without IMA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest_asyncio

from tests.agent.wholenode import NODE, WholeNode, until
from tests.contract.boots import Boot, kernel, secure
from tests.controller.live import Live, running
from tests.parts.packagekit import Dpkg
from tests.parts.swtpm import SoftwareTpm

QUESTION = '[boot]\nsecure_boot = "required"\nunannounced = "question"\n'


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path, interval_s=0.3) as controller:
        await controller.assign(2, extra=QUESTION)
        yield controller


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[SoftwareTpm]:
    made = await asyncio.to_thread(SoftwareTpm.manufacture, tmp_path / "tpm")
    yield made
    await asyncio.to_thread(made.close)


async def test_a_new_kernel_is_named_with_its_package_and_its_date(
    live: Live, machine: SoftwareTpm, tmp_path: Path
) -> None:
    packages, log = Dpkg(tmp_path / "packages"), tmp_path / "eventlog"
    (packages.root / "etc").mkdir()
    (packages.root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    node = WholeNode(tmp_path / "disk", live, machine)
    node.config = node.rig.config = msgspec.structs.replace(
        node.config,
        tpm=msgspec.structs.replace(node.config.tpm, event_log=str(log)),
        roots=msgspec.structs.replace(node.config.roots, root=str(packages.root)),
    )

    async def boot(said: Boot) -> None:
        log.write_bytes(said.raw())
        await asyncio.to_thread(machine.reboot, said.raw())

    async def accepted() -> bool:
        return (await live.fleet.node(NODE)).boot_reference_at is not None

    async def told() -> list[str]:
        return [f.detail for f in (await live.fleet.node(NODE)).findings if f.code == "boot.unannounced"]

    old = secure()
    try:
        await boot(old)
        await node.expected(node=NODE)
        await node.enrol()
        async with node.running():
            await until("the first boot accepted", accepted)
            assert (await live.fleet.node(NODE)).os_release == "debian 12"
        await asyncio.to_thread(packages.install, "linux-image-amd64", "6.1.82-1", {"boot/vmlinuz": b"19"})
        await boot(old.changed(kernel("new")))
        async with node.running():
            await until("the new boot asked about", told)
            cause = (await told())[0]
            assert "; package 'linux-image-amd64' updated on 20" in cause
            assert " to 6.1.82-1 (the node's word): PCR " in cause
    finally:
        await node.close()
