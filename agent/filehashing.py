"""SHA-256 of one file by its descriptor, and a thread for big ones that rests three times as long as it works.

What is hashed is the open file: one that is swapped meanwhile is not mixed in. Afterwards the path must still lead to it,
and nothing may have been written: a digest of no state it ever had, or of another file than the one in use, is refused
(ATTACKS d07).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import NamedTuple

from agent.host import Host, Identity, facts_of

SLICE_BYTES = 1024 * 1024
_REST_FACTOR = 3.0
_CHANGING = "changes while it is read"
_SWAPPED = "was swapped while it was read"
_RACY_NS = 50_000_000
"""A write within the same tick of the kernel's clock (at most 10 ms) leaves `stat` as it is."""


class Digest(NamedTuple):
    """A digest, and the file it is of."""

    identity: Identity
    sha256: str
    settled: bool
    """False where the file was written so shortly before that a later write might not show in `stat`."""


def hash_open(host: Host, path: str, descriptor: int, *, rest_factor: float = 0.0) -> Digest:
    """Return the digest of an open file that `path` leads to. Raises OSError, also if it does not any more."""
    begun_ns = time.time_ns()
    before = facts_of(descriptor).identity
    digest = hashlib.sha256()
    offset = 0
    while True:
        started = time.monotonic()
        content = os.pread(descriptor, SLICE_BYTES, offset)
        if not content:
            break
        offset += len(content)
        digest.update(content)
        if rest_factor:
            time.sleep((time.monotonic() - started) * rest_factor)
    if facts_of(descriptor).identity != before:
        raise OSError(_CHANGING)
    if host.file_facts(path).identity[:2] != before[:2]:
        raise OSError(_SWAPPED)
    return Digest(before, digest.hexdigest(), abs(begun_ns - max(before[3:])) > _RACY_NS)


def hash_file(host: Host, path: str, *, rest_factor: float = 0.0) -> Digest:
    """Open and hash a file. Raises OSError."""
    descriptor = host.open_file(path)
    try:
        return hash_open(host, path, descriptor, rest_factor=rest_factor)
    finally:
        os.close(descriptor)


class BackgroundHashing:
    """Hashes big files one after the other in a thread that ends when nothing is left to do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._waiting: dict[str, None] = {}
        self._done: dict[str, Digest | OSError] = {}
        self._thread: threading.Thread | None = None

    def ask(self, path: str) -> None:
        """Put a file in the queue, unless it is there."""
        with self._lock:
            self._waiting.setdefault(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="file-hashing", daemon=True)
                self._thread.start()

    def take(self) -> dict[str, Digest | OSError]:
        """Return what has been finished, or has failed, since the last call."""
        with self._lock:
            done, self._done = self._done, {}
        return done

    def busy(self) -> bool:
        """True while a file is waiting or being hashed."""
        with self._lock:
            return self._thread is not None

    def stop(self) -> None:
        """Forget what is asked for; the thread ends after its file."""
        with self._lock:
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                path = next(iter(self._waiting), None)
                if path is None:
                    self._thread = None
                    return
            result: Digest | OSError
            try:
                result = hash_file(self._host, path, rest_factor=_REST_FACTOR)
            except OSError as error:
                result = error
            with self._lock:
                if self._waiting.pop(path, 0) != 0:
                    self._done[path] = result
