"""One controller's ear: a connection of its own that LISTENs, and comes back by itself with longer and longer pauses.

Whoever listens must look at everything after each connection, the first one too: what was told before is not told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from controller.store.notices import CHANNEL, Notice, read

HEALTH_S = 5.0
"""A connection that is silent for so long is asked whether it lives."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
_CONNECT_S = 5


async def hear(url: str, *, own: str) -> AsyncIterator[Notice]:
    """Yield what other controllers tell, for ever; `everything` after each connection. Ends at once on SQLite.

    `own`: what this controller tells itself is left out.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "postgresql":
        return
    address = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                address, autocommit=True, connect_timeout=_CONNECT_S
            )
            async with connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                pause_s = FIRST_PAUSE_S
                yield Notice(by="", everything=True)
                async for notice in _of(connection, own):
                    yield notice
        except (psycopg.OperationalError, OSError, TimeoutError):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _of(connection: psycopg.AsyncConnection[tuple[object, ...]], own: str) -> AsyncIterator[Notice]:
    """Yield notices of one connection until it breaks. Raises psycopg.OperationalError then, or TimeoutError."""
    while True:
        async for told in connection.notifies(timeout=HEALTH_S):
            notice = read(told.payload)
            if notice is not None and notice.by != own:
                yield notice
        async with asyncio.timeout(HEALTH_S):
            await connection.execute("SELECT 1")
