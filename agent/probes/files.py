"""`[files]`: files that must have a certain content, owner, mode, ACL, capabilities and attributes.

Refuses to follow symbolic links in any part of a path. A file is opened once in each look and everything is asked of that
descriptor, so that one that is swapped in between is not judged in parts (ATTACKS d06, d07). Small files are hashed in
the pass; big ones by a thread of their own, at a quarter of one processor. A digest holds as long as `stat` shows the very
same file (device, inode, size, mtime, ctime), and for `rehash_s` at most, because a clock set back can hide a write.
inotify wakes the look; it decides nothing. Content is never repaired: there is no good copy here to repair it from. The
rest is, where the file says `repair = "mode"`; what the kernel will not have changed (immutable, read-only) stays a drift
that says so.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from agent import probes
from agent.fileaccess import (
    access_of,
    acl_text,
    attributes_of,
    capability_text,
    parse_capabilities,
    wanted_acl,
)
from agent.filehashing import RACY_NS, BackgroundHashing, Digest, hash_open
from agent.filesection import File, Section
from agent.glance import FILES_A_BREATH, Glance
from agent.host import FileFacts, Identity, Wanted, Watched, facts_of
from agent.imawitness import ImaWitness
from agent.probes import Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.userdb import group_id, user_id
from contract.messages import Drift

__all__ = ["File", "Probe", "Section"]

SMALL_FILE_BYTES = 1024 * 1024
"""Up to this size a file is hashed in the pass itself (some 5 ms)."""
PASS_BYTES = 8 * 1024 * 1024
"""No more than this is hashed in one pass; the rest goes to the thread."""
MAX_TOLD = 1024
"""Differences told one by one."""
_ACCESS = ("owner", "group", "mode", "acl", "capabilities", "attributes")
_MORE = "more files"


class Hashed(NamedTuple):
    """A digest and when it was taken."""

    digest: Digest
    at: float


class Before(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file granted before its first repair."""

    uid: int
    gid: int
    mode: int
    acl: list[tuple[int, int, int]] = []
    capabilities: str = ""
    attributes: list[str] | None = None


class Probe(probes.Probe[Section]):
    """Compares files with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._hashed: dict[str, Hashed] = {}
        self._failed: dict[str, OSError] = {}
        self._background = BackgroundHashing(around.host)
        weakref.finalize(self, self._background.stop)
        self._watched = Watched(paths=frozenset(file.path for file in section.file))
        self._judged = {file.path: file.sha256 for file in section.file if file.sha256 is not None}
        self._witness = ImaWitness(around.host, around.ima_log)
        weakref.finalize(self, self._witness.close)
        self._ids: dict[tuple[str, str], int | None] = {}
        self._left_bytes = 0
        self._unproved: set[str] = set()
        self._as_wanted: dict[str, dict[str, tuple[Identity, float]]] = {}
        """Folder -> name -> the file that was found as wanted in every way, its digest too, and the age of that."""
        self._due = {file.path for file in section.file}
        """Paths of all others: they are looked at in full."""
        self._known_ids: dict[tuple[str, str], int | None] = {}
        self._told: set[str] = set()
        self._told_measured: dict[str, str] = {}

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each file that is not as wanted in some way, or that cannot be read."""
        self.around.host.watch_files(self.name, self._watched)
        self._left_bytes = PASS_BYTES
        self._unproved = set()
        self._ids = {}
        for path, result in self._background.take().items():
            self._failed.pop(path, None)
            if isinstance(result, OSError):
                self._failed[path] = result
            else:
                self._hashed[path] = Hashed(result, now)
            self._doubt(path)
        return self.drifts(bounded(_MORE, self._differences(now), MAX_TOLD), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Put right what a file grants, where the file asks for it."""
        wrong = {drift.key for drift in drifts}
        for file in self.section.file:
            if file.repair != "mode":
                continue
            if _MORE in wrong or {f"{file.path} {what}" for what in _ACCESS} & wrong:
                self._repair(file)

    def undo(self) -> None:
        """Put back what each file granted before the first repair."""
        for path, value in self.remembered():
            try:
                before = msgspec.json.decode(value, type=Before)
                wanted = Wanted(
                    before.uid,
                    before.gid,
                    before.mode,
                    frozenset(before.acl),
                    before.capabilities,
                    before.attributes,
                )
                self.around.host.set_access(path, wanted)
            except OSError:  # the file has gone
                pass
            self.forget(path)

    def governs(self, key: str) -> bool:
        """True if the section has the file and mends it."""
        return any(file.path == key and file.repair == "mode" for file in self.section.file)

    def notices(self, now: float) -> list[Notice]:
        """Return what is to be known besides: digests that are not ready yet, and what the kernel measured otherwise."""
        fresh = sorted(self._unproved - self._told)
        self._told |= self._unproved
        out = [
            Notice("files.hashing", "info", f"{path}: its first digest is being computed", {"path": path})
            for path in fresh
        ]
        measured = self._witness.look(frozenset(self._judged)) if self._judged else {}
        for path, sha256 in sorted(measured.items()):
            if sha256 == self._judged[path]:
                self._told_measured.pop(path, None)
            elif self._told_measured.get(path) != sha256:
                self._told_measured[path] = sha256
                known = self._hashed.get(path)
                read = known.digest.sha256 if known else "not read yet"
                detail = {"path": path, "measured": sha256, "read": read}
                summary = (
                    f"{path}: the kernel measured another content in use, {sha256}; reading it gives {read}"
                )
                out.append(Notice("files.measured", "warning", summary, detail))
        return out

    def hashing(self) -> bool:
        """True while the thread has something to do."""
        return self._background.busy()

    def _differences(self, now: float) -> Iterator[Difference]:
        self._forget_if_names_moved()
        with self.around.host.glance() as glance:
            for folder, seen in list(self._as_wanted.items()):
                for name in self._no_longer(glance, folder, list(seen.items()), now):
                    self._doubt(f"{folder}/{name}")
        if self._due:
            for file in self.section.file:
                if file.path in self._due:
                    self.around.host.breathe()
                    yield from self._look_at(file, now)

    def _no_longer(
        self, glance: Glance, folder: str, seen: list[tuple[str, tuple[Identity, float]]], now: float
    ) -> Iterator[str]:
        """Yield the names of files that may not be as wanted any more, or whose digest is too old."""
        for begin in range(0, len(seen), FILES_A_BREATH):
            self.around.host.breathe()
            some = seen[begin : begin + FILES_A_BREATH]
            yield from glance.changed(folder, some)
            yield from (name for name, (_, at) in some if not 0 <= now - at < self.section.rehash_s)

    def _doubt(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if self._as_wanted.get(folder, {}).pop(name, None) is not None:
            self._due.add(path)

    def _forget_if_names_moved(self) -> None:
        """Look at every file in full again where an owner's name has come to mean somebody else."""
        for kind, name in list(self._known_ids):
            self._id(kind, name)
        if self._ids != self._known_ids:
            self._as_wanted = {}
            self._due = {file.path for file in self.section.file}

    def _look_at(self, file: File, now: float) -> Iterator[Difference]:
        host = self.around.host
        try:
            descriptor = host.open_file(file.path)
            try:
                found = list(self._of_open(file, descriptor, now))
                yield from found
                if not found:
                    self._note(file, facts_of(descriptor).identity, now)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            yield Difference(file.path, "there", "not there")
        except OSError as error:
            yield could_not_look(file.path, "a look at the file", error)

    def _note(self, file: File, identity: Identity, now: float) -> None:
        """Remember a file that is as wanted, unless a later change could leave its `stat` as it is."""
        hashed, at = self._hashed.get(file.path), now
        if file.sha256 is None:
            if abs(time.time_ns() - identity[4]) <= RACY_NS:
                return
        elif hashed is not None and hashed.digest.settled and hashed.digest.identity == identity:
            identity, at = hashed.digest.identity, hashed.at  # the one that is kept anyway
        else:
            return
        folder, _, name = file.path.rpartition("/")
        self._as_wanted.setdefault(folder, {})[name] = identity, at
        self._due.discard(file.path)
        self._known_ids = dict(self._ids)

    def _of_open(self, file: File, descriptor: int, now: float) -> Iterator[Difference]:
        facts = facts_of(descriptor)
        wrong = list(self._wrong_access(file, descriptor, facts))
        if not wrong:
            self.marks.pop(file.path, None)
        reason = self.marks.get(file.path)
        for each in wrong:
            yield each._replace(wanted=f"{each.wanted} (not repaired: {reason})") if reason else each
        for name, value in file.xattrs.items():
            yield from _wrong_xattr(file.path, descriptor, name, value)
        if file.sha256 is not None:
            found = self._digest(file.path, descriptor, facts, now)
            if found not in (None, file.sha256):
                yield Difference(f"{file.path} sha256", file.sha256, str(found))

    def _wrong_access(self, file: File, descriptor: int, facts: FileFacts) -> Iterator[Difference]:
        path = file.path
        if self._id("user", file.owner) != facts.uid:
            yield Difference(f"{path} owner", file.owner, facts.owner)
        if self._id("group", file.group) != facts.gid:
            yield Difference(f"{path} group", file.group, facts.group)
        if int(file.mode, 8) != facts.mode:
            yield Difference(f"{path} mode", file.mode, f"{facts.mode:04o}")
        access = access_of(descriptor)
        if file.acl or access.acl:
            acl = self._acl(file)
            if acl != access.acl:
                wanted = (
                    "no ACL" if not file.acl else acl_text(acl) if acl is not None else ",".join(file.acl)
                )
                yield Difference(f"{path} acl", wanted, acl_text(access.acl))
        capabilities = capability_text(parse_capabilities(file.capabilities))
        if capabilities != access.capabilities:
            yield Difference(f"{path} capabilities", capabilities or "none", access.capabilities or "none")
        if file.attributes is not None and set(file.attributes) != access.attributes:
            wanted = ",".join(sorted(file.attributes)) or "none"
            yield Difference(f"{path} attributes", wanted, ",".join(sorted(access.attributes)) or "none")

    def _acl(self, file: File) -> frozenset[tuple[int, int, int]] | None:
        """Return the ACL wanted; None where it names somebody that this machine does not know."""
        entries = []
        for kind, who, letters in file.acl_entries():
            number = self._id(kind, who) if who else None
            if who and number is None:
                return None
            entries.append((kind, number, letters))
        return wanted_acl(entries, int(file.mode, 8))

    def _id(self, kind: str, name: str) -> int | None:
        """Return the number of a user or group, asked once in a look; None if there is none."""
        if (kind, name) not in self._ids:
            try:
                self._ids[kind, name] = user_id(name) if kind == "user" else group_id(name)
            except OSError:
                self._ids[kind, name] = None
        return self._ids[kind, name]

    def _digest(self, path: str, descriptor: int, facts: FileFacts, now: float) -> str | None:
        """Return the digest, the last one known while a new one is being computed, or None before the first."""
        known = self._hashed.get(path)
        if (
            known
            and known.digest.settled
            and known.digest.identity == facts.identity
            and 0 <= now - known.at < self.section.rehash_s
        ):
            return known.digest.sha256
        if facts.size <= min(SMALL_FILE_BYTES, self._left_bytes):
            self._left_bytes -= facts.size
            digest = hash_open(self.around.host, path, descriptor)
            self._hashed[path] = Hashed(digest, now)
            return digest.sha256
        self._background.ask(path)
        if path in self._failed:  # until it succeeds: a file that is written to all the time is never proved
            raise self._failed[path]
        if known is None:
            self._unproved.add(path)
        return known.digest.sha256 if known else None

    def _repair(self, file: File) -> None:
        host = self.around.host
        try:
            self.remember_first(file.path, self._first(file))
            acl = self._acl(file)
            if acl is None:
                raise OSError(errno.ENOENT, "no such user or group", ",".join(file.acl))
            wanted = Wanted(
                user_id(file.owner),
                group_id(file.group),
                int(file.mode, 8),
                acl,
                file.capabilities,
                file.attributes,
            )
            host.set_access(file.path, wanted)
            self.marks[file.path] = ""
        except OSError as error:  # the next observation reports what is still wrong, with the reason
            self.marks[file.path] = self._why(file.path, error)

    def _first(self, file: File) -> str:
        descriptor = self.around.host.open_file(file.path)
        try:
            facts, access = facts_of(descriptor), access_of(descriptor)
        finally:
            os.close(descriptor)
        before = Before(
            uid=facts.uid,
            gid=facts.gid,
            mode=facts.mode,
            acl=sorted(access.acl),
            capabilities=access.capabilities.partition(" [")[0],
            attributes=None if file.attributes is None else sorted(access.attributes),
        )
        return msgspec.json.encode(before).decode()

    def _why(self, path: str, error: OSError) -> str:
        if error.errno in (errno.EPERM, errno.EACCES):
            try:
                descriptor = self.around.host.open_file(path)
                try:
                    if found := attributes_of(descriptor):
                        return f"the file is {' and '.join(sorted(found))} (chattr)"
                finally:
                    os.close(descriptor)
            except OSError:  # the reason that is known will do
                pass
        return error.strerror or str(error)


def _wrong_xattr(path: str, descriptor: int, name: str, value: str) -> Iterator[Difference]:
    try:
        found = os.getxattr(descriptor, name).rstrip(b"\0").decode("utf-8", "backslashreplace")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        found = "none"
    if found != value:
        yield Difference(f"{path} {name}", value, found)
