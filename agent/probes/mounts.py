"""`[mounts]`: what is mounted where, of which type and with which options, in the namespace of process 1.

Refuses to mount anything. Options are added to a mount only where its entry says `remount = true`, and nothing is
unmounted unless an entry or `unknown = "repair"` says so; never by force, never lazily, and never the root or what the
system stands on. A mount over another at a path of an entry is a drift: it hides what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.host import printable
from agent.mounttable import SETTABLE, Mount
from agent.probes import Difference, could_not_look
from contract.messages import Drift

Path = Annotated[str, Meta(max_length=1024, pattern=r"\A(/|(/[^/\x00-\x1f\x7f]+)+)\Z")]
Pattern = Annotated[str, Meta(max_length=1024, pattern=r"\A(/|(/[^/\x00-\x1f\x7f]+)+/?)\Z")]
Type = Annotated[str, Meta(pattern=r"\A[a-z0-9_][a-z0-9_.-]{0,63}\Z")]
Option = Annotated[str, Meta(pattern=r"\A[!-+\--~]{1,128}\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]

SHOWN = 32
"""So many unknown mounts are drifts of their own; the others are one drift together."""
_MORE = "more mounts"
_KEPT = ("/proc", "/sys", "/dev", "/run", "/boot", "/usr", "/var", "/etc", "/home")
"""Together with the root: never unmounted as unknown, whatever a section says."""
_OPPOSITE = {"ro": "rw", "nosuid": "suid", "nodev": "dev", "noexec": "exec", "rw": "ro"}


class Wanted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[mounts.mount]]`: one mount point."""

    path: Path
    """Where; without symbolic links."""
    options: Annotated[list[Option], Meta(max_length=32)] = field(default_factory=list)
    """Options that must be in force."""
    types: Annotated[list[Type], Meta(max_length=32)] = field(default_factory=list)
    """Types of file system that it may have; empty: any that is not forbidden."""
    required: bool = True
    """Whether it must be mounted."""
    remount: bool = False
    """In mode `enforce`: add the options that lack."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        _check_path(self.path)
        for option in self.options:
            if _OPPOSITE.get(option) in self.options:
                raise ValueError(f"expected options that agree, got {option!r} and {_OPPOSITE[option]!r}")
        if self.remount and (not self.options or set(self.options) - SETTABLE.keys()):
            raise ValueError(f"expected with `remount` only options of {', '.join(sorted(SETTABLE))}")


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[mounts.allow]]`: mounts that may be there besides."""

    paths: Annotated[list[Pattern], Meta(min_length=1, max_length=256)]
    """`/a/b/` is all below it and itself; otherwise one path, where `*` stands for text without `/`."""
    types: Annotated[list[Type], Meta(max_length=64)] = field(default_factory=list)
    """Only of these types; empty: any that is not forbidden."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        for path in self.paths:
            _check_path(path)


class Forbid(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[mounts.forbid]]`: types of file system that may be mounted nowhere."""

    types: Annotated[list[Type], Meta(min_length=1, max_length=64)]
    """Types as /proc/filesystems has them; `fuse` is every `fuse.NAME` too."""
    unmount: bool = False
    """In mode `enforce`: unmount them."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[mounts]`."""

    mount: Annotated[list[Wanted], Meta(max_length=512)] = field(default_factory=list)
    """Mount points that are wanted in a certain way."""
    allow: Annotated[list[Allow], Meta(max_length=512)] = field(default_factory=list)
    """Others that may be there."""
    forbid: Annotated[list[Forbid], Meta(max_length=128)] = field(default_factory=list)
    """Types that may not."""
    unknown: Literal["ignore", "report", "repair"] = "report"
    """What happens to a mount that no entry names; `repair` unmounts it."""

    def __post_init__(self) -> None:
        paths = [wanted.path for wanted in self.mount]
        if len(set(paths)) != len(paths):
            raise ValueError("expected each path once")
        forbidden = [kind for entry in self.forbid for kind in entry.types]
        if len(set(forbidden)) != len(forbidden):
            raise ValueError("expected each forbidden type once")
        wanted = [kind for entry in self.mount for kind in entry.types]
        for kind in wanted + [kind for entry in self.allow for kind in entry.types]:
            if any(_is(kind, each) for each in forbidden):
                raise ValueError(f"expected each type allowed or forbidden, got {kind!r} both")


class Probe(probes.Probe[Section]):
    """Compares mounts with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._wanted = {wanted.path: wanted for wanted in section.mount}
        self._allowed = [(_expression(entry.paths), entry.types) for entry in section.allow]

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each mount that lacks, lacks an option, or should not be there."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Add options and unmount, where the section asks for it. Raises OSError if the mounts cannot be seen."""
        wrong = {drift.key for drift in drifts}
        table = self.around.host.mounts
        mounts = table.mounts()
        for mount in reversed(mounts):  # the last mounted first: it may stand on the others
            if self._to_unmount(mount, wrong):
                try:
                    table.unmount(mount)
                except OSError:
                    continue  # in use: the next observation reports that it is there
        for mount in _visible(mounts).values():
            wanted = self._wanted.get(mount.path)
            if wanted and wanted.remount and f"{mount.path} options" in wrong:
                self._remount(mount, wanted)

    def undo(self) -> None:
        """Take away the options that the first repair added."""
        table = self.around.host.mounts
        try:
            mounts = _visible(table.mounts())
        except OSError:
            return  # what is remembered is kept for the next time
        for path, value in self.remembered():
            try:
                if path in mounts:
                    table.change(mounts[path], take=value.split(","))
            except OSError:  # gone meanwhile
                pass
            self.forget(path)

    def governs(self, key: str) -> bool:
        """True if the section adds options to the same mount; those that it does not want are taken away first."""
        wanted = self._wanted.get(key)
        added = self.around.remembered.get(f"{self.name}:{key}", "")
        return wanted is not None and wanted.remount and set(added.split(",")) <= set(wanted.options)

    def _differences(self) -> Iterator[Difference]:
        try:
            mounts = self.around.host.mounts.mounts()
        except OSError as error:
            yield could_not_look("mounts", "a list of mounts", error)
            return
        visible = _visible(mounts)
        for wanted in self.section.mount:
            if (mount := visible.get(wanted.path)) is not None:
                yield from _wrong(mount, wanted)
                layers = sum(1 for each in mounts if each.path == wanted.path and each.kind != "autofs")
                if layers > 1:
                    yield Difference(f"{wanted.path} layers", "one mount", f"{layers}, one over the other")
            elif wanted.required:
                yield Difference(wanted.path, "mounted", "not mounted")
        unknown = []
        for mount in mounts:
            if self._forbidding(mount) is not None:
                yield Difference(_key(mount), "not mounted (its type is forbidden)", _found(mount))
            elif self._unknown(mount):
                unknown.append(Difference(_key(mount), "not mounted (no entry names it)", _found(mount)))
        yield from unknown[:SHOWN]
        if more := unknown[SHOWN:]:
            names = ", ".join(each.key.removeprefix("mount ") for each in more)
            yield Difference(_MORE, "no others mounted", f"{len(more)} more: {names}")

    def _forbidding(self, mount: Mount) -> Forbid | None:
        for entry in self.section.forbid:
            if any(_is(mount.kind, kind) for kind in entry.types):
                return entry
        return None

    def _unknown(self, mount: Mount) -> bool:
        if self.section.unknown == "ignore" or mount.path in self._wanted:
            return False
        return not any(
            paths.fullmatch(mount.path) and (not types or mount.kind in types)
            for paths, types in self._allowed
        )

    def _to_unmount(self, mount: Mount, wrong: set[str]) -> bool:
        if mount.path == "/" or not ({_key(mount), _MORE} & wrong):
            return False
        forbidding = self._forbidding(mount)
        if forbidding is not None:
            return forbidding.unmount
        return self.section.unknown == "repair" and self._unknown(mount) and not _is_kept(mount.path)

    def _remount(self, mount: Mount, wanted: Wanted) -> None:
        lacking = sorted(set(wanted.options) - mount.options)
        try:
            self.remember_first(mount.path, ",".join(lacking))
            self.around.host.mounts.change(mount, add=lacking)
        except OSError:
            return  # files open for writing, or an old kernel: the next observation reports it


def _wrong(mount: Mount, wanted: Wanted) -> Iterator[Difference]:
    if wanted.types and mount.kind not in wanted.types:
        yield Difference(f"{wanted.path} type", " or ".join(wanted.types), printable(mount.kind))
    if lacking := [option for option in wanted.options if option not in mount.options]:
        yield Difference(f"{wanted.path} options", ",".join(wanted.options), f"lacks {','.join(lacking)}")


def _visible(mounts: Sequence[Mount]) -> dict[str, Mount]:
    """Return for each path the mount that is on top there."""
    paths = {each.number: each.path for each in mounts}
    covered = {each.parent for each in mounts if paths.get(each.parent) == each.path}
    return {each.path: each for each in mounts if each.number not in covered}


def _is(kind: str, entry: str) -> bool:
    return kind == entry or kind.startswith(f"{entry}.")


def _is_kept(path: str) -> bool:
    """True for the folders of the system, and for what is below those of the kernel."""
    return path in _KEPT or path.startswith(("/proc/", "/sys/", "/dev/"))


def _key(mount: Mount) -> str:
    return f"mount {printable(mount.path)}"


def _found(mount: Mount) -> str:
    return printable(f"{mount.kind}, from {mount.source}")


def _check_path(path: str) -> None:
    if {".", ".."} & set(path.split("/")):
        raise ValueError("expected a path without '.' and '..'")


def _expression(paths: Sequence[str]) -> re.Pattern[str]:
    parts = []
    for path in paths:
        if path == "/":  # the root alone: all below it would be everything
            parts.append("/")
            continue
        one = "[^/]*".join(re.escape(part) for part in path.rstrip("/").split("*"))
        parts.append(one + ("(/.*)?" if path.endswith("/") else ""))
    return re.compile("|".join(f"(?:{part})" for part in parts), re.DOTALL)
