"""Syslog: RFC 5424 messages over TLS, with structured data."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controller.outlets._syslog import SyslogSender, SyslogSettings
from controller.records import EventView

Settings = SyslogSettings

SD_ID: Final = "ringfence@32473"
"""32473 is the number that RFC 5612 sets aside for those who have none of their own."""
MAX_MESSAGE_BYTES: Final = 8192
"""Receivers should take at least 2,048 bytes (RFC 5425, 4.3.1); relays in use take 8 KiB."""
_SEVERITY: Final = {"info": 6, "warning": 4, "critical": 2}
BOM: Final = b"\xef\xbb\xbf"


def header(event: EventView, facility: int, host: str) -> str:
    """Return PRI to MSGID (RFC 5424, 6.2)."""
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    priority = facility * 8 + _SEVERITY[event.severity]
    return f"<{priority}>1 {at} {_printable(host, 255)} ringfence {event.id} {_printable(event.kind, 32)}"


def rfc5424(event: EventView, facility: int, host: str) -> bytes:
    """Return one message, never longer than MAX_MESSAGE_BYTES: the text gives way, the structured data does not."""
    known = {"node": event.node, "site": event.site, "severity": event.severity, "source": event.source}
    fields = "".join(f' {name}="{_escaped(value)}"' for name, value in known.items() if value is not None)
    start = f"{header(event, facility, host)} [{SD_ID}{fields}] ".encode() + BOM
    text = " ".join(event.summary.split())
    return start + text.encode()[: MAX_MESSAGE_BYTES - len(start)].decode(errors="ignore").encode()


class Outlet:
    """One receiver."""

    def __init__(self, settings: SyslogSettings, directory: Path) -> None:
        """See `SyslogSender`."""
        self._facility = settings.facility
        self._host = socket.gethostname()
        self._sender = SyslogSender(settings, directory)

    async def send(self, events: Sequence[EventView]) -> None:
        """See `controller.outlets.Outlet`."""
        await self._sender.send([rfc5424(event, self._facility, self._host) for event in events])

    async def close(self) -> None:
        """Give the connection up."""
        await self._sender.close()


def _escaped(value: str) -> str:
    """Return a PARAM-VALUE (RFC 5424, 6.3.3)."""
    for sign in ("\\", '"', "]"):
        value = value.replace(sign, "\\" + sign)
    return "".join(c if c.isprintable() else " " for c in value)


def _printable(text: str, most: int) -> str:
    """Return a header field: printable ASCII without spaces, never empty."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text)[:most] or "-"
