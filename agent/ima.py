"""The kernel's IMA log, read from where the controller wants it and no further back.

The file is kept open: securityfs makes it anew line by line for every reader, and a reader that goes on where it
stopped costs the kernel the new lines only. Reading 100,000 lines takes long, so this is done beside the thread that
owns the machine, never on it; one reader at a time.

Refuses: to understand a line (agent.packages looks at their names, the controller judges), to hide that there is no log.
Relies on: agent.host for the file.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from agent.host import Host
from contract.messages import MAX_IMA_CHUNK_BYTES, PackageChange


class Measured(NamedTuple):
    """What a report says of the log in its own words; the log itself comes after the quote."""

    offset: int = 0
    available_bytes: int | None = None
    """From `offset` on; None where there is no log, or nobody wants it."""
    packages: tuple[PackageChange, ...] = ()


UNMEASURED = Measured()


class ImaLog:
    """One log file. Any thread."""

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self._path = path
        self._lock = threading.Lock()
        self._file: int | None = None
        self._identity = (-1, -1)

    def look(self, offset: int) -> Measured:
        """Return what there is from `offset` on, before anything is quoted."""
        lines = self.read(offset, max_bytes=MAX_IMA_CHUNK_BYTES)
        return Measured(offset, None if lines is None else len(lines))

    def read(self, offset: int, *, max_bytes: int) -> bytes | None:
        """Return the bytes from `offset` to the end, at most `max_bytes`; None where the machine has no log.

        An offset past the end gives no bytes: what it means is the controller's to judge.
        """
        with self._lock:
            try:
                return self._read(self._opened(), offset, max_bytes)
            except OSError:
                self._close()
                return None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._close()

    def _opened(self) -> int:
        identity = self._host.log_identity(self._path)
        if self._file is None or identity != self._identity:
            self._close()
            self._file = self._host.open_log(self._path)
            self._identity = identity
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @staticmethod
    def _read(file: int, offset: int, max_bytes: int) -> bytes:
        # One read of a securityfs file returns no more than a page or so, wherever the end is.
        parts: list[bytes] = []
        while max_bytes > 0 and (part := os.pread(file, max_bytes, offset)):
            parts.append(part)
            offset += len(part)
            max_bytes -= len(part)
        return b"".join(parts)
