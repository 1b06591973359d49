"""OCSF over HTTPS: each batch is one POST of a JSON array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controller.outlets._http import HttpSender, HttpSettings
from controller.outlets._ocsf import ocsf_line
from controller.records import EventView

Settings = HttpSettings


class Outlet:
    """One receiver."""

    def __init__(self, settings: HttpSettings, directory: Path) -> None:
        """See `HttpSender`."""
        self._sender = HttpSender(settings, directory)

    async def send(self, events: Sequence[EventView]) -> None:
        """See `controller.outlets.Outlet`."""
        body = b"[" + b",".join(map(ocsf_line, events)) + b"]"
        await self._sender.post(body, {"Content-Type": "application/json"})

    async def close(self) -> None:
        """Close connections."""
        await self._sender.close()
