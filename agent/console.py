"""Break-glass at the node's console: a person types a one-use code; nothing of the network is needed.

The command (`agent.glass_command`) reaches the running agent by a socket in the state folder. The slow hash runs beside the machine's thread, one
try at a time; counting tries and opening are the worker's (`agent.breakglass`).

Refuses: callers that are not root; a line that is longer than a code can be. The code is not logged or kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from agent.clock import boottime
from contract.errors import Rejected
from contract.grant import matching
from contract.wire import decode, encode

if TYPE_CHECKING:
    from agent.loop import Loop

T = TypeVar("T")

SOCKET_NAME: Final = "break-glass.sock"
MAX_LINE_BYTES: Final = 128
_READ_S: Final = 10.0
_ANSWER_S: Final = 30.0
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Reply(Struct, frozen=True, kw_only=True):
    """What the agent tells the command."""

    opened_s: float = 0.0
    code: str = ""
    detail: str = ""


class Console:
    """The agent's end of the socket. On the asyncio thread only."""

    def __init__(self, node: str, loop: Loop) -> None:
        self._node = node
        self._loop = loop
        self._one = asyncio.Lock()

    async def serve(self, folder: Path) -> asyncio.AbstractServer:
        """Listen in the state folder, for root and the agent's own user."""
        path = folder / SOCKET_NAME
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._caller, path, limit=MAX_LINE_BYTES)
        finally:
            os.umask(before)

    async def _caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        try:
            if int(_CREDENTIALS.unpack(raw)[1]) not in (0, os.getuid()):
                raise Rejected("break-glass.caller", "only root may ask")
            line = await asyncio.wait_for(reader.readline(), _READ_S)
            async with self._one:
                reply = Reply(opened_s=await self.tried(line.decode("ascii", "replace")))
        except Rejected as refused:
            reply = Reply(code=refused.code, detail=refused.detail)
        except (OSError, TimeoutError, ValueError):
            reply = Reply(code="break-glass.malformed", detail="expected one line with a code")
        with contextlib.suppress(OSError):
            writer.write(encode(reply))
            await writer.drain()
            writer.close()

    async def tried(self, untrusted: str) -> float:
        """Try a code; return for how many seconds it opened. Raises Rejected `break-glass.*`."""
        loop = self._loop
        codes = await self._on_worker(
            lambda: loop.permits.glass.begin(loop.stance.posture == "isolated", boottime())
        )
        found = await asyncio.to_thread(matching, codes, untrusted, self._node)
        return await self._on_worker(lambda: loop.permits.glass.finish(found, boottime()))

    async def _on_worker(self, job: Callable[[], T]) -> T:
        """Run a job where the machine is owned. A refusal is an answer there: an exception would end the agent."""

        def answered() -> T | Rejected:
            try:
                return job()
            except Rejected as refused:
                return refused

        result = await asyncio.wrap_future(self._loop.call(answered))
        if isinstance(result, Rejected):
            raise result
        return result


def ask(folder: Path, typed: str) -> float:
    """Have the running agent try a code; return for how many seconds it opened. Raises Rejected with the reason."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(folder / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            raise Rejected("break-glass.no-agent", "the agent is not running") from None
        connection.sendall(typed.strip().encode("ascii", "replace")[: MAX_LINE_BYTES - 1] + b"\n")
        content = bytearray()
        while part := connection.recv(4096):
            content += part
            if len(content) > 4096:
                break
    reply = decode(bytes(content), Reply, max_bytes=8192, code="break-glass.no-answer")
    if not reply.opened_s:
        raise Rejected(reply.code or "break-glass.no-answer", reply.detail)
    return reply.opened_s
