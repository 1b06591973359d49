"""The bare server to compare a controller with: aiohttp, the same TLS, the same frames, nothing behind them.

    python -m bench.bare --port N --certificate FILE --key FILE (--node-ca FILE | --answer-bytes N)

With `--node-ca` it asks for client certificates, says a Hello that was made beforehand, answers every frame with one Answer made
beforehand, and on SIGUSR1 sends one Order made beforehand to every connection: the same swarm can drive it (`tests.simulate`), and
what a client costs is in both. With `--answer-bytes` it takes anybody and answers so many bytes (`bench.echoclient`).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import ssl
from pathlib import Path

import uvloop
from aiohttp import WSMsgType, web

from contract.messages import PROTOCOL, Answer, Hello, Order
from contract.wire import encode

ORDER_BYTES = 900
"""Of a directive with its signature, in base64."""


def _order() -> bytes:
    directive = {"number": 1, "posture": "normal", "reason": "x" * (ORDER_BYTES * 9 // 16)}
    return json.dumps({"payload": base64.b64encode(json.dumps(directive).encode()).decode()}).encode()


async def _serve(port: int, context: ssl.SSLContext, hello: bytes, answer: bytes) -> None:
    order = encode(Order(directive=_order()))
    sockets: set[web.WebSocketResponse] = set()
    sending: set[asyncio.Task[None]] = set()

    async def session(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, protocols=(PROTOCOL,))
        await socket.prepare(request)
        if hello:
            await socket.send_bytes(hello)
        sockets.add(socket)
        try:
            async for frame in socket:
                if frame.type is WSMsgType.BINARY:
                    await socket.send_bytes(answer)
        finally:
            sockets.discard(socket)
        return socket

    async def broadcast() -> None:
        await asyncio.gather(*(socket.send_bytes(order) for socket in sockets))

    def begin() -> None:
        task = asyncio.create_task(broadcast())
        sending.add(task)
        task.add_done_callback(sending.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin)
    app = web.Application()
    app.router.add_get("/{tail:.*}", session)
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
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--node-ca", type=Path)
    kind.add_argument("--answer-bytes", type=int)
    options = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(options.certificate, options.key)
    if options.node_ca is None:
        uvloop.run(_serve(options.port, context, b"", bytes(options.answer_bytes)))
        return
    context.load_verify_locations(str(options.node_ca))
    context.verify_mode = ssl.CERT_REQUIRED
    hello = encode(Hello(node="bare", nonce=bytes(32), interval_s=60.0, event_log_wanted=False))
    answer = encode(Answer(number=1, nonce=bytes(32), tier="affirming"))
    uvloop.run(_serve(options.port, context, hello, answer))


if __name__ == "__main__":
    main()
