"""`[services]`: what starts by itself: systemd units, timers, drop-ins, cron tables, start scripts, generators.

Reads what lies on disk; systemd is not asked and never made to reload (that takes GPUs away from containers), so a repair
counts from the next boot or reload on, and stops nothing that runs. Default deny: a unit that is enabled, and a
file that no package brought, must be listed. Units made at run time (transient ones, a generator's output) are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes, units
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from agent.probes._kept import (
    PackagedFiles,
    Path,
    Reader,
    Reason,
    Sha256,
    aside,
    put_aside,
    put_asides,
    remember,
)
from agent.tree import Kept
from agent.units import ETC, LOCAL, MASK, VENDOR, Piece, State
from contract.messages import Drift

UnitName = Annotated[
    str,
    Meta(
        max_length=255,
        pattern=r"\A[A-Za-z0-9:_.@\\*-]+\.(service|socket|mount|automount|swap|target|path|timer|slice)\Z",
    ),
]
MAX_TOLD = 32
_CRON = tuple(f"/etc/cron.{each}" for each in ("d", "hourly", "daily", "weekly", "monthly", "yearly"))
_SPOOLS = ("/var/spool/cron", "/var/spool/cron/crontabs", "/var/spool/cron/atjobs", "/var/spool/at")
_GENERATORS = tuple(f"{each}/systemd/system-generators" for each in ("/etc", "/run", "/usr/local/lib"))
_VENDOR_GENERATORS = "/usr/lib/systemd/system-generators"
FOLDERS = (*_CRON, *_SPOOLS, *_GENERATORS, "/etc/systemd/user", "/etc/init.d", _VENDOR_GENERATORS)
SINGLE = ("/etc/crontab", "/etc/anacrontab", "/etc/rc.local", "/etc/rc.d/rc.local")
_PACKAGED = (*VENDOR, *LOCAL, *_CRON, "/etc/systemd/user", "/etc/init.d", _VENDOR_GENERATORS)
_GOOD: dict[str, tuple[State, ...]] = {
    "enabled": ("enabled", "static"),
    "disabled": ("disabled", "masked", "not there"),
    "masked": ("masked",),
}


class Unit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[services.unit]]`: a unit that may, must or must not start by itself."""

    name: UnitName
    """With its ending; `*` stands for any text where `state` is `any`."""
    state: Literal["enabled", "disabled", "masked", "any"] = "any"
    """What it must be."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if "*" in self.name and self.state != "any":
            raise ValueError("expected `*` only where state is `any`")


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[services.file]]`: a local unit file, drop-in, cron table or script. It must be there."""

    path: Path
    """Where it lies."""
    sha256: Sha256
    """Of its content."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[services]`."""

    unknown: Literal["report", "repair"] = "report"
    """`repair`: take away unknown files and links, kept in the agent's state."""
    vendor: Literal["check", "trust"] = "check"
    """Whether what lies in the packages' unit folder must be from a package."""
    unit: Annotated[list[Unit], Meta(max_length=1024)] = field(default_factory=list)
    """Units by name."""
    file: Annotated[list[File], Meta(max_length=1024)] = field(default_factory=list)
    """Files by content."""

    def __post_init__(self) -> None:
        for what, names in (("unit", [u.name for u in self.unit]), ("file", [f.path for f in self.file])):
            if len(set(names)) != len(names):
                raise ValueError(f"expected each {what} once")
        if any({".", ".."} & set(each.path.split("/")) for each in self.file):
            raise ValueError("expected paths without '.' and '..'")


class Probe(probes.Probe[Section]):
    """Compares unit folders and cron tables with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._files = Reader(units.parse_install)
        self._packaged = PackagedFiles(around.host, [*(f"{each}/" for each in _PACKAGED), *SINGLE])
        self._listed = {each.path: each.sha256 for each in section.file}
        self._pieces: list[Piece] = []
        self._strange: list[str] = []
        """Paths of what nobody listed, where it may be taken away."""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each unit in another state, each unknown file or link, and each that cannot be read."""
        self._packaged.refresh()
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Link and unlink units; take away what is unknown where the section asks for it. Counts from the next boot."""
        wrong = {drift.key for drift in drifts}
        if self.section.unknown == "repair":
            for path in self._strange:
                with suppress(OSError):  # the next observation reports it
                    put_aside(self, path)
        for unit in self.section.unit:
            if f"unit {unit.name}" in wrong:
                with suppress(OSError):
                    self._set(unit)

    def undo(self) -> None:
        """Put back files and links, and take away links that were made."""
        tree = self.around.host.tree
        for path, kept in put_asides(self):
            with suppress(OSError):
                there = tree.keep(path)
                if there.kind == "absent" or (there.kind == "link" and path.startswith(ETC)):
                    tree.put(path, kept)

    def unlisted(self) -> list[Difference]:
        """Return everything that no entry names and no package brought, however much it is."""
        list(self._differences())
        return [*self._unknown_pieces(), *self._unknown_files()]

    def governs(self, key: str) -> bool:
        """True if the section would not have a thing back that was put aside, or wants a link that was made."""
        path, kept = aside(self, key)
        if path in self._listed or kept is None:
            return False
        name = path.rpartition("/")[2]
        states = {unit.state for unit in self.section.unit if fnmatchcase(name, unit.name)}
        if kept.kind == "absent":
            return bool(states & {"masked", "enabled"})
        if kept.kind == "link":
            return not states & ({"masked", "disabled", "any"} if kept.target == MASK else {"enabled", "any"})
        return True

    def _differences(self) -> Iterator[Difference]:
        tree = self.around.host.tree
        self._pieces, self._strange = [], []
        for folder in (*LOCAL, *VENDOR):
            try:
                self._pieces += units.pieces(tree, (folder,))
            except OSError as error:
                yield could_not_look(folder, "a list of its units", error)
        found = units.states(self._pieces)
        for unit in self.section.unit:
            state = found.get(unit.name) or self._template(unit.name, found)
            if unit.state != "any" and state not in _GOOD[unit.state]:
                yield Difference(f"unit {unit.name}", unit.state, state)
        for path, sha256 in self._listed.items():
            try:
                content = self._files.read(self.around.host, path).sha256
                if content != sha256:
                    yield Difference(f"{path} sha256", sha256, content)
            except FileNotFoundError:
                yield Difference(path, "there", "not there")
            except OSError as error:
                yield could_not_look(path, "a look at the file", error)
        yield from bounded("units", self._unknown_pieces(), MAX_TOLD)
        yield from bounded("start files", self._unknown_files(), MAX_TOLD)

    def _template(self, name: str, found: dict[str, State]) -> State:
        stem, at, _ = name.partition("@")
        return "disabled" if at and f"{stem}@.{name.rpartition('.')[2]}" in found else "not there"

    def _unknown_pieces(self) -> Iterator[Difference]:
        for piece in self._pieces:
            if piece.path in self._listed or (not piece.local and self.section.vendor == "trust"):
                continue
            if piece.local and piece.kind in ("pull", "alias", "mask") and self._may(piece):
                continue
            is_link = piece.kind in ("pull", "alias", "mask") or bool(piece.target)
            if piece.local and is_link:
                yield self._unknown(piece.path, f"link to {piece.target}")
            else:
                yield from self._unless_packaged(piece.path, piece.target if is_link else None, piece.local)

    def _may(self, piece: Piece) -> bool:
        """True if a link is one that a listed unit may have: inside the unit folders, under no other unit's name."""
        where = piece.target.rpartition("/")[0]
        inside = where in ("", "..", "/lib/systemd/system", *LOCAL, *VENDOR)
        if piece.kind != "mask" and not inside:
            return False
        names = {piece.unit} if piece.kind != "alias" else {piece.unit, piece.path.rpartition("/")[2]}
        named = [u for u in self.section.unit if any(fnmatchcase(name, u.name) for name in names)]
        if piece.kind == "mask":
            return any(unit.state in ("masked", "disabled", "any") for unit in named)
        # An alias under the name of a unit that packages have would stand in its place.
        taken = {each.path.rpartition("/")[2] for each in self._pieces if each.kind == "unit"}
        shadows = piece.kind == "alias" and piece.path.rpartition("/")[2] in taken
        return bool(named) and not shadows

    def _unknown_files(self) -> Iterator[Difference]:
        tree = self.around.host.tree
        paths: list[tuple[str, str | None]] = []
        for folder in FOLDERS:
            try:
                for entry in units.listed(tree, folder):
                    if entry.kind != "folder" and not entry.name.startswith("."):
                        target = entry.target if entry.kind == "link" else None
                        paths.append((f"{folder}/{entry.name}", target))
            except OSError as error:
                yield could_not_look(folder, "a list of its files", error)
        for path in SINGLE:
            with suppress(OSError):  # its folder: told above, or not there
                if (single := tree.entry(path)) is not None:
                    paths.append((path, single.target if single.kind == "link" else None))
        for path, target in paths:
            if path not in self._listed:
                vendor = path.startswith(_VENDOR_GENERATORS)
                if not (vendor and self.section.vendor == "trust"):
                    yield from self._unless_packaged(path, target, not vendor)

    def _unless_packaged(self, path: str, target: str | None, local: bool) -> Iterator[Difference]:
        if target is not None:
            if not self._packaged.has(path, ""):
                yield self._unknown(path, f"link to {target}", local and self._may_go(path))
            return
        try:
            found = self._files.read(self.around.host, path)
        except FileNotFoundError:
            return  # gone meanwhile
        except OSError as error:
            yield could_not_look(path, "a look at the file", error)
            return
        if not self._packaged.has(path, found.md5):
            yield self._unknown(path, f"sha256 {found.sha256}", local and self._may_go(path))

    def _may_go(self, path: str) -> bool:
        """False where packages put files and nobody can say which: without dpkg's database, everything would be unknown."""
        return self._packaged.missing is None or not path.startswith((*_PACKAGED, *SINGLE))

    def _unknown(self, path: str, found: str, local: bool = True) -> Difference:
        if local:
            self._strange.append(path)
        return Difference(path, "listed, or as a package brought it", found)

    def _set(self, unit: Unit) -> None:
        tree = self.around.host.tree
        here = [piece for piece in self._pieces if piece.unit == unit.name and piece.local]
        if unit.state == "masked":
            path = f"{ETC}/{unit.name}"
            remember(self, path, tree.keep(path))
            tree.put(path, Kept(kind="link", target=MASK))
        elif unit.state == "disabled":
            for piece in here:
                if piece.kind in ("pull", "alias"):
                    put_aside(self, piece.path)
        elif unit.state == "enabled":
            for piece in here:
                if piece.kind == "mask":
                    put_aside(self, piece.path)
            self._enable(unit.name)

    def _enable(self, name: str) -> None:
        tree = self.around.host.tree
        stem, at, _ = name.partition("@")
        files = {name, f"{stem}@.{name.rpartition('.')[2]}"} if at else {name}
        for piece in self._pieces:
            if piece.kind == "unit" and piece.unit in files:
                for folder in self._files.read(self.around.host, piece.path).parsed:
                    path = f"{ETC}/{folder}/{name}"
                    tree.make_folder(f"{ETC}/{folder}")
                    remember(self, path, tree.keep(path))
                    tree.put(path, Kept(kind="link", target=piece.path))
                return
