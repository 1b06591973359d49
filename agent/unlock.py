"""`ringfence-agent unlock-key`: fetch a disk key from escrow and open it with this node's TPM.

The running agent asks: its next report carries the request under the quote, the controller answers over the session, and
the TPM opens what came. The command reaches the agent by a socket in the state folder. The key goes to the one who asked
and nowhere else: it is not logged, stored or kept.

Refuses: callers that are neither root nor the agent's own user; to write over a file; answers to anything that was not
asked. Relies on: `contract.escrow` for what opens what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from agent.tpm import Tpm, TpmUnavailable
from contract.errors import Rejected
from contract.messages import MAX_KEY_BYTES, MAX_KEYS_WANTED, KeyRefused, KeyReleased, KeyWanted
from contract.names import MAX_NAME_CHARS, checked_name
from contract.wire import decode, encode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

log = logging.getLogger("ringfence.unlock")

SOCKET_NAME: Final = "unlock.sock"
WAIT_S: Final = 300.0
"""So long the agent keeps asking for a caller who is still there."""
_READ_S: Final = 5.0
_REPLY_BYTES: Final = MAX_KEY_BYTES + 4096
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Reply(Struct, frozen=True, kw_only=True):
    """What the agent tells the command: a key, or why not."""

    key: bytes = b""
    code: str = ""
    detail: str = ""


class _Request(NamedTuple):
    wanted: KeyWanted
    private: X25519PrivateKey
    answer: asyncio.Future[bytes]


class Unlocks:
    """Requests that have no answer yet. On the asyncio thread only."""

    def __init__(self, node: str, tpm: Tpm, report_soon: Callable[[], object]) -> None:
        self._node = node
        self._tpm = tpm
        self._report_soon = report_soon
        self._requests: dict[str, _Request] = {}
        self._opening: set[asyncio.Task[None]] = set()

    def wanted(self) -> list[KeyWanted]:
        """Return what the next report asks for."""
        return [request.wanted for request in self._requests.values()]

    async def fetch(self, name: str) -> bytes:
        """Ask for a key and wait for it. Raises Rejected with the controller's code, `escrow.*` of what does not open,
        `unlock.busy` while somebody waits for the same key, or for as many as one report asks for."""
        if name in self._requests or len(self._requests) >= MAX_KEYS_WANTED:
            raise Rejected("unlock.busy", "others are being served; try again")
        from contract.escrow import ask  # once in a boot, if ever

        wanted, private = ask(name)
        request = _Request(wanted, private, asyncio.get_running_loop().create_future())
        self._requests[name] = request
        self._report_soon()
        try:
            return await request.answer
        finally:
            if self._requests.get(name) is request:  # nobody answered, and nobody waits any more
                del self._requests[name]

    def take(self, message: KeyReleased | KeyRefused) -> None:
        """Take an answer of the controller; one that nobody waits for is dropped."""
        request = self._requests.pop(message.name, None)
        if request is None:
            return
        if isinstance(message, KeyRefused):
            log.warning("key %s: refused: %s: %s", message.name, message.code, message.detail)
            _fail(request, Rejected(message.code, message.detail))
            return
        task = asyncio.get_running_loop().create_task(self._open(request, message))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, request: _Request, released: KeyReleased) -> None:
        """Open an answer: first the share, which only this request's key opens, then the TPM's half."""
        from contract.escrow import opened_share, unseal

        try:
            share = opened_share(released, request.wanted, request.private, node=self._node)
            sealed = released.sealed
            seed = await asyncio.to_thread(
                self._tpm.activate, sealed.credential_blob, sealed.encrypted_secret
            )
            key = unseal(sealed, seed=seed, share=share, node=self._node, name=released.name)
        except Rejected as refused:
            _fail(request, refused)
        except ValueError:
            _fail(request, Rejected("escrow.other-tpm", "sealed to another TPM or attestation key"))
        except TpmUnavailable as error:
            _fail(request, Rejected("tpm.unavailable", str(error)))
        else:
            if not request.answer.done():
                request.answer.set_result(key)

    # ---- the socket

    async def serve(self, folder: Path) -> asyncio.AbstractServer:
        """Listen in the state folder, for root and the agent's own user."""
        path = folder / SOCKET_NAME
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._caller, path, limit=MAX_NAME_CHARS + 2)
        finally:
            os.umask(before)

    async def _caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._reply(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            reply = None
        with contextlib.suppress(OSError):
            if reply is not None:
                writer.write(encode(reply))
                await writer.drain()
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply | None:
        """Return the answer for one caller; None when there is nobody to tell."""
        if _uid(writer.get_extra_info("socket")) not in (0, os.getuid()):
            return Reply(code="unlock.caller", detail="only root and the agent's own user may ask")
        line = await asyncio.wait_for(reader.readline(), _READ_S)
        try:
            name = checked_name(line.removesuffix(b"\n").decode("ascii", "replace"), "key")
        except Rejected as refused:
            return Reply(code=refused.code, detail=refused.detail)
        fetching = asyncio.create_task(self.fetch(name))
        gone = asyncio.create_task(reader.read(1))  # a caller says nothing more: this ends when it hangs up
        try:
            await asyncio.wait({fetching, gone}, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                return None if gone.done() else Reply(code="unlock.timeout", detail="no answer in time")
            return Reply(key=fetching.result())
        except Rejected as refused:
            return Reply(code=refused.code, detail=refused.detail)
        finally:
            for task in (fetching, gone):
                task.cancel()
            await asyncio.gather(fetching, gone, return_exceptions=True)


def unlock(folder: Path, name: str, *, timeout_s: float) -> bytes:
    """Have the running agent fetch a key. Raises Rejected with the reason, OSError when the agent is not there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(folder / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            raise Rejected("unlock.no-agent", "the agent is not running") from None
        connection.sendall(checked_name(name, "key").encode() + b"\n")
        content = bytearray()
        while part := connection.recv(65536):
            content += part
            if len(content) > _REPLY_BYTES:
                break
    reply = decode(bytes(content), Reply, max_bytes=_REPLY_BYTES, code="unlock.no-answer")
    if not reply.key:
        raise Rejected(reply.code or "unlock.no-answer", reply.detail)
    return reply.key


def write_key(key: bytes, output: Path | None) -> None:
    """Write a key to stdout, or to a new file that only its owner can read. Raises FileExistsError."""
    if output is None:
        sys.stdout.buffer.write(key)
        sys.stdout.buffer.flush()
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)


def _fail(request: _Request, error: Rejected) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _uid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
