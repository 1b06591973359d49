"""`[packages]`: which packages must be installed, how new they must be, and which may not be.

Reads dpkg's and rpm's databases anew only when they change. Repairs nothing: a package manager runs scripts as root and
needs a source, and both are for people. What a database says is worth as much as the machine's root user;
that a file is what its package brought is for `[ima]` and `[files]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.packages import PackageVersion, compare
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from contract.messages import Drift

PackageName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9+._-]{0,127}\Z")]
Pattern = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9+._*-]{0,127}\Z")]
Version = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9.+~^:_-]{1,128}\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
MAX_TOLD = 32
"""Differences of one kind told by name; the rest is one more, with their number."""


class Want(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[packages.want]]`: a package that must be installed."""

    name: PackageName
    """As dpkg or rpm name it, without architecture."""
    minimum: Version | None = None
    """No older version will do, by the order of the package's own system."""
    reason: Reason
    """Why, for the next reader."""


class Forbid(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[packages.forbid]]`: packages that may not be there, whatever allows them."""

    name: Pattern
    """`*` stands for any text."""
    below: Version | None = None
    """Only versions older than this one; absent: every version."""
    reason: Reason
    """Why, for the next reader."""


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[packages.allow]]`: packages that may be there and need not."""

    names: Annotated[list[Pattern], Meta(min_length=1, max_length=4096)]
    """`*` stands for any text."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[packages]`."""

    unknown: Literal["report", "ignore"] = "report"
    """What becomes of a package that is neither wanted nor allowed."""
    want: Annotated[list[Want], Meta(max_length=1024)] = field(default_factory=list)
    """Packages that must be there."""
    forbid: Annotated[list[Forbid], Meta(max_length=1024)] = field(default_factory=list)
    """Packages that may not."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Packages that may."""

    def __post_init__(self) -> None:
        wanted = [want.name for want in self.want]
        if len(set(wanted)) != len(wanted):
            raise ValueError("expected each wanted package once")
        exact = {name for allow in self.allow for name in allow.names}
        for forbid in self.forbid:
            if forbid.below is None and (hit := [n for n in wanted if fnmatchcase(n, forbid.name)]):
                raise ValueError(f"expected {hit[0]!r} to be wanted or forbidden, not both")
            if forbid.below is None and forbid.name in exact:
                raise ValueError(f"expected {forbid.name!r} to be allowed or forbidden, not both")


class Probe(probes.Probe[Section]):
    """Compares the package databases with the section."""

    by_hands = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._stamp: tuple[int, ...] | None = None
        self._found: list[PackageVersion] = []
        self._allowed: dict[str, bool] = {}

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each package that is missing, too old, forbidden or unknown."""
        try:
            found = self._packages()
        except OSError as error:
            return self.drifts([could_not_look("packages", "a look at the package database", error)], now)
        return self.drifts(self._differences(found), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Do nothing: what installs and removes packages is told by people."""

    def _packages(self) -> list[PackageVersion]:
        stamp = self.around.host.packages.stamp()
        if stamp != self._stamp:
            self._found, self._stamp = self.around.host.packages.versions(), stamp
        return self._found

    def _differences(self, found: list[PackageVersion]) -> Iterator[Difference]:
        by_name: dict[str, list[PackageVersion]] = {}
        for package in found:
            by_name.setdefault(package.name, []).append(package)
        for want in self.section.want:
            yield from _missing(want, by_name.get(want.name, []))
        yield from bounded("forbidden packages", self._forbidden(found), MAX_TOLD)
        if self.section.unknown == "report":
            yield from bounded("unknown packages", self._unknown(by_name), MAX_TOLD)

    def _forbidden(self, found: list[PackageVersion]) -> Iterator[Difference]:
        for forbid in self.section.forbid:
            for package in found:
                if fnmatchcase(package.name, forbid.name) and (
                    forbid.below is None or compare(package, forbid.below) < 0
                ):
                    wanted = "not installed" if forbid.below is None else f"not older than {forbid.below}"
                    yield Difference(package.name, f"{wanted} ({forbid.reason})", package.version)

    def _unknown(self, by_name: dict[str, list[PackageVersion]]) -> Iterator[Difference]:
        wanted = {want.name for want in self.section.want}
        for name, packages in sorted(by_name.items()):
            if name not in wanted and not self._may(name):
                yield Difference(name, "a package that is wanted or allowed", packages[0].version)

    def _may(self, name: str) -> bool:
        if name not in self._allowed:
            patterns = (pattern for allow in self.section.allow for pattern in allow.names)
            self._allowed[name] = any(fnmatchcase(name, pattern) for pattern in patterns)
        return self._allowed[name]


def _missing(want: Want, found: list[PackageVersion]) -> Iterator[Difference]:
    wanted = f"{want.minimum} or newer" if want.minimum else "installed"
    whole = [package for package in found if package.state == "installed"]
    if not whole:
        yield Difference(want.name, wanted, found[0].state if found else "not installed")
    elif want.minimum is not None and all(compare(package, want.minimum) < 0 for package in whole):
        # Several versions of a kernel may lie side by side: one of them must do.
        yield Difference(want.name, wanted, whole[-1].version)
