"""OCSF into a file, a line for each event, for a log shipper of the owner's. On the disk before it counts as sent.

The file is opened anew for each batch, so that it may be moved away at any time. After a crash the last batch may be there twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from controller import outlets
from controller.outlets import Unavailable
from controller.outlets._ocsf import ocsf_line
from controller.records import EventView


class Settings(outlets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to."""

    path: Annotated[str, Meta(min_length=1, max_length=1024)]


class Outlet:
    """One file."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """Touches nothing yet."""
        self._path = directory / settings.path

    async def send(self, events: Sequence[EventView]) -> None:
        """See `controller.outlets.Outlet`."""
        content = b"".join(ocsf_line(event) + b"\n" for event in events)
        try:
            await asyncio.to_thread(self._append, content)
        except OSError as error:
            raise Unavailable(f"{self._path}: {error.strerror}") from None

    def _append(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o640)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, content)
                if written != len(content):
                    raise OSError(28, "no space left")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)  # no half line for whoever reads it
                raise
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """Nothing is open."""
