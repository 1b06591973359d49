"""Syslog over TLS (RFC 5424 messages, RFC 5425 framing): what its kinds share.

The protocol has no acknowledgement. What the receiver's kernel had not taken when a connection broke is lost to us unnoticed,
so a batch counts as sent only when its bytes were acknowledged by TCP; a receiver that dies with them in its buffers loses them.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from controller.outlets import Settings, Unavailable
from controller.outlets._http import trust

_LOOK_S = 0.02


class SyslogSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A receiver of syslog over TLS."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)] = 6514
    ca: str = ""
    """PEM file of the authority to trust; empty: the system's."""
    facility: Annotated[int, Meta(ge=0, le=23)] = 13
    """13 is "log audit" (RFC 5424, table 1)."""


class SyslogSender:
    """One connection, opened when there is something to say."""

    def __init__(self, settings: SyslogSettings, directory: Path) -> None:
        """Reads the authority. Raises OSError, Rejected `outlet.ca`."""
        self._settings = settings
        self._tls = trust(directory / settings.ca if settings.ca else None)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, messages: list[bytes]) -> None:
        """Send framed messages. Raises Unavailable; the connection is given up then."""
        framed = b"".join(b"%d %s" % (len(message), message) for message in messages)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                reader, writer = await self._open()
                if reader.at_eof():
                    raise ConnectionError("the receiver has closed the connection")
                writer.write(framed)
                await writer.drain()
                await _acknowledged(writer)
                if reader.at_eof():
                    raise ConnectionError("the receiver has closed the connection")
        except (OSError, ssl.SSLError, TimeoutError) as error:
            await self.close()
            raise Unavailable(f"{type(error).__name__}: {error}"[:300]) from None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            await self.close()
        if self._streams is None:
            where = self._settings
            self._streams = await asyncio.open_connection(
                where.host, where.port, ssl=self._tls, server_hostname=where.host
            )
        return self._streams

    async def close(self) -> None:
        """Give the connection up."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


async def _acknowledged(writer: asyncio.StreamWriter) -> None:
    """Wait until the other side's TCP has taken every byte (SIOCOUTQ is 0)."""
    connection: socket.socket = writer.get_extra_info("socket")
    while not writer.is_closing():
        if writer.transport.get_write_buffer_size() == 0:
            unsent = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
            if struct.unpack("i", unsent)[0] == 0:
                return
        await asyncio.sleep(_LOOK_S)
    raise ConnectionError("the receiver has closed the connection")
