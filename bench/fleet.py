"""A fleet of imagined nodes over real TLS and WebSocket, on loopback, to one real controller process.

Times at a calm rate, the most reports a second at saturation (per second of the controller's processor time, since clients
share the machine), and memory for each connected node. Beside it the bare WebSocket echo with the same TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pstats
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.figures import Figure, figure, percentile
from tests.parts.adminapi import AdminApi
from tests.parts.signing import SigningKit, minimal_baseline
from tests.parts.simulator import Identity, Result, ek_id, enrol_all, load_fleet, new_fleet, save_fleet

TREE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
EVENT_LOG = TREE / "tests/vectors/good-rsa/eventlog.bin"
CLIENTS = 2
INTERVAL_S = 60.0
REPORT_BYTES = 1100
ANSWER_BYTES = 90


def run(*, quick: bool) -> list[Figure]:
    """Run all of it with 2,000 nodes, or with 200 when `quick`."""
    nodes = 200 if quick else 2000
    with Bench() as bench:
        print(f"  enrolling {nodes} nodes", flush=True)
        fleets = bench.enrolled_fleets(nodes)
        empty = bench.memory_bytes()
        calm, full = bench.calm(fleets, INTERVAL_S, 20.0 if quick else 90.0)
        figures = _calm_figures(nodes, calm)
        figures.append(figure("memory for each connected node", (full - empty) / nodes / 1024, "KiB"))
        print("  saturation", flush=True)
        stored, carried, processor = bench.saturated(fleets, 5.0 if quick else 20.0)
        bare_rate, bare = bench.echo(5.0 if quick else 15.0)
    return [
        *figures,
        figure(
            "reports verified and stored per second of one controller core",
            carried,
            "1/s",
            "bare WebSocket echo over the same TLS, per second of its core",
            bare,
        ),
        figure(
            "reports per second by the clock, clients on the same machine",
            stored,
            "1/s",
            "bare WebSocket echo, by the clock",
            bare_rate,
        ),
        figure("processor time of the controller for a report", processor * 1e6, "us"),
    ]


def profile(*, quick: bool) -> str:
    """Return where the controller's processor time goes at saturation: its functions by their own time.

    The profiler slows every call down, so shares are worth reading and times are not.
    """
    with Bench(profiled=True) as bench:
        fleets = bench.enrolled_fleets(200)
        bench.saturated(fleets, 5.0 if quick else 20.0)
        bench.stop()
        text = io.StringIO()
        stats = pstats.Stats(str(bench.profile), stream=text)
        stats.strip_dirs().sort_stats("tottime").print_stats(35)
    return text.getvalue()


def _calm_figures(nodes: int, calm: Result) -> list[Figure]:
    if calm.failures:
        raise RuntimeError(f"nodes failed: {calm.failures[:3]}")
    if calm.tiers != {"affirming": nodes}:
        raise RuntimeError(f"not every node was affirmed: {calm.tiers}")
    label = f"report to answer, {nodes} nodes at {INTERVAL_S:g} s"
    return [
        figure(f"{label}, p50", percentile(calm.latencies_ms, 50), "ms"),
        figure(f"{label}, p99", percentile(calm.latencies_ms, 99), "ms"),
    ]


class Bench:
    """One controller process on loopback, in a folder of its own."""

    def __init__(self, *, profiled: bool = False) -> None:
        """`profiled`: the controller writes `profile` when it ends."""
        self.folder = Path(tempfile.mkdtemp(prefix="ringfence-bench-"))
        self.profile = self.folder / "controller.prof"
        self._profiled = profiled
        self._node_port, self._admin_port, self._echo_port = _free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Bench:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def stop(self) -> None:
        """End the controller and wait for it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where nodes go."""
        return f"https://127.0.0.1:{self._node_port}"

    @property
    def ca(self) -> Path:
        """What nodes and admins pin."""
        return self.folder / "controller/controller-ca.pem"

    def _start(self) -> None:
        controller, token = self.folder / "controller", self.folder / "token"
        command = [
            BIN / "ringfence-controller", "init", "--dir", controller,
            "--node-url", self.url, "--node-listen", f"127.0.0.1:{self._node_port}",
            "--admin-url", f"https://127.0.0.1:{self._admin_port}",
            "--admin-listen", f"127.0.0.1:{self._admin_port}", "--token-file", token,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        with (self.folder / "controller.log").open("wb") as log:
            profiler = [sys.executable, "-m", "cProfile", "-o", self.profile] if self._profiled else []
            serve = [*profiler, BIN / "ringfence-controller", "serve", "--dir", controller]
            self._process = subprocess.Popen(serve, stdout=log, stderr=log)
        self.api = AdminApi("127.0.0.1", self._admin_port, self.ca, token.read_text().strip())
        deadline = time.monotonic() + 20
        while True:
            try:
                self.api("GET", "/status")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def enrolled_fleets(self, nodes: int) -> list[Path]:
        """Enrol so many nodes in one site and return one file of them for each client process."""
        self.api("POST", "/sites", {"site": "bench", "policy": {"interval_s": INTERVAL_S}})
        fleet: list[Identity] = new_fleet("bench", nodes)
        for identity in fleet:
            self.api("POST", "/preregistrations", {"ek_id": ek_id(identity), "site": "bench"})
        self._first_push()
        asyncio.run(enrol_all(self.url, self.ca.read_text(), fleet))
        paths = []
        for number in range(CLIENTS):
            paths.append(self.folder / f"fleet-{number}")
            save_fleet(fleet[number::CLIENTS], paths[-1])
        return paths

    def _first_push(self) -> None:
        """Give the controller the root of trust that nodes get when they enrol."""
        pem = (self.folder / "controller/keys/online.key").read_bytes()
        online = serialization.load_pem_private_key(pem, None)
        assert isinstance(online, Ed25519PrivateKey)
        kit = SigningKit(now=time.time(), online_key=online)
        kit.add(minimal_baseline())
        self.api("POST", "/baselines", kit.bundle())

    def memory_bytes(self) -> int:
        """Return the controller's resident memory."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def processor_s(self) -> float:
        """Return the processor time the controller has used."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def calm(self, fleets: list[Path], interval_s: float, seconds: float) -> tuple[Result, int]:
        """Connect all, report at an interval; return the result and the controller's memory with all connected."""
        running = [self._simulator(path, interval_s, seconds) for path in fleets]
        for each in running:
            _until_connected(each)
        print(f"  connected; reporting for {seconds:g} s", flush=True)
        time.sleep(seconds / 2)
        memory = self.memory_bytes()
        return _joined([_result(each, path) for each, path in zip(running, fleets, strict=True)]), memory

    def saturated(self, fleets: list[Path], seconds: float) -> tuple[float, float, float]:
        """Report as fast as answers come, from a few nodes of each file.

        Return reports a second by the clock, reports for each second of the controller's processor time, and its inverse.
        """
        few = []
        for path in fleets:
            few.append(path.with_suffix(".few"))
            save_fleet(load_fleet(path)[:64], few[-1])
        running = [self._simulator(path, 0.0, seconds) for path in few]
        for each in running:
            _until_connected(each)
        time.sleep(1.0)
        processor, began = self.processor_s(), time.monotonic()
        reports = self._stored()
        time.sleep(seconds - 2.0)
        reports = self._stored() - reports
        processor, took = self.processor_s() - processor, time.monotonic() - began
        result = _joined([_result(each, path) for each, path in zip(running, few, strict=True)])
        if result.failures or result.tiers != {"affirming": result.nodes}:
            raise RuntimeError(f"not every report was good: {result.tiers} {result.failures}")
        return reports / took, reports / processor, processor / reports

    def _stored(self) -> int:
        """Return how many reports the controller says it has appraised."""
        for line in self.api.text("/metrics").splitlines():
            if line.startswith('ringfence_reports_total{tier="affirming"}'):
                return int(float(line.rpartition(" ")[2]))
        return 0

    def _simulator(self, fleet: Path, interval_s: float, seconds: float) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "tests.parts.simulator", "--controller", self.url, "--ca", self.ca,
            "--fleet", fleet, "--event-log", EVENT_LOG, "--interval", f"{interval_s}", "--seconds", f"{seconds}",
            "--out", fleet.with_suffix(".result"),
        ]  # fmt: skip
        return subprocess.Popen(command, cwd=TREE, stderr=subprocess.PIPE, env=dict(os.environ))

    def echo(self, seconds: float) -> tuple[float, float]:
        """Return exchanges a second by the clock, and for each second of the bare server's processor time."""
        keys = self.folder / "controller/keys"
        command = [
            sys.executable, "-m", "bench.bare", "--port", f"{self._echo_port}", "--certificate", keys / "server.pem",
            "--key", keys / "server.key", "--answer-bytes", f"{ANSWER_BYTES}",
        ]  # fmt: skip
        server = subprocess.Popen(command, cwd=TREE)
        try:
            _until_listening(self._echo_port)
            drive = [
                sys.executable, "-m", "bench.echoclient", "--url", f"https://127.0.0.1:{self._echo_port}/",
                "--ca", self.ca, "--connections", "64", "--frame-bytes", f"{REPORT_BYTES}", "--seconds", f"{seconds}",
            ]  # fmt: skip
            before = psutil.Process(server.pid).cpu_times()
            running = [subprocess.Popen(drive, cwd=TREE, stdout=subprocess.PIPE) for _ in range(CLIENTS)]
            results = [json.loads(each.communicate()[0]) for each in running]
            after = psutil.Process(server.pid).cpu_times()
        finally:
            server.kill()
            server.wait()
        processor = after.user + after.system - before.user - before.system
        exchanges = sum(each["exchanges"] for each in results)
        return exchanges / max(each["seconds"] for each in results), exchanges / processor


def _until_connected(running: subprocess.Popen[bytes]) -> None:
    assert running.stderr is not None
    line = running.stderr.readline()
    if line.strip() != b"connected":
        raise RuntimeError(f"the simulator failed: {(line + running.stderr.read()).decode()[-2000:]}")


def _result(running: subprocess.Popen[bytes], fleet: Path) -> Result:
    _, err = running.communicate()
    if running.returncode:
        raise RuntimeError(f"the simulator failed: {err.decode()[-2000:]}")
    return msgspec.json.decode(fleet.with_suffix(".result").read_bytes(), type=Result)


def _joined(results: list[Result]) -> Result:
    tiers: dict[str, int] = {}
    for result in results:
        for tier, count in result.tiers.items():
            tiers[tier] = tiers.get(tier, 0) + count
    return Result(
        nodes=sum(result.nodes for result in results),
        reports=sum(result.reports for result in results),
        seconds=max(result.seconds for result in results),
        latencies_ms=[each for result in results for each in result.latencies_ms],
        tiers=tiers,
        failures=[each for result in results for each in result.failures],
        client_cpu_s=sum(result.client_cpu_s for result in results),
    )


def _free_ports(count: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return iter([int(each.getsockname()[1]) for each in sockets])


def _until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
