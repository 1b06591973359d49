"""The only network client: enrolment, the session, signed files. Everything it receives is judged elsewhere.

One WebSocket over mutual TLS that this side opens. It reports on the controller's interval, at once when there
is something to say, and asks for a new certificate in time. After a baseline was put in force it hangs up and
dials anew: an established flow would hide that the new rules let no new one through.

Refuses: any server certificate that the configured CA did not issue for the configured host; frames over the
limit; redirects. Relies on: agent.loop for every decision, agent.tpm for every signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agent.boot_packages import boot_packages
from agent.channel import ANSWER_S, Client
from agent.config import AgentConfig
from agent.dial import Dialler
from agent.enrol import Identity, blobs_of, identity_of
from agent.ima import UNMEASURED, ImaLog
from agent.loop import Loop
from agent.notify import NOT_ANSWERED, notify
from agent.package_watch import PackageWatch
from agent.packages import PackageDatabase
from agent.probes import models
from agent.report import Prepared, Reporter
from agent.responses import Told
from agent.session import Session, SessionEnded, receive, refusal
from agent.signedfiles import SignedFiles
from agent.stocktaking import Stocktaking
from agent.store import Damaged, Enrolled, Keys, Store
from agent.tpm import Tpm, TpmUnavailable
from agent.unlock import Unlocks
from contract.binding import QUOTED_PCRS, qualifying_data
from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.imapolicy import ImaPolicy
from contract.messages import (
    MAX_FRAME_BYTES,
    MAX_IMA_CHUNK_BYTES,
    PROTOCOL,
    SESSION_PATH,
    Hello,
    PackageChange,
    Report,
    never_more,
)
from contract.trusted import TrustedBaseline

T = TypeVar("T")
log = logging.getLogger("ringfence.uplink")

BACKOFF_S = (0.25, 30.0)
"""First and longest wait between dials; doubled each time, with jitter."""
BOOT_PACKAGES_S = 5.0
SPREAD_S = 2.0
"""Reports of nodes whose posture has changed are spread over so long: what comes next is perhaps an order to isolate."""
_PASSING = OSError
"""TimeoutError and all of `agent.channel` are of it."""


class Uplink:
    """Everything between this node and its controller. `run` on the asyncio thread."""

    def __init__(self, config: AgentConfig, store: Store, loop: Loop, tpm: Tpm) -> None:
        self.config = config
        self.store = store
        self.loop = loop
        self._tpm = tpm
        self._dial = Dialler(
            config, store, resolved=self._resolved, kept=lambda: loop.hold.state.controller_addresses
        )
        self.reporter = Reporter(loop, config.node, config.tpm.event_log)
        self._ima = ImaLog(loop.host, config.tpm.ima_log)
        # A reader of its own: it goes on elsewhere than the controller does, and the kernel reads up to there anew.
        behind = ImaLog(loop.host, config.tpm.ima_log)
        self._database = PackageDatabase(Path(config.roots.root))
        self.packages = PackageWatch(
            lambda offset: behind.read(offset, max_bytes=MAX_IMA_CHUNK_BYTES), self._database
        )
        self._stock = Stocktaking(config.roots, self._database, tpm, lambda: self.ask(self._models))
        self.due = asyncio.Event()
        self.redial = asyncio.Event()
        self.silent_until = 0.0
        """Monotonic; until then nothing but the interval brings a report."""
        self.unlocks = Unlocks(config.node, tpm, self.due.set)
        self._fetch: asyncio.Task[None] | None = None
        self._signed: SignedFiles | None = None
        self._http: Client | None = None
        self._home = asyncio.get_running_loop()
        self._tpm_told = False
        loop.on_report = lambda: self._soon(self.due.set)
        loop.on_posture = self._spread
        loop.on_redial = lambda: self._soon(self.redial.set)
        loop.on_fetch = lambda wanted, highest: self._soon(self._start_fetch, wanted, highest)

    def _soon(self, call: object, *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closing: nobody to tell
            self._home.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]

    def _spread(self) -> None:
        """The node is being isolated or released, and its neighbours with it perhaps: they do not all report in the same moment.

        Any thread. The cut itself waits for nothing.
        """
        self.silent_until = time.monotonic() + random.uniform(0.0, SPREAD_S)  # noqa: S311  (jitter)

    async def ask(self, job: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self.loop.call(job))

    async def _resolved(self, addresses: list[str]) -> None:
        await self.ask(lambda: self.loop.controller_resolved(addresses))

    # ---- life

    async def run(self) -> None:
        """Enrol if that was not done, then keep a session up until cancelled."""
        enrolled, keys = await self._enrolled()
        wait_s = BACKOFF_S[0]
        while True:
            identity = identity_of(enrolled.chain, keys)
            self.redial.clear()
            began = time.monotonic()
            turned_away = False
            try:
                async with self._dial.client(enrolled, keys) as http:
                    self._http = http
                    await self._session(http, enrolled, identity, keys)
            except (_PASSING, SessionEnded, Rejected) as error:
                log.info("session: %s: %s", type(error).__name__, error)
                turned_away = await self._dial.turned_away(error, identity.not_after)
            finally:
                self._http = None
                notify(NOT_ANSWERED)
                await self.ask(self.loop.session_closed)
            enrolled = await self._again(enrolled, identity, turned_away)
            if self.redial.is_set():
                wait_s = BACKOFF_S[0]
                continue
            if time.monotonic() - began > 2 * BACKOFF_S[1]:
                wait_s = BACKOFF_S[0]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.redial.wait(), wait_s * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
            wait_s = min(wait_s * 2, BACKOFF_S[1])

    async def _again(self, enrolled: Enrolled, identity: Identity, turned_away: bool) -> Enrolled:
        """Return what the next dial uses: a renewed certificate, or a new one where the old is of no use any more.

        It has run out; or the controller says so, whose clock or memory is another. The TPM is proved anew either way.
        """
        try:
            stored = await asyncio.to_thread(self.store.enrolled) or enrolled
            if stored.chain != enrolled.chain:
                return stored
            if turned_away or time.time() >= identity.not_after:
                log.warning("the certificate is of no use any more; enrolling anew")
                return await self._dial.enrol(self._tpm)
            return stored
        except (_PASSING, Rejected, TpmUnavailable, Damaged) as error:
            log.warning("certificate: %s", error)
            return enrolled

    async def _enrolled(self) -> tuple[Enrolled, Keys]:
        wait_s = 1.0
        while True:
            try:
                enrolled, keys = self.store.enrolled(), self.store.stored_keys()
            except Damaged as damage:
                log.error("%s; enrolling anew", damage)
                self.store.set_aside()
                enrolled = keys = None
            if enrolled is not None and keys is not None:
                await asyncio.to_thread(self._use_ak, keys)
                return enrolled, keys
            try:
                await self._dial.enrol(self._tpm)
            except (_PASSING, Rejected, TpmUnavailable) as error:
                log.warning("enrolment: %s; trying again", error)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
                wait_s = min(wait_s * 2, BACKOFF_S[1])

    def _use_ak(self, keys: Keys) -> None:
        with contextlib.suppress(TpmUnavailable):  # loaded when first needed
            self._tpm.use_ak(blobs_of(keys))

    # ---- the session

    async def _session(self, http: Client, enrolled: Enrolled, identity: Identity, keys: Keys) -> None:
        async with http.websocket(SESSION_PATH, subprotocol=PROTOCOL, max_bytes=MAX_FRAME_BYTES) as socket_:
            if socket_.subprotocol != PROTOCOL:
                raise SessionEnded(
                    f"the controller speaks {socket_.subprotocol or 'no protocol'}, not {PROTOCOL}"
                )
            hello = await asyncio.wait_for(receive(socket_), ANSWER_S)
            if not isinstance(hello, Hello):
                raise SessionEnded(refusal(hello, "hello"))
            number = await self.ask(self.loop.session_opened)
            session = Session(self, socket_, hello, number, enrolled=enrolled, identity=identity, keys=keys)
            if hello.directive is not None:
                await self.directive(hello.directive, enrolled)
            await session.run()

    async def directive(self, untrusted: bytes, enrolled: Enrolled) -> None:
        """Hand a directive to the worker."""
        await self.ask(lambda: self.loop.take_directive(untrusted, enrolled.directive_key))

    # ---- signed files

    def _start_fetch(self, wanted: WantedBaseline, highest: int) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
        self._fetch = asyncio.create_task(self._keep_fetching(wanted, highest))

    async def _keep_fetching(self, wanted: WantedBaseline, highest: int) -> None:
        wait_s = 0.2
        while True:
            try:
                trusted = await asyncio.to_thread(self._get_baseline, wanted, highest)
            except Rejected as refused:
                await self._delivered(wanted, refused)
                return
            except _PASSING as error:
                log.info("fetching %s/%d: %s", wanted.name, wanted.version, error)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
                wait_s = min(wait_s * 2, BACKOFF_S[1])
                continue
            await self._delivered(wanted, trusted)
            return

    async def _delivered(self, wanted: WantedBaseline, result: TrustedBaseline | Rejected) -> None:
        await self.ask(lambda: self.loop.deliver(wanted, result))

    def _get_baseline(self, wanted: WantedBaseline, highest: int) -> TrustedBaseline:
        if self._http is None:
            raise OSError("no session")
        if self._signed is None:
            self._signed = self._open_signed()
        return self._signed.get(wanted, now=time.time(), highest_version=highest)

    def _open_signed(self) -> SignedFiles:
        pinned = self.config.root_metadata
        if pinned:
            root = Path(pinned).read_bytes()
        else:
            enrolled = self.store.enrolled()
            root = enrolled.root_metadata if enrolled else b""
        return SignedFiles(Path(self.config.state_dir), self._fetch_file, root_metadata=root or None)

    def _fetch_file(self, path: str, max_bytes: int) -> bytes:
        """Fetch for `SignedFiles`, on its thread. Raises FileNotFoundError for 404, another OSError to try again."""
        return asyncio.run_coroutine_threadsafe(self._get(path, max_bytes), self._home).result(ANSWER_S)

    async def _get(self, path: str, max_bytes: int) -> bytes:
        http = self._http
        if http is None:
            raise OSError("no session")
        reply = await http.get(path, max_bytes=max_bytes)
        if reply.status == 404:
            raise FileNotFoundError(path)
        if reply.status != 200:
            raise OSError(f"{path}: HTTP {reply.status}")
        return reply.content

    # ---- reports

    async def prepare(self, ima_offset: int | None, with_log: bool, told: bytes = b"") -> Prepared:
        """Look at what the IMA log has from there on, then have the worker write the next report; one that the firmware log
        goes with says also from which packages the boot is. `told`: the inventory that it need not name again."""
        measured = UNMEASURED if ima_offset is None else await asyncio.to_thread(self._ima.look, ima_offset)
        if measured.available_bytes is not None:
            measured = measured._replace(packages=await self._upgrades())
        keys_wanted = self.unlocks.wanted()
        of_boot = await self._boot_packages() if with_log else []
        stock = await self._stock.latest()
        named = None if stock is None or stock.sha256 == told else stock
        return await self.ask(
            lambda: self.reporter.prepare(time.time(), measured, keys_wanted, of_boot, named)
        )

    async def sockets(self) -> bytes:
        """Return this node's open connections as they travel. Raises OSError."""
        from agent.socketreport import fitting, socket_report  # once in a plan

        proc = Path(self.config.roots.proc)
        report = await self.ask(
            lambda: socket_report(self.loop.host, proc, self.loop.machine.around.controller)
        )
        return fitting(report)

    def _models(self) -> dict[str, str] | None:
        """Return what the files of models hold. (worker)"""
        probe = self.loop.machine.probes.get("models")
        return probe.contents() if isinstance(probe, models.Probe) else {}

    async def _boot_packages(self) -> list[PackageChange]:
        """Ask the package databases, which never holds up evidence for long: it is only words."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(BOOT_PACKAGES_S):
                return await asyncio.to_thread(boot_packages, self._database)
        return []

    async def _upgrades(self) -> tuple[PackageChange, ...]:
        section = await self.ask(lambda: self.loop.hold.held.sections.get("ima"))
        return await asyncio.to_thread(self.packages.look, section) if isinstance(section, ImaPolicy) else ()

    async def says_too_little(self, prepared: Prepared, report: Report) -> bool:
        """Whether an upgrade went on between writing and quoting: its lines would be taken for an attack."""
        before = prepared.measured
        more = len(report.ima_log or b"") > (before.available_bytes or 0)
        return more and await self._upgrades() != before.packages

    async def quoted(
        self, prepared: Prepared, nonce: bytes, identity: Identity, with_log: bool
    ) -> Report | None:
        """Have the TPM quote over it; None when the TPM cannot now (told once)."""
        data = qualifying_data(
            nonce=nonce,
            node=self.config.node,
            certificate_sha256=identity.sha256,
            body=prepared.body,
            event_log_sha256=prepared.event_log_sha256,
        )
        try:
            attest, signature, pcrs = await asyncio.to_thread(self._tpm.quote, data, sorted(QUOTED_PCRS))
        except TpmUnavailable as error:
            if not self._tpm_told:
                told = Told(kind="tpm.unavailable", severity="warning", summary=never_more(str(error), 2048))
                await self.ask(lambda: self.loop.spool.append([told], time.time()))
            self._tpm_told = True
            return None
        self._tpm_told = False
        event_log = prepared.event_log if with_log and prepared.event_log else None
        measured = prepared.measured
        ima_log = None
        if measured.available_bytes is not None:
            # Only now: what was measured while the TPM signed is in PCR 10 too.
            ima_log = await asyncio.to_thread(self._ima.read, measured.offset, max_bytes=MAX_IMA_CHUNK_BYTES)
        return Report(
            body=prepared.body,
            quote=attest,
            signature=signature,
            pcrs=pcrs,
            event_log=event_log,
            ima_log=ima_log,
        )
