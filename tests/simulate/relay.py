"""A slow line: what goes through arrives at so many bytes a second, in both directions together; loopback only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_PIECE = 256


@contextlib.asynccontextmanager
async def slow_line(host: str, port: int, bytes_per_s: int) -> AsyncIterator[int]:
    """Listen on loopback for as long as the block lasts; yield the port. Every connection is a line of its own."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE):
                await asyncio.sleep(len(piece) / bytes_per_s)
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, out = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        for task in (asyncio.create_task(pump(reader, out)), asyncio.create_task(pump(there, writer))):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(line, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
