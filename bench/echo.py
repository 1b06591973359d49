"""The bare server to compare with: aiohttp, the same TLS, one WebSocket a client, every frame answered at once.

python -m bench.echo --port N --certificate FILE --key FILE --answer-bytes N
"""

from __future__ import annotations

import argparse
import asyncio
import ssl

import uvloop
from aiohttp import WSMsgType, web


async def _serve(port: int, context: ssl.SSLContext, answer: bytes) -> None:
    async def session(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for frame in socket:
            if frame.type is WSMsgType.BINARY:
                await socket.send_bytes(answer)
        return socket

    app = web.Application()
    app.router.add_get("/", session)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=4096).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--answer-bytes", type=int, required=True)
    options = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(options.certificate, options.key)
    uvloop.run(_serve(options.port, context, bytes(options.answer_bytes)))


if __name__ == "__main__":
    main()
