"""Two controllers over one PostgreSQL, and what tests ask of the pair."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.controller.live import Live, node_of, running
from tests.parts.postgres import Postgres
from tests.parts.simulator import Identity, Node

_names = itertools.count()
DEADLINE_S = 60.0


@contextlib.asynccontextmanager
async def duties(live: Live) -> AsyncIterator[None]:
    """Let a controller do what it does again and again."""
    running_ = asyncio.create_task(live.controller.run_duties())
    try:
        yield
    finally:
        running_.cancel()
        await asyncio.gather(running_, return_exceptions=True)


@contextlib.asynccontextmanager
async def two_over(server: Postgres, folder: Path) -> AsyncIterator[tuple[Live, Live]]:
    """Two that run, with their duties."""
    database = server.create(f"several{next(_names)}", "ready")
    for name in ("one", "two"):
        (folder / name).mkdir()
    async with (
        running(folder / "one", database=database) as one,
        running(folder / "two", database=database, beside=one) as other,
        duties(one),
        duties(other),
    ):
        yield one, other


async def at(live: Live, identity: Identity) -> Node:
    """A session of an enrolled node at this controller."""
    node = node_of(identity)
    await node.connect(live.http, live.node_url, live.ca)
    return node


async def heard(live: Live) -> None:
    """Wait until both controllers hear each other."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        async with asyncio.timeout(DEADLINE_S):
            listening = await live.controller._store.run(
                lambda tx: tx.exec_driver_sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' OR query = 'SELECT 1'"
                ).scalar_one()
            )
        if listening >= 2:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("nobody listens")
