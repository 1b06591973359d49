"""A worker process: holds its share of the nodes and plays what it is told, a line at a time on standard input.

    python -m tests.simulate.worker

Not meant to be run by hand: `tests.simulate.swarm` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import uvloop

from contract import wire
from tests.parts.simulator import load_fleet, replayed
from tests.simulate.nodes import AWAY, BACKOFF_S, DIAL_S, LiveNode, Turned
from tests.simulate.relay import slow_line
from tests.simulate.wire import (
    Connect,
    Lie,
    Play,
    Reconnect,
    Report,
    Result,
    Said,
    Setup,
    Skew,
    Slow,
    Storm,
    Task,
    Watch,
    Wave,
    checked,
)

MAX_DIALS = 10
"""For each node, on average; past it a fleet that cannot connect is said to be one."""
FOR_EACH_ADDRESS = 2000
"""Of 28,000 ports that an address has towards one listener: room for what lingers after a reconnection."""


class Worker:
    """The nodes of one process."""

    def __init__(self, setup: Setup) -> None:
        self._urls = [checked(url) for url in setup.urls]
        self._fleet = load_fleet(Path(setup.fleet))
        log = Path(setup.event_log).read_bytes()
        pcrs = replayed(log)
        self.nodes = [LiveNode(identity, log, pcrs, setup.ca) for identity in self._fleet]
        self._url_of = {node: self._urls[n % len(self._urls)] for n, node in enumerate(self.nodes)}
        self._http: dict[LiveNode, aiohttp.ClientSession] = {}
        self._share = setup.share
        self._lines = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Worker:
        for begin in range(0, len(self.nodes), FOR_EACH_ADDRESS):
            source = f"127.0.{self._share + 1}.{begin // FOR_EACH_ADDRESS + 1}"
            http = await self._lines.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, local_addr=(source, 0)),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S),
                )
            )
            for node in self.nodes[begin : begin + FOR_EACH_ADDRESS]:
                self._http[node] = http
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            node.cut()
        await self._lines.aclose()

    async def play(self, play: Play) -> Result:
        """Play it and say what was seen."""
        began, cpu = time.monotonic(), time.process_time()
        result = await _PLAYS[type(play)](self, play)  # type: ignore[arg-type]
        result.seconds, result.cpu_s = time.monotonic() - began, time.process_time() - cpu
        result.tiers = dict(Counter(node.tier for node in self.nodes))
        return result

    def _some(self, share: float) -> list[LiveNode]:
        return random.sample(self.nodes, max(1, round(len(self.nodes) * share)))

    async def _each(self, nodes: Sequence[LiveNode], do: Callable[[LiveNode], Awaitable[float]]) -> Result:
        result, codes = Result(), Counter[str]()

        async def one(node: LiveNode) -> None:
            try:
                result.latencies_ms.append(await do(node))
            except AWAY as error:
                codes[error.code if isinstance(error, Turned) else type(error).__name__] += 1
                return
            result.nodes += 1
            result.moments.append(time.monotonic())

        await asyncio.gather(*(one(node) for node in nodes))
        result.codes = dict(codes)
        return result

    async def connect(self, play: Connect) -> Result:
        slots = asyncio.Semaphore(play.at_once)

        dials = 0

        async def begin(node: LiveNode) -> float:
            nonlocal dials
            while True:
                async with slots:
                    dials += 1
                    with contextlib.suppress(*AWAY):
                        took = await node.open(self._http[node], self._url_of[node])
                        await node.tell()
                        return took
                if dials > MAX_DIALS * len(self.nodes):
                    raise Turned("no-session")
                await asyncio.sleep(random.uniform(*BACKOFF_S) / 4)

        result = await self._each(self.nodes, begin)
        result.dials = dials
        return result

    async def report(self, play: Report) -> Result:
        nodes = self.nodes[: play.nodes] if play.nodes else self.nodes
        latencies: list[float] = []
        began = time.monotonic()
        end = began + play.seconds

        async def go_on(node: LiveNode) -> float:
            at = began + random.random() * play.interval_s
            while True:
                await asyncio.sleep(max(0.0, min(at, end) - time.monotonic()))
                if time.monotonic() >= end:
                    return 0.0
                latencies.append(await node.tell())
                at += play.interval_s

        result = await self._each(nodes, go_on)
        result.latencies_ms = latencies
        return result

    async def storm(self, _play: Storm) -> Result:
        return await self._each(self.nodes, LiveNode.tell)

    async def wave(self, play: Wave) -> Result:
        nodes = self._some(play.share)
        for node in nodes:
            own = bytes(24) + os.urandom(8)
            node.pcrs = {**node.pcrs, 9: bytes(31) + b"\1" if play.same else own}
        return await self._each(nodes, LiveNode.tell)

    async def lie(self, play: Lie) -> Result:
        def frame(node: LiveNode) -> bytes:
            if play.kind == "frame":
                return os.urandom(64)
            if play.kind == "replay":
                return node.sent
            report = node.told()
            if play.kind == "quote":
                broken = report.signature[:-1] + bytes([report.signature[-1] ^ 1])
                report = msgspec.structs.replace(report, signature=broken)
            elif play.kind == "pcr":
                report = msgspec.structs.replace(report, pcrs={**report.pcrs, 0: os.urandom(32)})
            else:
                raise ValueError(play.kind)
            return wire.encode(report)

        return await self._each(self._some(play.share), lambda node: node.tell(frame(node)))

    async def skew(self, play: Skew) -> Result:
        nodes = self._some(play.share)
        for node in nodes:
            node.skew_s = play.seconds
        return await self._each(nodes, LiveNode.tell)

    async def slow(self, play: Slow) -> Result:
        lines: dict[str, str] = {}
        for url in self._urls:
            parts = urlsplit(url)
            port = await self._lines.enter_async_context(
                slow_line(parts.hostname or "", parts.port or 443, play.bytes_per_s)
            )
            lines[url] = f"{parts.scheme}://{parts.hostname}:{port}"

        async def crawl(node: LiveNode) -> float:
            await node.open(self._http[node], lines[self._url_of[node]])
            return await node.tell()

        return await self._each(self._some(play.share), crawl)

    async def reconnect(self, _play: Reconnect) -> Result:
        dials = 0

        async def back(node: LiveNode) -> float:
            nonlocal dials
            tries, took = await node.come_back(self._http[node], self._url_of[node])
            dials += tries
            return took

        for node in self.nodes:
            node.cut()
        result = await self._each(self.nodes, back)
        result.dials = dials
        return result

    async def watch(self, play: Watch) -> Result:
        nodes = [node for node in self.nodes if not play.sites or node.identity.site in play.sites]
        result = Result()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(play.seconds):
                await asyncio.gather(*(node.ordered.wait() for node in nodes))
        result.moments = [node.ordered_at for node in nodes if node.ordered.is_set()]
        result.nodes = len(result.moments)
        return result

    def listen_anew(self) -> None:
        """What was ordered before does not count any more."""
        for node in self.nodes:
            node.ordered.clear()


_PLAYS = {
    Connect: Worker.connect,
    Report: Worker.report,
    Storm: Worker.storm,
    Wave: Worker.wave,
    Lie: Worker.lie,
    Skew: Worker.skew,
    Slow: Worker.slow,
    Reconnect: Worker.reconnect,
    Watch: Worker.watch,
}


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


async def _perform(worker: Worker, task: Task) -> None:
    try:
        if isinstance(task.play, Watch):
            worker.listen_anew()
        _say(Said(number=task.number))
        _say(Said(number=task.number, result=await worker.play(task.play)))
    except Exception as error:  # the outermost place: the swarm raises it
        _say(Said(number=task.number, fault=f"{type(error).__name__}: {error}"))


async def _serve(setup: Setup) -> None:
    lines = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    async with Worker(setup) as worker:
        while line := await lines.readline():
            performing = asyncio.create_task(_perform(worker, msgspec.json.decode(line, type=Task)))
            tasks.add(performing)
            performing.add_done_callback(tasks.discard)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Serve until standard input ends, or the limit is reached."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    first = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]  # unbuffered: the rest is the event loop's
    setup = msgspec.json.decode(first, type=Setup)
    limit = threading.Timer(setup.limit_s, lambda: os._exit(1))
    limit.daemon = True
    limit.start()
    uvloop.run(_serve(setup))


if __name__ == "__main__":
    main()
