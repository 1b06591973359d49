"""The event spool: what happened on the node, in order, on disk until the controller has it (ATTACKS a06).

A folder of segments `<first seq>.log`; a record is length, CRC-32 and one Event in MessagePack. `acked`
holds the highest sequence number that the controller has, and how many events had to go unsent.

Refuses: to grow over its limit (the oldest segment goes, and is counted), to number two events alike. A record
torn by a crash is cut off. When the disk takes nothing, events wait in memory, bounded, and are written later.
Relies on: one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.responses import Told
from agent.store import replace_file, sync_folder
from contract.messages import Event, never_more

_HEAD = struct.Struct("<II")
_SEGMENTS = 8
_WAITING = 512
_MAX_EVENT_BYTES = 64 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Event)


class Spool:
    """Append, look at the oldest, acknowledge."""

    def __init__(self, folder: Path, node: str, *, max_bytes: int, now: float) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._claim(node)
        self._acked, self.dropped = self._read_acked()
        self._segments = sorted(int(p.stem) for p in folder.glob("*.log") if p.stem.isdigit())
        self._sizes = {first: self._mend(first) for first in self._segments}
        last = self._acked
        for first in self._segments:
            last = max(last, first - 1)
        for event in self._read(self._segments[-1:]):
            last = max(last, event.seq)
        # A spool that lost its folder must not number anew what the controller may have seen: begin at the time.
        self._next = last + 1 if last else max(1, int(now * 1000))
        self._waiting: list[Event] = []

    @property
    def acked(self) -> int:
        """The highest sequence number that the controller has."""
        return self._acked

    @property
    def on_disk(self) -> bool:
        """Whether everything told so far is on disk."""
        return not self._waiting

    def append(self, told: Sequence[Told], now: float) -> list[Event]:
        """Number, stamp and store; on disk when this returns unless the disk refuses. Returns the events."""
        events = [
            Event(
                seq=self._next + place,
                at=now,
                kind=never_more(each.kind, 256),
                severity=each.severity,
                summary=never_more(each.summary, 2048),
                detail={never_more(k, 256): never_more(v, 2048) for k, v in each.detail.items()},
            )
            for place, each in enumerate(told)
        ]
        self._next += len(events)
        self._waiting += events
        self.flush()
        return events

    def flush(self) -> None:
        """Try to put waiting events on disk."""
        if not self._waiting:
            return
        try:
            self._write(self._waiting)
        except OSError:
            over = len(self._waiting) - _WAITING
            if over > 0:
                del self._waiting[:over]
                self.dropped += over
        else:
            self._waiting = []

    def peek(self, limit: int, max_bytes: int) -> list[Event]:
        """Return the oldest events that are not acknowledged, in order, at most `limit` and about `max_bytes`."""
        out: list[Event] = []
        size = 0
        for event in self._unacked():
            size += len(_encode(event))
            if len(out) == limit or (out and size > max_bytes):
                break
            out.append(event)
        return out

    def ack(self, seq: int) -> None:
        """Forget everything up to `seq`. A number that was never given, or an older one, changes nothing."""
        if seq <= self._acked or seq >= self._next:
            return
        self._acked = seq
        self._waiting = [event for event in self._waiting if event.seq > seq]
        while len(self._segments) > 1 and self._segments[1] <= seq + 1:
            self._remove_oldest()
        self._write_acked()

    def _claim(self, node: str) -> None:
        """Take the folder for this node; one that another node wrote is set aside, not sent as ours."""
        owner = self._folder / "node"
        if owner.exists() and owner.read_text().strip() not in (node, ""):
            self._folder.replace(self._folder.with_name(f"{self._folder.name}.foreign-{time.time_ns()}"))
        if not owner.exists():
            with contextlib.suppress(OSError):  # a disk that takes nothing: claimed at a later start
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(owner, node.encode() + b"\n")

    def _unacked(self) -> Iterator[Event]:
        for event in self._read(self._segments):
            if event.seq > self._acked:
                yield event
        yield from self._waiting

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020d}.log"

    def _write(self, events: Sequence[Event]) -> None:
        data = bytearray()
        for event in events:
            payload = _encode(event)
            data += _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        new = not self._segments or self._sizes[self._segments[-1]] + len(data) > self._max_bytes // _SEGMENTS
        first = events[0].seq if new else self._segments[-1]
        before = 0 if new else self._sizes[first]
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path(first), flags, 0o600)
        try:
            try:
                view = memoryview(data)
                at = before
                while view:
                    written = os.pwrite(descriptor, view, at)
                    at += written
                    view = view[written:]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if new:
            self._segments.append(first)
            sync_folder(self._folder)
        self._sizes[first] = before + len(data)
        self._bound()

    def _bound(self) -> None:
        while len(self._segments) > 1 and sum(self._sizes.values()) > self._max_bytes:
            lost = sum(1 for event in self._read(self._segments[:1]) if event.seq > self._acked)
            self.dropped += lost
            self._remove_oldest()
            self._write_acked()

    def _remove_oldest(self) -> None:
        first = self._segments.pop(0)
        del self._sizes[first]
        self._path(first).unlink(missing_ok=True)

    def _records(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Yield (end offset, payload) of every whole record."""
        try:
            data = self._path(first).read_bytes()
        except OSError:
            return
        at = 0
        while at + _HEAD.size <= len(data):
            size, crc = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + size
            payload = data[at + _HEAD.size : end]
            if size > _MAX_EVENT_BYTES or end > len(data) or zlib.crc32(payload) != crc:
                return
            yield end, payload
            at = end

    def _mend(self, first: int) -> int:
        """Cut off what a crash tore; return the size that is left."""
        end = 0
        for end, _ in self._records(first):  # noqa: B007  (the last one is wanted)
            pass
        with contextlib.suppress(OSError):  # a disk that takes nothing: the next record goes over it
            descriptor = os.open(self._path(first), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != end:
                    os.ftruncate(descriptor, end)
            finally:
                os.close(descriptor)
        return end

    def _read(self, segments: Sequence[int]) -> Iterator[Event]:
        for first in segments:
            for _, payload in self._records(first):
                try:
                    yield _decoder.decode(payload)
                except (msgspec.DecodeError, ValueError):
                    continue

    def _read_acked(self) -> tuple[int, int]:
        try:
            acked, dropped = (int(word) for word in (self._folder / "acked").read_text().split())
        except (OSError, ValueError):
            return 0, 0
        return acked, dropped

    def _write_acked(self) -> None:
        try:
            replace_file(self._folder / "acked", f"{self._acked} {self.dropped}\n".encode())
        except OSError:
            pass  # the controller will be sent some events again, and knows their numbers
