"""The longest turn of the controller's event loop while strangers flood in: so long does everybody else wait.

The controller runs in this process, as its command runs it (uvloop, the heap's short pauses); the flood is a process of its own.
Beside it aiohttp alone under the same flood, which answers at once and does nothing.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from aiohttp import web

from bench.figures import Figure, figure, percentile
from controller.config import Limits
from controller.heap import short_pauses
from tests.controller.live import running
from tests.parts.flood import ENROLMENTS, TOKENS

PATIENT = Limits(failures_per_minute=100_000)
"""Each wrong token is looked at: to be turned away for having been wrong before costs less."""


def run(*, quick: bool) -> list[Figure]:
    """Flood several times; once when `quick`."""
    times = 1 if quick else 5
    with short_pauses(), tempfile.TemporaryDirectory() as folder:
        gc.collect()
        longest, usual, bare = uvloop.run(_measure(Path(folder), times))
    return [
        figure(
            f"longest turn of the loop, {TOKENS} bad tokens and {ENROLMENTS} garbage enrolments at once",
            longest,
            "ms",
            "aiohttp alone, same flood",
            bare,
        ),
        figure("a turn of the loop in that flood, p99", usual, "ms", "promise for the longest", 50.0),
    ]


async def _measure(folder: Path, times: int) -> tuple[float, float, float]:
    async with running(folder, limits=PATIENT) as live:
        ca = folder / "ca.pem"
        ca.write_text(live.ca)
        keys = live.services.keys
        turns = [await _turns(_flood(live.admin_url, live.node_url, ca)) for _ in range(times)]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(keys.server_certificate, keys.server_key)
        bare = [await _bare(context, ca) for _ in range(times)]
    every = [turn for each in turns for turn in each]
    return max(every), percentile(every, 99), max(turn for each in bare for turn in each)


async def _bare(context: ssl.SSLContext, ca: Path) -> list[float]:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=401 if request.method == "GET" else 422)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, backlog=4096)
    await site.start()
    try:
        url = f"https://localhost:{runner.addresses[0][1]}"
        return await _turns(_flood(url, url, ca))
    finally:
        await runner.cleanup()


async def _turns(work: Callable[[], Awaitable[None]]) -> list[float]:
    """Return how long others waited for the loop while `work` was going on, again and again: milliseconds of its processor time.

    Two short turns may be taken for one: never less than there was.
    """
    turns: list[float] = []
    going = asyncio.ensure_future(work())
    await asyncio.sleep(0.2)  # the process is started: that fork is not the controller's work
    while not going.done():
        begun = time.thread_time()
        await asyncio.sleep(0.001)
        turns.append((time.thread_time() - begun) * 1000)
    await going
    return turns


def _flood(admins: str, nodes: str, ca: Path) -> Callable[[], Awaitable[None]]:
    async def flood() -> None:
        ran = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.parts.flood", admins, nodes, ca, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await ran.communicate()
        if told != b"401 422\n":
            raise RuntimeError(f"the flood was answered {told!r}")

    return flood
