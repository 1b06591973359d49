"""`[models]`: AI models as manifests of digests: weights, tokenizer, prompt, guardrails, configuration.

Refuses to follow symbolic links. Small files are hashed in the pass, big ones in slices beside it
(`agent.models.hashing`), without pushing the running model server out of the page cache. A digest holds as long as `stat` shows the very
same file, and for `verify_every_h` at most; a file whose `stat` changed goes first. Weights cannot be restored
from here; prompts and guardrails whose text the baseline carries are written anew.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from agent import probes
from agent.glance import FILES_A_BREATH
from agent.host import Identity, Watched
from agent.models.folder import files_below
from agent.models.hashing import Hashed, Verifier, hash_now, identity_of
from agent.models.quiet import verity_of
from agent.models.section import CARRIED, File, Model, Section
from agent.models.ways import doubtful_ways, refused_ways
from agent.probes import Contradiction, Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.probes.files import Section as FilesSection
from agent.tree import Kept, file_of
from contract.messages import Drift

__all__ = ["Probe", "Section", "advice", "contradictions"]

SMALL_FILE_BYTES = 1024 * 1024
"""Up to this size a file is hashed in the pass itself (some 1 to 5 ms)."""
PASS_BYTES = 8 * 1024 * 1024
"""No more than this is read in one pass; the rest goes to the thread."""
PASS_FILES = 256
"""Nor are more files than this (some 20 ms)."""
PROGRESS_S = 300.0
"""A verification that goes on for longer says so this often."""
MAX_DRIFTS = 64
"""For one model; past it one more tells how many."""
MAX_NAMED = 8
"""Unlisted files that are named; the others are counted."""
MAX_WATCHED = 512
"""Folders that are watched as a whole; what is added to others is seen by the next look of the interval."""
_NOT_KEPT = "?"
"""Remembered where nothing can be put back."""


class Known(NamedTuple):
    """The last digest of a file, and when it was made."""

    hashed: Hashed
    at: float


class Probe(probes.Probe[Section]):
    """Compares models with their manifests."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._watched = _watched(section)
        self._listed = {
            # What steers the model first: it is small, and it is what can be mended.
            model.root: sorted(
                ((model.at(file), file) for file in model.file), key=lambda each: each[1].kind not in CARRIED
            )
            for model in section.model
        }
        self._known: dict[str, Known] = {}
        self._failed: dict[str, OSError] = {}
        self._verifier = Verifier(around.host, read_bytes_s=section.read_mb_s * 1e6)
        # A baseline with the same section brings another probe, and nobody undoes this one: two must not read at once.
        weakref.finalize(self, self._verifier.stop)
        self._left_bytes = self._left_files = 0
        self._changed: dict[str, Identity] = {}
        self._told_changed: dict[str, Identity] = {}
        self._told_at: float | None = None

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each file that is not as listed, is missing, or cannot be read, and for what is not listed."""
        self.around.host.watch_files(self.name, self._watched)
        self._left_bytes, self._left_files = PASS_BYTES, PASS_FILES
        for path, result in self._verifier.take().items():
            self._failed.pop(path, None)
            if isinstance(result, OSError):
                self._failed[path] = result
            else:
                self._known[path] = Known(result, now)
        found: list[Difference] = []
        for model in self.section.model:
            found += bounded(f"{model.root} more", self._differences(model, now), MAX_DRIFTS)
        return self.drifts(found, now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Write prompts and guardrails whose text the baseline carries. Raises the first OSError after trying all."""
        wrong = {drift.key for drift in drifts}
        failed: OSError | None = None
        for model in self.section.model:
            for file in model.file:
                path = model.at(file)
                if file.content is None or not {path, f"{path} size", f"{path} sha256"} & wrong:
                    continue
                try:
                    self._rewrite(path, file.content.encode())
                except OSError as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def leave(self) -> None:
        """Stop reading."""
        self._verifier.stop()

    def undo(self) -> None:
        """Put back the texts from before the first repair."""
        for path, value in self.remembered():
            try:
                if value != _NOT_KEPT:
                    self.around.host.tree.put(path, msgspec.json.decode(value, type=Kept))
            except OSError:  # its folder has gone
                pass
            self.forget(path)

    def governs(self, key: str) -> bool:
        """True if the section carries the text of the file."""
        return any(
            model.at(file) == key and file.content is not None
            for model in self.section.model
            for file in model.file
        )

    def notices(self, now: float) -> list[Notice]:
        """Return how far a verification is, its end, and each file whose `stat` changed since its digest was made."""
        out = []
        for path, identity in self._changed.items():
            if self._told_changed.get(path) != identity:
                self._told_changed[path] = identity
                summary = f"{path} was touched or replaced; it is read before all others"
                out.append(Notice("models.changed", "warning", summary, {"path": path}))
        self._changed = {}
        progress = self._verifier.progress()
        read = f"{progress.files_done} of {progress.files} files, "
        read += f"{progress.bytes_done / 1e9:.2f} of {progress.bytes / 1e9:.2f} GB"
        detail = {
            "files_done": str(progress.files_done),
            "files": str(progress.files),
            "bytes_done": str(progress.bytes_done),
            "bytes": str(progress.bytes),
            "seconds": f"{progress.seconds:.0f}",
        }
        if progress.running and (self._told_at is None or abs(now - self._told_at) >= PROGRESS_S):
            self._told_at = now
            detail["path"] = progress.path
            out.append(Notice("models.verifying", "info", f"{read} read", detail))
        elif not progress.running and self._told_at is not None:
            self._told_at = None
            out.append(Notice("models.verified", "info", f"{read} read in {progress.seconds:.0f} s", detail))
        return out

    def verifying(self) -> bool:
        """True while the thread has something to do."""
        return self._verifier.progress().running

    def contents(self) -> dict[str, str] | None:
        """Return what each file of a model was found to hold, by path: `sha256:` and the digest, or why there is none.

        Files that are not there are left out. None while files are still being read.
        """
        if self.verifying():
            return None
        found: dict[str, str] = {}
        with self.around.host.glance() as glance:
            for path in (model.at(file) for model in self.section.model for file in model.file):
                self.around.host.breathe()
                known = self._known.get(path)
                if known is not None and glance.same(path, known.hashed.identity):
                    found[path] = f"sha256:{known.hashed.sha256}"
                    continue
                try:
                    size = self.around.host.file_facts(path).size
                except FileNotFoundError:
                    continue
                except OSError as error:
                    found[path] = f"not read: {error.strerror}"
                else:
                    found[path] = f"not read: {size} bytes, which is not its size"
        return found

    def _differences(self, model: Model, now: float) -> Iterator[Difference]:
        listed = self._listed[model.root]
        unlisted: list[str] = []
        try:
            there = files_below(self.around.host, model.root)
        except FileNotFoundError:
            yield Difference(model.root, f"{model.name} {model.version}", "not there")
            return
        except OSError as error:
            yield could_not_look(model.root, "a look at the folder", error)
        else:
            unlisted = sorted(there.keys() - {file.path for _, file in listed}) if model.complete else []
        with self.around.host.glance() as glance:
            for number, (path, file) in enumerate(listed):
                if number % FILES_A_BREATH == 0:
                    self.around.host.breathe()
                known = self._known.get(path)
                if (
                    known is not None
                    and self._proved(file, known, now)
                    and glance.same(path, known.hashed.identity)
                ):
                    continue
                self.around.host.breathe()
                try:
                    yield from self._wrong(file, path, now)
                except FileNotFoundError:
                    yield Difference(path, "there", "not there")
                except OSError as error:
                    yield could_not_look(path, "a look at the file", error)
        if unlisted:
            named = ", ".join(unlisted[:MAX_NAMED]) + (", ..." if len(unlisted) > MAX_NAMED else "")
            yield Difference(f"{model.root} unlisted", "no other file", f"{len(unlisted)}: {named}")

    def _wrong(self, file: File, path: str, now: float) -> Iterator[Difference]:
        descriptor = self.around.host.open_file(path)
        try:
            identity = identity_of(descriptor)
            verity = verity_of(descriptor) if file.verity else None
        finally:
            os.close(descriptor)
        if file.verity and verity != file.verity:
            yield Difference(f"{path} verity", file.verity, verity or "none")
        if identity[2] != file.size_bytes:
            yield Difference(f"{path} size", str(file.size_bytes), str(identity[2]))
            return  # its digest cannot be right, and need not be computed
        found = self._digest(path, identity, now)
        if found not in (None, file.sha256):
            yield Difference(f"{path} sha256", file.sha256, str(found))

    def _digest(self, path: str, identity: Identity, now: float) -> str | None:
        """Return the digest, the last one known while a new one is being computed, or None before the first."""
        known = self._known.get(path)
        same = known is not None and known.hashed.identity == identity
        if known is not None and not same:
            self._changed[path] = identity
        if known is not None and same and known.hashed.settled and self._young(known, now):
            return known.hashed.sha256
        size = identity[2]
        if self._left_files and size <= min(SMALL_FILE_BYTES, self._left_bytes):
            self._left_bytes -= size
            self._left_files -= 1
            hashed = hash_now(self.around.host, path)
            self._known[path] = Known(hashed, now)
            return hashed.sha256
        self._verifier.ask(path, size, first=known is not None and not same)
        if path in self._failed:  # until it succeeds: a file that is written to all the time is never proved
            raise self._failed[path]
        return known.hashed.sha256 if known else None

    def _proved(self, file: File, known: Known, now: float) -> bool:
        """True if the last digest is the wanted one and nothing more is asked of the file."""
        hashed = known.hashed
        right = hashed.sha256 == file.sha256 and hashed.identity[2] == file.size_bytes
        return right and hashed.settled and file.verity is None and self._young(known, now)

    def _young(self, known: Known, now: float) -> bool:
        return 0 <= now - known.at < self.section.verify_every_h * 3600

    def _rewrite(self, path: str, content: bytes) -> None:
        tree, like = self.around.host.tree, Kept(kind="file", mode=0o644)
        try:
            before = tree.keep(path)
            self.remember_first(path, msgspec.json.encode(before).decode())
            if before.kind == "file":
                like = msgspec.structs.replace(before, mode=before.mode & 0o777)
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            self.remember_first(path, _NOT_KEPT)  # huge, or no plain file: must not save it from repair
        tree.put(path, file_of(content, like))


def _watched(section: Section) -> Watched:
    """Return the files of all models, and the whole folders of those to which nothing may be added."""
    paths = {model.at(file) for model in section.model for file in model.file}
    shut = {
        model.at(file).rpartition("/")[0] for model in section.model if model.complete for file in model.file
    }
    shut |= {model.root for model in section.model if model.complete}
    return Watched(paths=frozenset(paths), folders=frozenset(sorted(shut)[:MAX_WATCHED]))


def contradictions(sections: Mapping[str, probes.SectionBase]) -> Iterator[Contradiction]:
    """Yield what no node can keep: a model beside a way out that its class shuts, a file with two digests."""
    models = sections.get("models")
    assert isinstance(models, Section)  # noqa: S101  (called for baselines that have the section)
    yield from refused_ways(sections)
    files = sections.get("files")
    if isinstance(files, FilesSection):
        digests = {model.at(file): file.sha256 for model in models.model for file in model.file}
        for place, file in enumerate(files.file):
            if file.sha256 is not None and digests.get(file.path, file.sha256) != file.sha256:
                expected = f"expected the digest of [models] or none; {file.path} cannot have two"
                yield Contradiction(("files", "file", place, "sha256"), expected)


def advice(
    sections: Mapping[str, probes.SectionBase], interfaces: Collection[str] | None
) -> Iterator[Contradiction]:
    """Yield what the firewall leaves open beside the models."""
    yield from doubtful_ways(sections)
