"""SHA-256 of big files in slices, beside the loop, in a thread that ends when nothing is left to do.

A file is opened once, and what is hashed is that open file: one that is swapped meanwhile is not mixed in, and one
that is written to is refused, since its digest would be that of no state it ever had (ATTACKS d07). A file whose
`stat` changed goes first, also before the rest of one that is half read.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import NamedTuple

from agent.host import Host, Identity
from agent.models.quiet import PAGE_BYTES, SLICE_BYTES, idle_thread, no_readahead, read_slice

_RACY_NS = 50_000_000
"""A write within the same tick of the kernel's clock (at most 10 ms) leaves `stat` as it is."""
_CHANGING = "changes while it is read"


class Hashed(NamedTuple):
    """A digest, and the file it is of."""

    identity: Identity
    sha256: str
    settled: bool
    """False where the file was written so shortly before that a later write might not show in `stat`."""


class Progress(NamedTuple):
    """How far a round is; it begins with the first file that is asked for and ends when none is left."""

    running: bool
    files_done: int
    files: int
    bytes_done: int
    bytes: int
    seconds: float
    path: str
    """What is being read."""


class Reading:
    """One open file on its way to a digest. Raises OSError everywhere."""

    def __init__(self, host: Host, path: str) -> None:
        self._descriptor = host.open_file(path)
        try:
            self._begun_ns = time.time_ns()
            self._identity = identity_of(self._descriptor)
            no_readahead(self._descriptor)
        except OSError:
            self.close()
            raise
        self._digest = hashlib.sha256()
        # One page more than the file has: a read that does not fill it has met the end.
        pages = self._identity[2] // PAGE_BYTES + 1
        self._room = bytearray(min(SLICE_BYTES, pages * PAGE_BYTES))
        self.offset = 0

    def step(self) -> Hashed | None:
        """Read one slice; return the digest when the file is at its end."""
        count = read_slice(self._descriptor, self.offset, self._room)
        self._digest.update(memoryview(self._room)[:count])
        self.offset += count
        if identity_of(self._descriptor) != self._identity:
            raise OSError(_CHANGING)
        if count == len(self._room):
            return None
        if self.offset != self._identity[2]:
            raise OSError(f"read {self.offset} bytes of {self._identity[2]}")
        changed_ns = max(self._identity[3:])
        settled = abs(self._begun_ns - changed_ns) > _RACY_NS
        return Hashed(self._identity, self._digest.hexdigest(), settled)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def identity_of(descriptor: int) -> Identity:
    """Return what changes whenever the content can have changed by a write. Raises OSError."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def hash_now(host: Host, path: str) -> Hashed:
    """Return the digest of a file, read at once. Raises OSError."""
    reading = Reading(host, path)
    try:
        while True:
            done = reading.step()
            if done is not None:
                return done
    finally:
        reading.close()


class Verifier:
    """The queue and its thread. `read_bytes_s` bounds the pace; it never takes more than half of one processor."""

    def __init__(self, host: Host, *, read_bytes_s: float) -> None:
        self._host = host
        self._read_bytes_s = read_bytes_s
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._done: dict[str, Hashed | OSError] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._path = ""
        self._files_done = self._files = self._bytes_done = self._bytes = 0
        self._begun = self._ended = 0.0

    def ask(self, path: str, size: int, *, first: bool) -> None:
        """Put a file in the queue, or to its head; one that is there already stays there once."""
        with self._lock:
            new = path not in self._waiting and path not in self._first
            if first:
                self._waiting.pop(path, None)
                self._first.setdefault(path, size)
            elif new:
                self._waiting[path] = size
            if self._thread is None:
                self._files_done = self._files = self._bytes_done = self._bytes = 0
                self._begun = time.monotonic()
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="model-hashing", daemon=True
                )
                self._thread.start()
            if new:
                self._files += 1
                self._bytes += size

    def take(self) -> dict[str, Hashed | OSError]:
        """Return what has been finished, or has failed, since the last call."""
        with self._lock:
            done, self._done = self._done, {}
        return done

    def progress(self) -> Progress:
        """Return how far the round is, or how the last one went."""
        with self._lock:
            running = self._thread is not None
            until = time.monotonic() if running else self._ended
            return Progress(
                running,
                self._files_done,
                self._files,
                self._bytes_done,
                self._bytes,
                until - self._begun,
                self._path,
            )

    def stop(self) -> None:
        """Forget what is asked for; the thread ends after its slice."""
        with self._lock:
            self._stop.set()
            self._waiting.clear()
            self._first.clear()
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        idle_thread()
        readings: dict[str, Reading] = {}
        try:
            while not stop.is_set():
                with self._lock:
                    path = next(iter(self._first or self._waiting), None)
                    if path is None:
                        if not stop.is_set():
                            self._thread, self._ended = None, time.monotonic()
                        return
                    self._path = path
                begun = time.monotonic()
                count = self._step(readings, path, stop)
                took = time.monotonic() - begun
                stop.wait(max(count / self._read_bytes_s - took, took))
        finally:
            for reading in readings.values():
                reading.close()

    def _step(self, readings: dict[str, Reading], path: str, stop: threading.Event) -> int:
        """Read one slice of one file; return how many bytes came."""
        outcome: Hashed | OSError | None
        before = after = 0
        try:
            if path not in readings:
                readings[path] = Reading(self._host, path)
            before = readings[path].offset
            outcome = readings[path].step()
            after = readings[path].offset
        except OSError as error:
            outcome = error
        if outcome is not None and (reading := readings.pop(path, None)) is not None:
            reading.close()
        with self._lock:
            if stop.is_set():
                return 0
            self._bytes_done += max(0, after - before)
            if outcome is not None:
                self._waiting.pop(path, None)
                self._first.pop(path, None)
                self._files_done += 1
                self._done[path] = outcome
        return max(0, after - before)
