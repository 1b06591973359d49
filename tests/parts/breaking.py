"""A relay of TCP that loses answers: what is asked arrives, and the connection breaks before the answer is through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Breaking:
    """A relay to one port of loopback."""

    def __init__(self, port: int, answers_lost: int) -> None:
        self._to = port
        self._left = answers_lost
        self.lost = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. The handshake goes through; of what the other side says after the first request, nothing."""
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        asked = asyncio.Event()

        async def out() -> None:
            told = 0
            while data := await reader.read(65536):
                told += 1
                there_writer.write(data)
                await there_writer.drain()
                if (
                    told > 1
                ):  # the first is the client's hello, the second its Finished, with or without a request
                    asked.set()

        async def back() -> None:
            hello = True
            while data := await there_reader.read(65536):
                if not hello and asked.is_set() and self._left > 0:
                    self._left -= 1
                    self.lost += 1
                    return
                hello = False
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(out()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, there_writer):
            each.close()


@contextlib.asynccontextmanager
async def breaking(port: int, *, answers_lost: int) -> AsyncIterator[Breaking]:
    """Listen on a free port for as long as the block lasts."""
    relay = Breaking(port, answers_lost)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    async with server:
        yield relay
