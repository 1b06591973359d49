"""MessagePack and JSON at the boundary: strict types, size caps, no trailing bytes, only Rejected."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from contract.errors import Rejected

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def encode(message: object) -> bytes:
    """Return the MessagePack bytes of one of our own messages."""
    return _encoder.encode(message)


def decode(untrusted: bytes, kind: type[T], *, max_bytes: int, code: str = "message.malformed") -> T:
    """Parse MessagePack strictly as `kind` (a Struct or a tagged union of them).

    Raises Rejected: `message.too-large`, or `code` for anything that is not exactly one `kind`.
    """
    if len(untrusted) > max_bytes:
        raise Rejected("message.too-large", f"{len(untrusted)} bytes, at most {max_bytes}")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind, strict=True)
    try:
        return decoder.decode(untrusted)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise Rejected(code, str(error)) from None


def decode_json(untrusted: bytes, kind: type[T], *, max_bytes: int, code: str = "body.malformed") -> T:
    """Parse JSON strictly as `kind`. Raises Rejected as `decode` does."""
    if len(untrusted) > max_bytes:
        raise Rejected("body.too-large", f"{len(untrusted)} bytes, at most {max_bytes}")
    try:
        return msgspec.json.decode(untrusted, type=kind, strict=True)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise Rejected(code, str(error)) from None
