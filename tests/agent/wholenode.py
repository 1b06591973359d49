"""One whole node against a real controller: real uplink, loop, store and software TPM; its rules in a namespace of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from agent.config import ControllerConfig, TpmConfig
from agent.dial import Dialler
from agent.enrol import Identity, identity_of
from agent.store import Enrolled, Keys, Store
from agent.tpm import Tpm
from agent.uplink import Uplink
from contract.enrolment import ek_digest
from tests.agent.rig import NODE, Rig, in_own_namespace
from tests.controller.live import EVENT_LOG, Live
from tests.parts.swtpm import SoftwareTpm


async def until(
    what: str, probe: Callable[[], Awaitable[object] | object], *, within_s: float = 20.0
) -> None:
    """Wait for a true value."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)


class WholeNode:
    """The agent of one machine. The TPM is the machine; `folder` is its disk."""

    def __init__(self, folder: Path, live: Live, machine: SoftwareTpm) -> None:
        folder.mkdir(exist_ok=True)
        ca = folder / "ca.pem"
        ca.write_text(live.ca)
        self.rig = Rig(folder)
        self.rig.config = msgspec.structs.replace(
            self.rig.config,
            site="factory",
            controller=ControllerConfig(url=live.node_url, ca=str(ca), addresses=["127.0.0.1"]),
            tpm=TpmConfig(tcti=machine.tcti, event_log=str(EVENT_LOG)),
        )
        self.config = self.rig.config
        self.live = live
        self.tpm = Tpm(machine.tcti)

    @property
    def store(self) -> Store:
        """Its state folder."""
        return Store(self.config.state, NODE)

    def keys(self) -> Keys:
        """Its keys."""
        found = self.store.stored_keys()
        assert found is not None
        return found

    def enrolled(self) -> Enrolled:
        """What the last enrolment or renewal gave it."""
        found = self.store.enrolled()
        assert found is not None
        return found

    def identity(self) -> Identity:
        """Its certificate's facts."""
        return identity_of(self.enrolled().chain, self.keys())

    async def expected(self, *, node: str | None = None) -> str:
        """Put its EK on the list; return the id."""
        ek_public, _ = await asyncio.to_thread(self.tpm.endorsement)
        ek_id = ek_digest(ek_public)
        await self.live.fleet.preregister(ek_id, site="factory", node=node, actor="tester", now=time.time())
        return ek_id

    async def enrol(self) -> Enrolled:
        """As `ringfence-agent enrol` does."""
        return await Dialler(self.config, self.store).enrol(self.tpm)

    async def certificate_is_bound(self, identity: Identity) -> bool:
        """Whether the controller has this certificate as the node's own."""
        return (await self.live.fleet.node(NODE)).certificate_sha256 == identity.sha256.hex()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Uplink]:
        """As `ringfence-agent run` does, until left."""
        await asyncio.to_thread(in_own_namespace, self.rig.start)
        uplink = Uplink(self.config, self.rig.store, self.rig.loop, self.tpm)
        task = asyncio.create_task(uplink.run())
        try:
            yield uplink
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(self.rig.stop)

    async def close(self) -> None:
        """Leave the TPM."""
        await asyncio.to_thread(self.tpm.close)
