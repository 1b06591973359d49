"""Webhooks: each batch is one POST of JSON, signed by HMAC-SHA-256 with a time, so that a receiver knows it is us and now.

    X-Ringfence-Timestamp: seconds since 1970
    X-Ringfence-Signature: sha256=HEX, over timestamp, a full stop and the body
    X-Ringfence-Batch: ids of the first and the last event: what came twice can be told

`sign` is what a receiver does too, comparing in constant time and refusing old timestamps.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from controller.outlets._http import HttpSender, HttpSettings, read_secret
from controller.records import EventView


class Settings(HttpSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A receiver that shares a secret with us."""

    secret_file: Annotated[str, Meta(min_length=1, max_length=1024)]


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature header's value."""
    digest = hmac.digest(secret.encode(), timestamp.encode() + b"." + body, "sha256")
    return f"sha256={digest.hex()}"


class Outlet:
    """One receiver."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """Reads the secret. Raises OSError, Rejected `outlet.secret`, `outlet.ca`."""
        self._sender = HttpSender(settings, directory)
        self._secret = read_secret(directory / settings.secret_file)

    async def send(self, events: Sequence[EventView]) -> None:
        """See `controller.outlets.Outlet`."""
        body = msgspec.json.encode({"events": events})
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Ringfence-Timestamp": timestamp,
            "X-Ringfence-Signature": sign(self._secret, timestamp, body),
            "X-Ringfence-Batch": f"{events[0].id}-{events[-1].id}",
        }
        await self._sender.post(body, headers)

    async def close(self) -> None:
        """Close connections."""
        await self._sender.close()
