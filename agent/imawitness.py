"""The kernel's IMA log as a witness: what it measured last under a path, beside what reading the file gives.

Reads only what is new, some at a time. A log is evidence for people here: the controller judges it against a quote.
Refuses: to understand a line that does not parse; it stops there until the log begins anew.
"""

from __future__ import annotations

import os
from contextlib import suppress

from agent.host import Host
from contract.errors import Rejected
from contract.imalog import VIOLATION, read_lines

PASS_BYTES = 256 * 1024
"""Some 20 ms of parsing; the next look goes on."""
_READ_BYTES = 128 * 1024
"""More than the longest line."""
_MAX_KEPT = 16384


class ImaWitness:
    """Follows one log. One thread at a time."""

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self._path = path
        self._offset = 0
        self._identity: tuple[int, int] | None = None
        self._file: int | None = None
        """Kept open: for a new reader the kernel makes the whole log anew."""
        self._last: dict[str, bytes] = {}

    def look(self, paths: frozenset[str]) -> dict[str, str]:
        """Return path -> SHA-256 (hex) that was measured last, for those of `paths` that were. Empty without a log."""
        try:
            file = self._opened()
            left = PASS_BYTES
            while left > 0:
                raw = b""
                while len(raw) < _READ_BYTES and (
                    part := os.pread(file, _READ_BYTES - len(raw), self._offset + len(raw))
                ):
                    raw += part
                taken = self._take(raw, paths)
                if not taken:
                    break
                self._offset += taken
                left -= taken
                self._host.breathe()
        except OSError:
            self.close()
            return {}
        return {path: digest.hex() for path, digest in self._last.items() if path in paths}

    def close(self) -> None:
        """Let go of the log. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _opened(self) -> int:
        identity = self._host.log_identity(self._path)
        if self._file is None or identity != self._identity:
            self.close()
            self._file = self._host.open_log(self._path)
            self._identity, self._offset, self._last = identity, 0, {}
        return self._file

    def _take(self, untrusted_lines: bytes, paths: frozenset[str]) -> int:
        end = 0
        with suppress(Rejected):
            for record, fields in read_lines(untrusted_lines):
                end = record.end
                if isinstance(fields, Rejected) or record.template_sha1 == VIOLATION:
                    continue
                if fields.algorithm != b"sha256" or fields.kind == b"verity":
                    continue
                path = fields.name.decode("utf-8", "replace")
                if path in paths and (path in self._last or len(self._last) < _MAX_KEPT):
                    self._last[path] = fields.digest
        return end
