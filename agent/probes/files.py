"""`[files]`: files that must have a certain content, owner and mode: model weights, guardrails, configuration.

Refuses to follow symbolic links in any part of a path. Small files are hashed in the pass; big ones by a thread of
their own, at a quarter of one processor, so that 20 GB of weights never delay the firewall. A digest holds as long as
`stat` shows the very same file (device, inode, size, mtime, ctime), and for `rehash_s` at most, because a clock
set back can hide a write. Content is never repaired: there is no good copy here to repair it from. Owner and mode
are, where the file says `repair = "mode"`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct, field

from agent import probes
from agent.host import FileFacts, Host, Identity, facts_of, group_id, user_id
from agent.probes import Difference, Notice, could_not_look
from contract.messages import Drift

SMALL_FILE_BYTES = 1024 * 1024
"""Up to this size a file is hashed in the pass itself (some 5 ms)."""
PASS_BYTES = 8 * 1024 * 1024
"""No more than this is hashed in one pass; the rest goes to the thread."""
SLICE_BYTES = 1024 * 1024
_REST_FACTOR = 3.0
"""The thread rests three times as long as a slice took."""
_CHANGING = "changes while it is read"

Reason = Annotated[str, Meta(min_length=3, max_length=512)]
Account = Annotated[str, Meta(pattern=r"\A[a-z0-9_][a-z0-9_.-]{0,31}\Z")]


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[files.file]]`: one file. It must be there."""

    path: Annotated[str, Meta(max_length=1024, pattern=r"\A(/[^/\x00-\x1f\x7f]+)+\Z")]
    """Absolute, without symbolic links."""
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None
    """Of its content, in lower case; absent: any content."""
    owner: Account = "root"
    """User, by name or number."""
    group: Account = "root"
    """Group, by name or number."""
    mode: Annotated[str, Meta(pattern=r"\A[0-7]{4}\Z")] = "0644"
    """Four octal digits."""
    repair: Literal["none", "mode"] = "none"
    """`mode`: in mode `enforce` put owner, group and mode right."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if {".", ".."} & set(self.path.split("/")):
            raise ValueError("expected a path without '.' and '..'")


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[files]`."""

    file: Annotated[list[File], Meta(max_length=4096)] = field(default_factory=list)
    """The files."""
    rehash_s: Annotated[float, Meta(ge=60, le=30 * 86400)] = 86400.0
    """A file is hashed anew after so many seconds even if nothing seems to have changed."""

    def __post_init__(self) -> None:
        paths = [file.path for file in self.file]
        if len(set(paths)) != len(paths):
            raise ValueError("expected each path once")


class Hashed(NamedTuple):
    """A digest, and the file it is of."""

    identity: Identity
    at: float
    sha256: str


class Probe(probes.Probe[Section]):
    """Compares files with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._hashed: dict[str, Hashed] = {}
        self._failed: dict[str, OSError] = {}
        self._background = BackgroundHashing(around.host)
        self._left_bytes = 0
        self._unproved: set[str] = set()
        self._told: set[str] = set()

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each file whose digest, owner or mode differs, or that cannot be read."""
        self._left_bytes = PASS_BYTES
        self._unproved = set()
        for path, result in self._background.take().items():
            self._failed.pop(path, None)
            if isinstance(result, OSError):
                self._failed[path] = result
            else:
                self._hashed[path] = Hashed(result[0], now, result[1])
        return self.drifts(self._differences(now), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Put owner, group and mode right where the file asks for it."""
        wrong = {drift.key for drift in drifts}
        for file in self.section.file:
            if (
                file.repair == "mode"
                and {f"{file.path} {what}" for what in ("owner", "group", "mode")} & wrong
            ):
                self._repair(file)

    def undo(self) -> None:
        """Put back owner, group and mode from before the first repair."""
        for path, value in self.remembered():
            uid, gid, mode = (int(part) for part in value.split(":"))
            try:
                self.around.host.set_owner_and_mode(path, uid=uid, gid=gid, mode=mode)
            except OSError:  # the file has gone
                pass
            self.forget(path)

    def governs(self, key: str) -> bool:
        """True if the section has the file and mends it."""
        return any(file.path == key and file.repair == "mode" for file in self.section.file)

    def notices(self, now: float) -> list[Notice]:
        """Return `files.hashing` once for each file whose first digest is not ready yet."""
        fresh = sorted(self._unproved - self._told)
        self._told |= self._unproved
        return [
            Notice("files.hashing", "info", f"{path}: its first digest is being computed", {"path": path})
            for path in fresh
        ]

    def hashing(self) -> bool:
        """True while the thread has something to do."""
        return self._background.busy()

    def _differences(self, now: float) -> Iterator[Difference]:
        for file in self.section.file:
            try:
                facts = self.around.host.file_facts(file.path)
                yield from _wrong_facts(file, facts)
                if file.sha256 is not None:
                    found = self._digest(file.path, facts, now)
                    if found not in (None, file.sha256):
                        yield Difference(f"{file.path} sha256", file.sha256, str(found))
            except FileNotFoundError:
                yield Difference(file.path, "there", "not there")
            except OSError as error:
                yield could_not_look(file.path, "a look at the file", error)

    def _digest(self, path: str, facts: FileFacts, now: float) -> str | None:
        """Return the digest, the last one known while a new one is being computed, or None before the first."""
        known = self._hashed.get(path)
        if known and known.identity == facts.identity and 0 <= now - known.at < self.section.rehash_s:
            return known.sha256
        if facts.size <= min(SMALL_FILE_BYTES, self._left_bytes):
            self._left_bytes -= facts.size
            identity, digest = hash_file(self.around.host, path)
            self._hashed[path] = Hashed(identity, now, digest)
            return digest
        self._background.ask(path)
        if path in self._failed:  # until it succeeds: a file that is written to all the time is never proved
            raise self._failed[path]
        if known is None:
            self._unproved.add(path)
        return known.sha256 if known else None

    def _repair(self, file: File) -> None:
        host = self.around.host
        try:
            facts = host.file_facts(file.path)
            self.remember_first(file.path, f"{facts.uid}:{facts.gid}:{facts.mode}")
            uid, gid = user_id(file.owner), group_id(file.group)
            host.set_owner_and_mode(file.path, uid=uid, gid=gid, mode=int(file.mode, 8))
        except OSError:
            return  # the next observation reports what is still wrong


class BackgroundHashing:
    """Hashes big files one after the other in a thread that ends when nothing is left to do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._waiting: dict[str, None] = {}
        self._done: dict[str, tuple[Identity, str] | OSError] = {}
        self._thread: threading.Thread | None = None

    def ask(self, path: str) -> None:
        """Put a file in the queue, unless it is there."""
        with self._lock:
            self._waiting.setdefault(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="file-hashing", daemon=True)
                self._thread.start()

    def take(self) -> dict[str, tuple[Identity, str] | OSError]:
        """Return what has been finished, or has failed, since the last call."""
        with self._lock:
            done, self._done = self._done, {}
        return done

    def busy(self) -> bool:
        """True while a file is waiting or being hashed."""
        with self._lock:
            return self._thread is not None

    def _run(self) -> None:
        while True:
            with self._lock:
                path = next(iter(self._waiting), None)
                if path is None:
                    self._thread = None
                    return
            result: tuple[Identity, str] | OSError
            try:
                result = hash_file(self._host, path, rest_factor=_REST_FACTOR)
            except OSError as error:
                result = error
            with self._lock:
                del self._waiting[path]
                self._done[path] = result


def hash_file(host: Host, path: str, *, rest_factor: float = 0.0) -> tuple[Identity, str]:
    """Return the SHA-256 of a file and the identity of what was hashed.

    Opened once, so a file that is swapped meanwhile is not mixed in. Raises OSError, also for a file that was
    written to while it was read: its digest would be that of no state it ever had.
    """
    descriptor = host.open_file(path)
    try:
        before = facts_of(descriptor).identity
        digest = hashlib.sha256()
        while True:
            started = time.monotonic()
            content = os.read(descriptor, SLICE_BYTES)
            if not content:
                break
            digest.update(content)
            if rest_factor:
                time.sleep((time.monotonic() - started) * rest_factor)
        if facts_of(descriptor).identity != before:
            raise OSError(_CHANGING)
    finally:
        os.close(descriptor)
    return before, digest.hexdigest()


def _wrong_facts(file: File, facts: FileFacts) -> Iterator[Difference]:
    if file.owner not in (facts.owner, str(facts.uid)):
        yield Difference(f"{file.path} owner", file.owner, facts.owner)
    if file.group not in (facts.group, str(facts.gid)):
        yield Difference(f"{file.path} group", file.group, facts.group)
    if int(file.mode, 8) != facts.mode:
        yield Difference(f"{file.path} mode", file.mode, f"{facts.mode:04o}")
