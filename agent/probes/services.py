"""`[services]`: what starts by itself: systemd units of system and users, timers, drop-ins, and what `agent.startpaths` names.

Reads what lies on disk; systemd is not asked and never made to reload (that takes GPUs away from containers), so a repair
counts from the next boot or reload on, and stops nothing that runs. Default deny: a unit that is enabled, and a
file that no package brought, must be listed. A transient unit is told and left alone: taking its file away would hide what goes
on running. What generators write is not seen; the generators are.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes, startpaths, units
from agent.accountfiles import parse_passwd
from agent.homes import home_of
from agent.host import Watched
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
from agent.units import ETC, LOCAL, MASK, USERS_LOCAL, USERS_VENDOR, VENDOR, Piece, State
from contract.messages import Drift

UnitName = Annotated[
    str,
    Meta(
        max_length=255,
        pattern=r"\A[A-Za-z0-9:_.@\\*-]+\.(service|socket|mount|automount|swap|target|path|timer|slice)\Z",
    ),
]
MAX_TOLD = 32
_PACKAGED = (*VENDOR, *LOCAL, *USERS_VENDOR, *USERS_LOCAL, *startpaths.PACKAGED)
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
        self._passwd = Reader(parse_passwd)
        folders = [f"{each}/" for each in _PACKAGED]
        self._packaged = PackagedFiles(around.host, [*folders, *startpaths.SINGLE])
        self._listed = {each.path: each.sha256 for each in section.file}
        self._pieces: list[Piece] = []
        self._users: list[Piece] = []
        """Of the users' own systemd."""
        self._transient: list[Piece] = []
        self._homes: list[str] = []
        """Folders of units below homes."""
        self._logins: list[str] = []
        """Homes of users who log in."""
        self._strange: list[str] = []
        """Paths of what nobody listed, where it may be taken away."""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each unit in another state, each unknown file or link, and each that cannot be read."""
        self._packaged.refresh()
        with self.around.host.glance() as glance, self._files.quickly(glance):
            found = self.drifts(self._differences(), now)
        self.around.host.watch_files(self.name, self._watched())
        return found

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

    def recall(self, now: float) -> None:
        """Look: what may be taken away is known from that."""
        self.observe(now)

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
        return [
            *self._unknown_pieces(self._pieces),
            *self._unknown_pieces(self._users),
            *self._unknown_files(),
        ]

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
        self._pieces, self._users, self._transient, self._strange = [], [], [], []
        self._homes, self._logins = [], []
        for folder in (*LOCAL, *VENDOR):
            try:
                self._pieces += units.pieces(tree, (folder,))
            except OSError as error:
                yield could_not_look(folder, "a list of its units", error)
        yield from bounded("users' units", self._look_at_users(), MAX_TOLD)
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
        yield from bounded("units", self._unknown_pieces(self._pieces), MAX_TOLD)
        yield from bounded("units of users", self._unknown_pieces(self._users), MAX_TOLD)
        yield from bounded("transient units", self._unknown_transient(), MAX_TOLD)
        yield from bounded("start files", self._unknown_files(), MAX_TOLD)

    def _watched(self) -> Watched:
        """Return what is worth a look at once. Not the packages' folders, nor what every login and container makes."""
        seen = [piece.path.rpartition("/")[0] for piece in (*self._pieces, *self._users) if piece.local]
        folders = {
            *LOCAL,
            *USERS_LOCAL,
            *startpaths.LOCAL,
            *(each for each in seen if not each.startswith("/run/user/")),
        }
        return Watched(
            paths=frozenset({*startpaths.SINGLE, *self._listed}),
            folders=frozenset({*folders, *self._homes}),
            appearing=frozenset(f"{home}/.config" for home in self._logins),
        )

    def _template(self, name: str, found: dict[str, State]) -> State:
        stem, at, _ = name.partition("@")
        return "disabled" if at and f"{stem}@.{name.rpartition('.')[2]}" in found else "not there"

    def _look_at_users(self) -> Iterator[Difference]:
        """Find the pieces of the users' units and the transient ones; yield what could not be looked at."""
        tree = self.around.host.tree
        transient = [units.TRANSIENT]
        own: list[str] = []
        try:
            for entry in units.listed(tree, units.RUN_USERS):
                control, made, runtime = (f"{units.RUN_USERS}/{entry.name}/{each}" for each in units.RUN_USER)
                own += [control, runtime]
                transient.append(made)
            users, _ = self._passwd.read(self.around.host, "/etc/passwd").parsed
        except FileNotFoundError:
            users = []
        except OSError as error:
            users = []
            yield could_not_look("homes", "a look at the users' units", error)
        for user in users:
            try:
                home = home_of(tree, user)
            except OSError as error:
                yield could_not_look(f"home of {user.name}", "a look at its units", error)
                continue
            if home is not None:
                self._homes += [f"{home}/{each}" for each in units.HOME]
                self._logins += [home] if user.logs_in() else []
        for folder in (*USERS_LOCAL, *USERS_VENDOR, *dict.fromkeys([*own, *self._homes])):
            try:
                self._users += units.pieces(tree, (folder,))
            except OSError as error:
                if folder != units.XDG_USERS or not self._is_link(folder):
                    yield could_not_look(folder, "a list of its units", error)
        for folder in transient:
            try:
                self._transient += units.starting(tree, folder)
            except OSError as error:
                yield could_not_look(folder, "a list of its units", error)

    def _is_link(self, path: str) -> bool:
        try:
            entry = self.around.host.tree.entry(path)
        except OSError:
            return False
        return entry is not None and entry.kind == "link"

    def _unknown_transient(self) -> Iterator[Difference]:
        for piece in self._transient:
            if not any(fnmatchcase(piece.unit, unit.name) for unit in self.section.unit):
                yield Difference(piece.path, "a listed unit", f"transient {piece.kind}, left alone")

    def _unknown_pieces(self, pieces: list[Piece]) -> Iterator[Difference]:
        # An alias under the name of a unit that packages have would stand in its place.
        taken = frozenset(each.path.rpartition("/")[2] for each in pieces if each.kind == "unit")
        for piece in pieces:
            if piece.path in self._listed or (not piece.local and self.section.vendor == "trust"):
                continue
            if piece.local and piece.kind in ("pull", "alias", "mask") and self._may(piece, pieces, taken):
                continue
            is_link = piece.kind in ("pull", "alias", "mask") or bool(piece.target)
            if piece.local and is_link:
                yield self._unknown(piece.path, f"link to {piece.target}")
            else:
                yield from self._unless_packaged(piece.path, piece.target if is_link else None, piece.local)

    def _may(self, piece: Piece, pieces: list[Piece], taken: frozenset[str]) -> bool:
        """True if a link is one that a listed unit may have: inside the unit folders, under no other unit's name."""
        above = PurePosixPath(piece.path).parent
        own = above.parent if piece.kind == "pull" else above
        where = posixpath.normpath(above / PurePosixPath(piece.target).parent)
        folders = (*USERS_LOCAL, *USERS_VENDOR) if pieces is self._users else (*LOCAL, *VENDOR)
        inside = where in (str(own), *folders) or f"/usr{where}" in folders
        if piece.kind != "mask" and not inside:
            return False
        names = {piece.unit} if piece.kind != "alias" else {piece.unit, piece.path.rpartition("/")[2]}
        named = [u for u in self.section.unit if any(fnmatchcase(name, u.name) for name in names)]
        if piece.kind == "mask":
            return any(unit.state in ("masked", "disabled", "any") for unit in named)
        shadows = piece.kind == "alias" and piece.path.rpartition("/")[2] in taken
        return bool(named) and not shadows

    def _unknown_files(self) -> Iterator[Difference]:
        tree = self.around.host.tree
        paths: list[tuple[str, str | None]] = []
        for folder in (*startpaths.LOCAL, *startpaths.VENDOR):
            try:
                for entry in units.listed(tree, folder):
                    if entry.kind != "folder" and not entry.name.startswith("."):
                        target = entry.target if entry.kind == "link" else None
                        paths.append((f"{folder}/{entry.name}", target))
            except OSError as error:
                yield could_not_look(folder, "a list of its files", error)
        for path in startpaths.SINGLE:
            with suppress(OSError):  # its folder: told above, or not there
                if (single := tree.entry(path)) is not None:
                    paths.append((path, single.target if single.kind == "link" else None))
        for path, target in paths:
            if path not in self._listed:
                vendor = startpaths.is_vendor(path)
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
        return self._packaged.missing is None or not path.startswith((*_PACKAGED, *startpaths.SINGLE))

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
