"""Drive `bench.bare`: so many connections, each sends its next frame when the last one was answered.

    python -m bench.echoclient --url URL --ca FILE --connections N --frame-bytes N --seconds S

Prints one JSON document: exchanges and seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from pathlib import Path

import aiohttp
import uvloop


async def _drive(url: str, context: ssl.SSLContext, connections: int, frame: bytes, seconds: float) -> str:
    exchanges = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await session.ws_connect(url, ssl=context, compress=0) for _ in range(connections)]
        began = time.perf_counter()

        async def go_on(socket: aiohttp.ClientWebSocketResponse) -> None:
            nonlocal exchanges
            while time.perf_counter() - began < seconds:
                await socket.send_bytes(frame)
                await socket.receive_bytes()
                exchanges += 1

        await asyncio.gather(*(go_on(socket) for socket in sockets))
        took = time.perf_counter() - began
        await asyncio.gather(*(socket.close() for socket in sockets))
    return json.dumps({"exchanges": exchanges, "seconds": took})


def main() -> None:
    """Drive and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", required=True, type=Path)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--frame-bytes", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(options.ca))
    frame = bytes(options.frame_bytes)
    print(uvloop.run(_drive(options.url, context, options.connections, frame, options.seconds)))


if __name__ == "__main__":
    main()
