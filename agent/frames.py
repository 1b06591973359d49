"""Messages between processes of one agent: 4 bytes of length (big endian) and one MessagePack message.

Refuses: frames that are too long, and what is not exactly one of the messages asked for.
"""

from __future__ import annotations

from typing import IO, TypeVar

from contract import wire
from contract.errors import Rejected
from contract.messages import Message
from contract.toml import MAX_TOML_BYTES

M = TypeVar("M", bound=Message)

_MAX_FRAME_BYTES = 2 * MAX_TOML_BYTES
_LENGTH_BYTES = 4


def send(out: IO[bytes], message: Message) -> None:
    """Write one frame. Raises OSError where the other side has gone."""
    said = wire.encode(message)
    out.write(len(said).to_bytes(_LENGTH_BYTES, "big") + said)
    out.flush()


def receive(into: IO[bytes], kind: type[M]) -> M:
    """Read one frame. Raises OSError where there is none, or another."""
    length = int.from_bytes(_exactly(into, _LENGTH_BYTES), "big")
    if length > _MAX_FRAME_BYTES:
        raise OSError(f"a frame of {length} bytes")
    try:
        return wire.decode(_exactly(into, length), kind, max_bytes=_MAX_FRAME_BYTES)
    except Rejected as error:
        raise OSError(str(error)) from None


def _exactly(into: IO[bytes], count: int) -> bytes:
    content = into.read(count)
    if len(content) != count:
        raise OSError("the other process has ended early")
    return content
