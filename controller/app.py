"""The running controller: one process, two listeners, and the few things that must happen again and again.

Start and stop only; who may do what is in `node_channel` and `api`. A background duty that fails for a passing
reason (database away) is tried again; one that fails by a fault of ours ends the process, and systemd restarts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from aiohttp import web

from contract.errors import Rejected
from controller import outlets
from controller.api.entry import add_routes, problems
from controller.api.outside import OUTSIDE, VERSION
from controller.api.routes import ROUTES
from controller.asking import Asking
from controller.bell import Bell
from controller.budget import Budget
from controller.config import Config, listen_address, outlets_of, url_host
from controller.delivery import Delivery
from controller.failures import Failures
from controller.fleet import Fleet, keysheld
from controller.fleet.auditlog import AuditLog
from controller.fleet.escrow import Escrow
from controller.fleet.evidence import Archive
from controller.fleet.once import Once
from controller.fleet.people import People, nobody
from controller.heap import Heap
from controller.issuing import Issuing
from controller.keys import Keys
from controller.listener import Listener, server_context
from controller.logins import Logins
from controller.metrics import Metrics
from controller.node_channel import node_app
from controller.oidc import Oidc
from controller.policy import FleetSettings
from controller.replica import BEAT_S, Replica
from controller.repository import Repository
from controller.roots import load_device_trust
from controller.services import Services
from controller.sessions import Sessions
from controller.signed_files import SignedFiles
from controller.store import Store, StoreUnavailable

log = logging.getLogger(__name__)

SWEEP_S = 2.0
ROLLOUT_S = 2.0
RENEWAL_S = 3600.0
LAG_S = 0.1


class Controller:
    """One controller process. `start`, then `run_duties` until it is cancelled, then `stop`."""

    def __init__(self, config: Config, directory: Path, keys: Keys) -> None:
        """Open the store. Raises Rejected `store.url`, `keys.malformed`."""
        now = time.time()
        self._config = config
        self._directory = directory
        self._names = server_names(config)
        keys.renew(self._names, now, successor=False)
        self._keys = keys
        self._heap = Heap()
        self._store = Store(store_url(config, directory))
        fleet, metrics, bell = Fleet(self._store, fleet_settings(config, now)), Metrics(), Bell()
        escrow = Escrow(self._store)
        session_s = config.people.session_hours * 3600
        oidc = None if config.oidc is None else Oidc(self._store, config.oidc, directory, session_s=session_s)
        issuing = Issuing(keys, config.certificates.node_hours * 3600)
        sessions = Sessions(fleet, escrow, issuing, metrics, bell)
        asking = Asking(fleet, sessions, own=self._store.identity)
        self.services = Services(
            config=config,
            fleet=fleet,
            archive=Archive(
                self._store,
                config.evidence,
                keys.result,
                issuer=config.name,
                build=f"ringfence-controller {VERSION}",
            ),
            audit=AuditLog(self._store, keys.audit, directory),
            escrow=escrow,
            people=People(self._store, nobody if oidc is None else oidc.rights_of),
            logins=Logins(self._store, keys.people, issuer=config.name, session_s=session_s),
            once=Once(self._store, keys.people),
            oidc=oidc,
            keys=keys,
            sessions=sessions,
            asking=asking,
            signed_files=SignedFiles(fleet, Repository(keys.online)),
            metrics=metrics,
            bell=bell,
            failures=Failures(config.limits.failures_per_minute),
            budget=Budget(config.limits.requests_per_minute),
            tries=Failures(config.limits.logins_per_minute),
            device_trust=load_device_trust(directory, config.enrolment),
        )
        own, url = self._store.identity, self._store.url
        self.replica = Replica(fleet, sessions, asking, bell, name=config.name, own=own, url=url)
        certificate, key = str(keys.server_certificate), str(keys.server_key)
        self._node_tls = server_context(certificate, key, node_trust=keys.node_trust)
        self._admin_tls = server_context(certificate, key, node_trust=None)
        self._deliveries = [
            Delivery(self._store, bell, settings, outlets.make(settings, directory))
            for settings in outlets_of(config)
        ]
        self.nodes = Listener(node_app(self.services, issuing), self._node_tls, config.limits)
        self.admins = Listener(admin_app(self.services), self._admin_tls, config.limits)

    async def start(self) -> None:
        """Judge the silence of the time we were away, then listen. Raises Rejected `keys.others`, StoreUnavailable, OSError."""
        now = time.time()
        missing = await keysheld.check(self._store, self._keys.fingerprints(), now)
        if self._keys.successor in missing:
            raise Rejected(
                "keys.others", f"another controller has {self._keys.successor}: copy it into keys/"
            )
        await self.services.fleet.start(name=self._config.name, now=now)
        await self.services.fleet.sweep(now=now)
        try:
            await self.services.audit.check_kept(now=now)
        except Rejected as rejected:
            log.critical("audit log: %s", rejected)
        try:
            await self.services.signed_files.refresh(now)
        except Rejected as rejected:
            log.warning("signed files: %s; push newly signed ones", rejected)
        await self.nodes.start(*listen_address(self._config.nodes.listen))
        await self.admins.start(*listen_address(self._config.admins.listen))

    async def run_duties(self) -> None:
        """Sweep, renew, refresh and accept, until cancelled; a fault of one ends all and is raised."""
        async with asyncio.TaskGroup() as duties:
            duties.create_task(_watch_lag(self.services.metrics))
            duties.create_task(_every(SWEEP_S, self._sweep))
            duties.create_task(_every(ROLLOUT_S, self._roll))
            duties.create_task(_every(BEAT_S, self.replica.beat))
            duties.create_task(self.replica.hear())
            duties.create_task(self.services.asking.answer())
            duties.create_task(_every(RENEWAL_S, self._renew))
            for delivery in self._deliveries:
                duties.create_task(delivery.run())
            duties.create_task(self.nodes.run())
            duties.create_task(self.admins.run())

    async def stop(self) -> None:
        """Stop listening, end the sessions, finish what is queued in the store."""
        await self.services.sessions.stop()
        with contextlib.suppress(StoreUnavailable):
            await self.services.fleet.leave()
        await self.nodes.stop()
        await self.admins.stop()
        await asyncio.to_thread(self._store.close)

    async def _sweep(self) -> None:
        self._heap.tidy(self.services.sessions.ended, len(self.services.sessions))
        if await self.services.fleet.sweep(now=time.time()):
            self.services.bell.ring()

    async def _roll(self) -> None:
        now = time.time()
        affected = await self.services.fleet.advance_rollouts(now=now)
        if affected:
            self.services.bell.ring()
            await self.services.sessions.tell(affected, now)

    async def _renew(self) -> None:
        missing = await keysheld.check(self._store, self._keys.fingerprints(), time.time())
        elsewhere = self._keys.successor in missing
        if elsewhere:
            log.critical(
                "another controller has made %s: copy it into keys/ and start again", self._keys.successor
            )
        if self._keys.renew(self._names, time.time(), successor=not elsewhere):
            await keysheld.check(self._store, self._keys.fingerprints(), time.time())
            certificate, key = str(self._keys.server_certificate), str(self._keys.server_key)
            self._node_tls.load_cert_chain(certificate, key)
            self._admin_tls.load_cert_chain(certificate, key)
            add_trust(self._node_tls, self._keys.node_trust)
        await self.services.archive.prune(now=time.time())
        await self.services.once.sweep(now=time.time())
        await self.services.fleet.forget_questions(now=time.time())
        await self.services.fleet.prune_inventories(now=time.time())
        await self.services.audit.checkpoint(now=time.time())
        await self.services.signed_files.refresh(time.time())
        self.services.device_trust = await asyncio.to_thread(
            load_device_trust, self._directory, self._config.enrolment
        )


def fleet_settings(config: Config, started: float) -> FleetSettings:
    """Return what the use cases need to know of the configuration."""
    return FleetSettings(
        enrolment_retry_s=config.enrolment.retry_s,
        max_open_enrolments=config.enrolment.max_pending,
        protected_addresses=own_addresses(config),
        evidence=config.evidence,
        inventory_days=config.inventory.history_days,
        started=started,
    )


def add_trust(context: ssl.SSLContext, pem: str) -> None:
    """Trust further authorities in a context that is in use; new connections see them."""
    context.load_verify_locations(cadata=pem)


def admin_app(services: Services) -> web.Application:
    """Return the application of the admin listener."""
    app = web.Application(middlewares=[problems])
    add_routes(app, services, ROUTES)
    add_routes(app, services, OUTSIDE, prefix="")
    return app


def store_url(config: Config, directory: Path) -> str:
    """Return the database's URL: the configured one, or SQLite beside the configuration."""
    return config.store.url or f"sqlite:///{directory.resolve() / 'ringfence.db'}"


def server_names(config: Config) -> list[str]:
    """Return every name and address that the listeners' certificate must carry."""
    own = [url_host(config.node_url), url_host(config.admin_url), *config.certificates.names]
    return list(dict.fromkeys([*own, "localhost", "127.0.0.1", "::1"]))


def own_addresses(config: Config) -> tuple[str, ...]:
    """Return every address under which nodes may know this controller: a suspect that claims one is not fenced by it."""
    found = {
        entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries
    }
    for name in (url_host(config.node_url), *config.certificates.names):
        with contextlib.suppress(OSError, UnicodeError):  # a name that does not resolve now protects nothing
            found |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    return tuple(sorted(address for address in found if _is_address(address)))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def _watch_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_S
        await asyncio.sleep(LAG_S)
        metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))


async def _every(seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await duty()
        except StoreUnavailable:
            log.warning("the database does not answer; trying again in %g s", seconds)
        except Rejected as rejected:
            log.warning("%s", rejected)
