"""Common Event Format (CEF:0) over syslog and TLS."""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controller.outlets._syslog import SyslogSender, SyslogSettings
from controller.outlets.syslog import BOM, MAX_MESSAGE_BYTES, header
from controller.records import EventView

Settings = SyslogSettings

_SEVERITY: Final = {"info": 2, "warning": 6, "critical": 10}
_VERSION: Final = importlib.metadata.version("ringfence")


def cef(event: EventView) -> str:
    """Return one event. Values are escaped as the format says: `|` and backslash in the head, `=` and backslash behind it."""
    head = (
        "CEF:0", "Ringfence", "Ringfence", _VERSION, event.kind, event.summary[:512], str(_SEVERITY[event.severity]),
    )  # fmt: skip
    known = {
        "rt": str(int(event.at * 1000)),
        "externalId": str(event.id),
        "dvchost": event.node,
        "cs1Label": "site" if event.site else None,
        "cs1": event.site,
        "cs2Label": "source",
        "cs2": event.source,
        "msg": event.summary[:1023],
    }
    extension = " ".join(f"{name}={_value(text)}" for name, text in known.items() if text is not None)
    return "|".join([head[0], *(_head(part) for part in head[1:]), extension])


class Outlet:
    """One receiver."""

    def __init__(self, settings: SyslogSettings, directory: Path) -> None:
        """See `SyslogSender`."""
        self._facility = settings.facility
        self._host = socket.gethostname()
        self._sender = SyslogSender(settings, directory)

    async def send(self, events: Sequence[EventView]) -> None:
        """See `controller.outlets.Outlet`."""
        messages = []
        for event in events:
            start = f"{header(event, self._facility, self._host)} - ".encode() + BOM
            body = cef(event).encode()[: MAX_MESSAGE_BYTES - len(start)].decode(errors="ignore")
            messages.append(start + body.encode())
        await self._sender.send(messages)

    async def close(self) -> None:
        """Give the connection up."""
        await self._sender.close()


def _head(text: str) -> str:
    return _flat(text).replace("\\", "\\\\").replace("|", "\\|")


def _value(text: str) -> str:
    return _flat(text).replace("\\", "\\\\").replace("=", "\\=")


def _flat(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
