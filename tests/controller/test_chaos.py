"""Chaos: two controller processes over one PostgreSQL, and nodes that report, while controllers, database and connections are
killed at random. Nothing is lost or doubled, no node goes back or opens, the breaker is never passed.

RINGFENCE_CHAOS_S, RINGFENCE_CHAOS_NODES and RINGFENCE_CHAOS_SEED change the run; `make chaos` is the long one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest

from contract import messages, wire
from contract.audittrail import verify_trail
from controller.breaker import node_budget
from controller.fleet import Fleet
from controller.fleet.auditlog import AuditLog
from controller.permissions import EVERYWHERE
from controller.policy import BreakerLimits, FleetSettings, SitePolicy
from controller.records import EventView
from controller.repository import Repository
from controller.signed_files import SignedFiles
from controller.store import Store
from tests.controller.live import EVENT_LOG
from tests.parts.cluster import Cluster, Member
from tests.parts.postgres import Postgres, postgres
from tests.parts.signing import SigningKit, minimal_baseline
from tests.parts.simulator import Identity, Node, client_context, ek_id, enrol, new_fleet, replayed

SECONDS = float(os.environ.get("RINGFENCE_CHAOS_S", "25"))
NODES = int(os.environ.get("RINGFENCE_CHAOS_NODES", "40"))
SEED = int(os.environ.get("RINGFENCE_CHAOS_SEED", "0")) or time.time_ns() % 1_000_000
SITES = ("alpha", "beta", "gamma", "delta")
SEALED = "alpha"
"""Isolated by a person in the middle of it."""
LIARS = 8
SETTLE_S = 120.0
REPORT_S = max(0.7, NODES / 60)
INTERVAL_S = max(10.0, 3 * REPORT_S)
KIND = "chaos.told"
_AWAY = (ConnectionError, aiohttp.ClientError, TimeoutError, OSError)


class ChaosNode(Node):
    """A node that keeps its events until they are acknowledged, obeys as an agent does, and notes what must not be."""

    def __init__(self, identity: Identity) -> None:
        log = EVENT_LOG.read_bytes()
        super().__init__(identity, log, replayed(log))
        self.kept: list[messages.Event] = []
        self.told = 0
        self.sealed_from: float | None = None
        self.wrongs: list[str] = []
        self.sessions = 0

    def tell(self) -> None:
        """Something has happened."""
        self.told += 1
        event = messages.Event(
            seq=self.told, at=time.time(), kind=KIND, severity="info", summary=f"event {self.told}"
        )
        self.kept.append(event)

    def _obey(self, envelope: bytes) -> None:
        payload = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        if payload["number"] <= self.directive:  # as the agent: what is older than what it knows is refused
            return
        held = self.baseline
        super()._obey(envelope)
        if held is not None and (self.baseline is None or self.baseline.version < held.version):
            self.wrongs.append(f"{self.identity.name}: from {held} to {self.baseline}")
        if (
            self.sealed_from is not None
            and payload["issued"] > self.sealed_from
            and self.posture != "isolated"
        ):
            self.wrongs.append(f"{self.identity.name}: opened by directive {self.directive}")

    async def live(self, http: aiohttp.ClientSession, cluster: Cluster) -> None:
        """Report for ever, to any controller that is there."""
        while True:
            member = random.choice(cluster.members)
            with contextlib.suppress(*_AWAY):
                async with asyncio.timeout(20):
                    await self.connect(http, member.node_url, cluster.ca)
                self.sessions += 1
                while True:
                    async with asyncio.timeout(20):
                        await self._once()
                    await asyncio.sleep(REPORT_S * random.uniform(0.5, 1.5))
            with contextlib.suppress(*_AWAY):
                await self.close()
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _once(self) -> None:
        socket = self._socket
        assert socket is not None
        while True:
            await socket.send_bytes(wire.encode(self.report(events=self.kept[:100])))
            answer = await self._next(messages.Answer)
            assert isinstance(answer, messages.Answer)
            self.kept = [event for event in self.kept if event.seq > answer.events_acked]
            if answer.number:
                return
            await self._next(messages.Challenge)

    def cut(self) -> None:
        """As if the wire broke."""
        there = None if self._socket is None else self._socket._response.connection
        if there is not None and there.transport is not None:
            there.transport.abort()


class World:
    """The cluster, its database, its nodes, and who kills what."""

    def __init__(self, cluster: Cluster, server: Postgres, url: str, expected: list[Identity]) -> None:
        self.cluster, self.server, self.url, self.expected = cluster, server, url, expected
        self.nodes: list[ChaosNode] = []
        self.did: Counter[str] = Counter()
        self._next = itertools.cycle(cluster.members)

    async def kill_controller(self) -> None:
        next(self._next).kill()

    async def restart_database(self) -> None:
        await asyncio.to_thread(self.server.restart)

    async def cut_database_connections(self) -> None:
        def cut() -> None:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND datname = current_database()"
                )

        await asyncio.to_thread(cut)

    async def cut_nodes(self) -> None:
        for node in random.sample(self.nodes, max(1, len(self.nodes) // 4)):
            node.cut()

    async def rage(self, seconds: float) -> None:
        """Do one of them every second or two."""
        acts: list[Callable[[], Awaitable[None]]] = [
            self.kill_controller,
            self.kill_controller,
            self.cut_database_connections,
            self.cut_nodes,
            self.restart_database,
        ]
        order = itertools.cycle(random.sample(acts, len(acts)))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act = next(order)
            with contextlib.suppress(psycopg.OperationalError):
                await act()
            self.did[act.__name__] += 1
            await asyncio.sleep(random.uniform(1.0, 2.5))

    async def order(self, http: aiohttp.ClientSession, path: str, method: str, body: object) -> None:
        """Have a person's order carried out, at whichever controller answers."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            member: Member = random.choice(self.cluster.members)
            with contextlib.suppress(*_AWAY):
                async with http.request(
                    method,
                    member.admin_url + path,
                    json=body,
                    headers={"Authorization": f"Bearer {self.cluster.token}"},
                    ssl=client_context(self.cluster.ca),
                    timeout=aiohttp.ClientTimeout(total=20),
                ) as reply:
                    said = await reply.text()
                    # Done before, and only the answer was lost.
                    if reply.status == 200 or "hold.exists" in said:
                        return
                    assert reply.status >= 500, said
            await asyncio.sleep(0.3)
        raise TimeoutError(path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    random.seed(SEED)
    with postgres() as server:
        url = server.create("chaos")
        cluster = Cluster(tmp_path, url)
        expected = asyncio.run(_fleet(cluster, url))
        cluster.start()
        try:
            yield World(cluster, server, url, expected)
        finally:
            cluster.stop()


async def _fleet(cluster: Cluster, url: str) -> list[Identity]:
    """Sites, signed baselines and nodes that are expected; they enrol when the controllers are there."""
    store, now = Store(url), time.time()
    fleet = Fleet(store, FleetSettings())
    kit = SigningKit(now=now, online_key=cluster.keys.online)
    kit.add(minimal_baseline(version=1))
    kit.targets.version += 1
    kit.add(minimal_baseline(version=2))
    await SignedFiles(fleet, Repository(cluster.keys.online)).push(kit.bundle(), actor="tester", now=now)
    identities: list[Identity] = []
    for number, site in enumerate(SITES):
        policy = SitePolicy(interval_s=INTERVAL_S, isolate_site_on=("untrusted",) if site == "beta" else ())
        await fleet.create_site(site, policy, actor="tester", now=now)
        await fleet.assign_baseline(site, "factory", 1, actor="tester", reason="first", now=now)
        some = new_fleet(site, NODES // len(SITES), first=number * 1000)
        for identity in some:
            await fleet.preregister(ek_id(identity), site=site, node=None, actor="tester", now=now)
        identities += some
    store.close()
    return identities


async def _enrolled(world: World, http: aiohttp.ClientSession, identity: Identity) -> ChaosNode:
    end = time.monotonic() + SETTLE_S
    while True:
        member = random.choice(world.cluster.members)
        try:
            await enrol(http, member.node_url, world.cluster.ca, identity)
            return ChaosNode(identity)
        except _AWAY:
            assert time.monotonic() < end, member.said()
            await asyncio.sleep(0.3)


async def _settled(world: World) -> bool:
    return all(
        not node.kept and node.baseline is not None and node.baseline.version == 2 for node in world.nodes
    ) and all(node.posture == "isolated" for node in world.nodes if node.identity.site == SEALED)


async def _all_events(fleet: Fleet) -> list[EventView]:
    found: list[EventView] = []
    while page := await fleet.list_events(scope=EVERYWHERE, after=found[-1].id if found else 0, limit=500):
        found += page
    return found


async def test_c03_nothing_is_lost_doubled_opened_or_taken_back_whatever_is_killed(world: World) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        slots = asyncio.Semaphore(8)

        async def one(identity: Identity) -> ChaosNode:
            async with slots:
                return await _enrolled(world, http, identity)

        world.nodes = list(await asyncio.gather(*(one(identity) for identity in world.expected)))
        lives = [asyncio.create_task(node.live(http, world.cluster)) for node in world.nodes]
        telling = asyncio.create_task(_tell(world.nodes))
        raging = asyncio.create_task(world.rage(SECONDS))
        try:
            await asyncio.sleep(SECONDS / 4)
            for number, node in enumerate(random.sample(world.nodes, LIARS)):
                node.pcrs = {**node.pcrs, 9: bytes(31) + bytes([number + 1])}
                node.log_wanted = True
            await world.order(http, f"/api/v1/sites/{SEALED}/isolate", "POST", {"reason": "chaos"})
            sealed = time.time()
            for node in world.nodes:
                if node.identity.site == SEALED:
                    node.sealed_from = sealed
            for site in SITES:
                body = {"name": "factory", "version": 2, "reason": "chaos"}
                await world.order(http, f"/api/v1/sites/{site}/baseline", "PUT", body)
            await raging
            telling.cancel()
            end = time.monotonic() + SETTLE_S
            while not await _settled(world):
                assert not any(task.done() for task in lives), [t.exception() for t in lives if t.done()]
                assert time.monotonic() < end, [
                    (n.identity.name, len(n.kept), n.baseline, n.posture) for n in world.nodes
                ][:10] + [member.said() for member in world.cluster.members]
                await asyncio.sleep(0.3)
        finally:
            for task in [*lives, telling, raging]:
                task.cancel()
            await asyncio.gather(*lives, telling, raging, return_exceptions=True)
    print(
        f"seed {SEED}: {dict(world.did)}; starts {[m.starts for m in world.cluster.members]};"
        f" sessions {sum(n.sessions for n in world.nodes)}; events {sum(n.told for n in world.nodes)}"
    )
    assert sum(member.faults for member in world.cluster.members) == 0, [
        m.said() for m in world.cluster.members
    ]
    assert [wrong for node in world.nodes for wrong in node.wrongs] == []
    await _check_store(world)


async def _tell(nodes: list[ChaosNode]) -> None:
    while True:
        for node in random.sample(nodes, max(1, len(nodes) // 8)):
            node.tell()
        await asyncio.sleep(0.1)


async def _check_store(world: World) -> None:
    store = Store(world.url)
    fleet = Fleet(store, FleetSettings())
    try:
        found = await _all_events(fleet)
        holds = (await fleet.list_holds(scope=EVERYWHERE, active=False, limit=500)).items
        audit = AuditLog(store, world.cluster.keys.audit, world.cluster.folder)
        checkpoint = await audit.checkpoint(now=time.time())
        lines = (await audit.lines(after=0, limit=10_000)).lines
    finally:
        store.close()
    assert verify_trail([line.encode() for line in lines], audit.key, [checkpoint.encode()]).entries
    for node in world.nodes:
        told = [e.seq for e in found if e.node == node.identity.name and e.kind == KIND]
        assert sorted(told) == list(range(1, node.told + 1)), node.identity.name  # type: ignore[type-var]
    automatic = [hold for hold in holds if hold.automatic]
    limits = BreakerLimits()
    assert 1 <= sum(hold.node is not None for hold in automatic) <= node_budget(limits, NODES)
    assert sum(hold.node is None for hold in automatic) <= limits.sites
    placed = Counter(e.detail["hold"] for e in found if e.kind in ("node.isolated", "site.isolated"))
    assert placed == Counter({str(hold.id): 1 for hold in holds})
    assert [hold.site for hold in holds if not hold.automatic] == [SEALED]
