"""Ten thousand connected nodes: one controller on SQLite, then two on PostgreSQL; each figure beside a bare server's.

The swarm (`tests.simulate`) and the controllers share the machine's two cores, and the swarm takes more of them than the
controller. So what a controller costs is given as its own processor time; times by the clock have the swarm in them, in the
bare server's figure as well.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from bench import archive
from bench.controllers import TREE, Controllers
from bench.figures import Figure, figure, percentile
from tests.parts.cluster import free_port
from tests.parts.postgres import postgres
from tests.parts.simulator import Identity, new_fleet
from tests.simulate.swarm import Swarm, raise_limits
from tests.simulate.wire import Connect, Reconnect, Report, Result, Watch

NODES, QUICK_NODES = 10_000, 400
SITE_NODES = 50
INTERVAL_S = 60.0
FEW = 32
"""Nodes of each worker at saturation."""


@dataclass
class Seen:
    """What one fleet did to one server."""

    nodes: int
    calm: Result
    calm_cpu_s: float
    memory_bytes: int
    connect: Result
    connect_cpu_s: float
    reconnect: Result
    reconnect_cpu_s: float
    broadcast_s: float
    broadcast_cpu_s: float
    isolation_s: float = 0.0
    saturated_per_core: float = 0.0


def run(*, quick: bool) -> list[Figure]:
    """Run all of it with 10,000 nodes, or with 400 when `quick`."""
    raise_limits()
    nodes = QUICK_NODES if quick else NODES
    sites = nodes // SITE_NODES
    fleet = [
        node for n in range(sites) for node in new_fleet(f"site-{n:03}", SITE_NODES, first=n * SITE_NODES)
    ]
    seconds = 10.0 if quick else 120.0
    with Controllers() as controllers:
        controllers.start()
        print(f"  taking {nodes} nodes in", flush=True)
        controllers.furnish(fleet, INTERVAL_S)
        with _bare(controllers) as (url, process):
            bare = _bare_seen(url, process, controllers.ca, fleet, seconds)
        sqlite = _seen(controllers, fleet, seconds, "SQLite")
        figures = _figures("one controller, SQLite", sqlite, bare)
        figures += archive.run(controllers, quick=quick)
        with postgres() as server:
            controllers.move(server.create("scale"), members=2)
            controllers.start()
            several = _seen(controllers, fleet, seconds, "PostgreSQL")
            figures += _figures("two controllers, PostgreSQL", several, bare)
            controllers.stop()
    return figures


# -- the controllers ---------------------------------------------------------------------------------------


def _seen(controllers: Controllers, fleet: list[Identity], seconds: float, what: str) -> Seen:
    empty = controllers.memory_bytes()
    with Swarm(controllers.urls, controllers.ca, fleet, limit_s=1200.0) as swarm:
        connect, connect_cpu_s = _timed(controllers, swarm, Connect())
        print(f"  {what}: {connect.nodes} connected in {connect.seconds:.0f} s {connect.codes}", flush=True)
        _all(connect, len(fleet))
        calm, calm_cpu_s = _timed(controllers, swarm, Report(INTERVAL_S, seconds))
        memory = controllers.memory_bytes() - empty
        print(
            f"  {what}: {len(calm.latencies_ms)} reports, p99 {percentile(calm.latencies_ms, 99):.0f} ms",
            flush=True,
        )
        _all(calm, len(fleet))
        isolation_s = _isolated(controllers, swarm, fleet[0].site, seconds)
        print(f"  {what}: site isolated in {isolation_s:.3f} s", flush=True)
        broadcast_s, broadcast_cpu_s = _pushed(controllers, swarm, len(fleet))
        print(f"  {what}: pushed in {broadcast_s:.2f} s", flush=True)
        few, cpu_s = _timed(controllers, swarm, Report(0.0, seconds / 4, nodes=FEW))
        _all(few, 2 * FEW)
        back, back_cpu_s = _timed(controllers, swarm, Reconnect())
        print(f"  {what}: {back.nodes} back in {back.seconds:.0f} s, {back.dials} dials", flush=True)
        _all(back, len(fleet))
    return Seen(
        nodes=len(fleet),
        calm=calm,
        calm_cpu_s=calm_cpu_s,
        memory_bytes=memory,
        connect=connect,
        connect_cpu_s=connect_cpu_s,
        reconnect=back,
        reconnect_cpu_s=back_cpu_s,
        broadcast_s=broadcast_s,
        broadcast_cpu_s=broadcast_cpu_s,
        isolation_s=isolation_s,
        saturated_per_core=len(few.latencies_ms) / cpu_s,
    )


def _timed(
    controllers: Controllers, swarm: Swarm, play: Connect | Report | Reconnect
) -> tuple[Result, float]:
    before = controllers.processor_s()
    result = swarm.play(play)
    return result, controllers.processor_s() - before


def _all(result: Result, nodes: int) -> None:
    if result.nodes != nodes:
        raise RuntimeError(f"{result.nodes} of {nodes} nodes did it: {result.codes}")


def _isolated(controllers: Controllers, swarm: Swarm, site: str, seconds: float) -> float:
    """Isolate a site while all report; return the seconds from the call to the last node's order."""
    reporting = swarm.begin(Report(INTERVAL_S, seconds / 4))
    time.sleep(seconds / 12)
    watching = swarm.begin(Watch([site], 30.0))
    begun = time.monotonic()
    controllers.api("POST", f"/sites/{site}/isolate", {"reason": "bench"})
    seen = watching.result()
    reporting.result()
    if seen.nodes != SITE_NODES:
        raise RuntimeError(f"{seen.nodes} of {SITE_NODES} nodes were told")
    controllers.api("POST", f"/sites/{site}/release", {"reason": "bench"})
    return max(seen.moments) - begun


def _pushed(controllers: Controllers, swarm: Swarm, nodes: int) -> tuple[float, float]:
    """Roll a new version out to all in one wave; return the seconds from the first node's order to the last one's."""
    version = int(controllers.api("GET", "/baselines?limit=500")["items"][-1]["version"]) + 1
    controllers.push(version)
    plan = controllers.api("POST", "/plans", {"baseline": "factory", "version": version, "selector": "all"})
    asked = {"plan": plan["id"], "terms": {"waves": [], "soak_s": 0.0}, "reason": "bench"}
    rollout = controllers.api("POST", "/rollouts", asked)
    watching = swarm.begin(Watch([], 120.0))
    before = controllers.processor_s()
    controllers.api("POST", f"/rollouts/{rollout['id']}/approve", {"reason": "bench"})
    seen = watching.result()
    cpu_s = controllers.processor_s() - before
    if seen.nodes != nodes:
        raise RuntimeError(f"{seen.nodes} of {nodes} nodes were told")
    controllers.api("POST", f"/rollouts/{rollout['id']}/abort", {"reason": "bench"})
    return max(seen.moments) - min(seen.moments), cpu_s


# -- the bare server ---------------------------------------------------------------------------------------


@contextmanager
def _bare(controllers: Controllers) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    trusted = controllers.folder / "node-ca.pem"
    trusted.write_text(controllers.keys.node_trust)
    command = [
        sys.executable, "-m", "bench.bare", "--port", f"{port}", "--node-ca", str(trusted),
        "--certificate", str(controllers.keys.server_certificate), "--key", str(controllers.keys.server_key),
    ]  # fmt: skip
    server = subprocess.Popen(command, cwd=TREE)
    try:
        time.sleep(2.0)
        yield f"https://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        server.kill()
        server.wait()


def _bare_seen(url: str, server: psutil.Process, ca: str, fleet: list[Identity], seconds: float) -> Seen:
    def cpu_s() -> float:
        times = server.cpu_times()
        return float(times.user + times.system)

    empty = server.memory_info().rss
    with Swarm([url], ca, fleet, limit_s=600.0) as swarm:
        marks = [cpu_s()]
        connect = swarm.play(Connect())
        marks.append(cpu_s())
        print(f"  bare: {connect.nodes} connected in {connect.seconds:.0f} s {connect.codes}", flush=True)
        _all(connect, len(fleet))
        calm = swarm.play(Report(INTERVAL_S, seconds / 2))
        marks.append(cpu_s())
        memory = server.memory_info().rss - empty
        watching = swarm.begin(Watch([], 60.0))
        server.send_signal(signal.SIGUSR1)
        told = watching.result()
        marks.append(cpu_s())
        _all(told, len(fleet))
        few = swarm.play(Report(0.0, seconds / 8, nodes=FEW))
        marks.append(cpu_s())
    took = [after - before for before, after in itertools.pairwise(marks)]
    return Seen(
        nodes=len(fleet),
        calm=calm,
        calm_cpu_s=took[1],
        memory_bytes=memory,
        connect=connect,
        connect_cpu_s=took[0],
        # It has no limit on handshakes, so thousands at once all run into their clients' time limit, again and again. What
        # it can do is shown by letting 128 in at a time.
        reconnect=connect,
        reconnect_cpu_s=took[0],
        broadcast_s=max(told.moments) - min(told.moments),
        broadcast_cpu_s=took[2],
        saturated_per_core=len(few.latencies_ms) / took[3],
    )


# -- the figures -------------------------------------------------------------------------------------------


def _figures(what: str, seen: Seen, bare: Seen) -> list[Figure]:
    label = f"{seen.nodes} nodes, {what}"
    p50, p99 = (percentile(seen.calm.latencies_ms, percent) for percent in (50, 99))
    bare50, bare99 = (percentile(bare.calm.latencies_ms, percent) for percent in (50, 99))

    def each(which: Seen, cpu_s: float) -> float:
        return cpu_s / which.nodes * 1e3

    return [
        figure(f"{label}: report to answer at {INTERVAL_S:g} s, p50", p50, "ms", "bare server", bare50),
        figure(f"{label}: report to answer at {INTERVAL_S:g} s, p99", p99, "ms", "bare server", bare99),
        figure(
            f"{label}: processor for a report at that rate",
            seen.calm_cpu_s / len(seen.calm.latencies_ms) * 1e3,
            "ms",
            "bare server",
            bare.calm_cpu_s / len(bare.calm.latencies_ms) * 1e3,
        ),
        figure(
            f"{label}: memory for each connected node",
            seen.memory_bytes / seen.nodes / 1024,
            "KiB",
            "bare server",
            bare.memory_bytes / bare.nodes / 1024,
        ),
        figure(f"{label}: all connect and attest first", seen.connect.seconds, "s", "bare server", bare.connect.seconds),
        figure(
            f"{label}: processor of a first session, each node", each(seen, seen.connect_cpu_s), "ms", "bare server",
            each(bare, bare.connect_cpu_s),
        ),
        figure(f"{label}: all reconnect", seen.reconnect.seconds, "s", "bare server, 128 at a time", bare.reconnect.seconds),
        figure(
            f"{label}: processor of a reconnection, each node", each(seen, seen.reconnect_cpu_s), "ms", "bare server",
            each(bare, bare.reconnect_cpu_s),
        ),
        figure(f"{label}: push to all, first order to last", seen.broadcast_s, "s", "bare broadcast", bare.broadcast_s),
        figure(
            f"{label}: processor of a push, each node", each(seen, seen.broadcast_cpu_s), "ms", "bare broadcast",
            each(bare, bare.broadcast_cpu_s),
        ),
        figure(f"{label}: order to isolate a site of {SITE_NODES} to the last of its nodes", seen.isolation_s, "s"),
        figure(
            f"{label}: reports for each second of a controller's core at saturation",
            seen.saturated_per_core, "1/s", "bare server", bare.saturated_per_core,
        ),
    ]  # fmt: skip
