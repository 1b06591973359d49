"""`[sysctl]`: kernel settings below /proc/sys that must have a certain value.

Refuses keys that are no settings and values with line ends. `*` stands for all names of a folder, so that an interface
that appears later is held too; an entry that names one of them is stronger. A setting that the kernel does not have is a
drift ("?"), since the promise behind it is not kept. Undo writes back what was there before the first repair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct, field

from agent import probes
from agent.host import printable
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from agent.sysctls import sysctl_path
from contract.messages import Drift

Value = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[!-~]+( [!-~]+)*\Z")]
MAX_TOLD = 512
"""Differences told one by one: `*` may stand for a thousand interfaces."""
_MORE = "more settings"
Reason = Annotated[str, Meta(min_length=3, max_length=512)]


class Setting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[sysctl.set]]`: one setting."""

    key: Annotated[str, Meta(max_length=200)]
    """`net.ipv4.ip_forward`; with `/` between the parts where a part has a dot: `net/ipv4/conf/eth0.1/rp_filter`.

    `*` as a whole part stands for every name there at the time of each look: `net.ipv4.conf.*.rp_filter`.
    """
    value: Value
    """As text, several numbers separated by one blank."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        sysctl_path(self.key)


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[sysctl]`."""

    set: Annotated[list[Setting], Meta(max_length=512)] = field(default_factory=list)
    """The settings, in the order in which they are written."""

    def __post_init__(self) -> None:
        paths = [sysctl_path(setting.key) for setting in self.set]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"expected each setting once, got {path.replace('/', '.')!r} twice")


class Probe(probes.Probe[Section]):
    """Compares and writes kernel settings."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._expanded: set[str] = set()
        """Paths for which a `*` stands."""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each setting that has another value, or that cannot be read."""
        return self.drifts(bounded(_MORE, self._differences(), MAX_TOLD), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Write the settings that differ. One that the kernel does not take stays a drift."""
        wrong = {drift.key for drift in drifts}
        for key, value in self._settings():
            if isinstance(value, str) and (key in wrong or _MORE in wrong):
                self._write(key, value)

    def undo(self) -> None:
        """Write back the values from before the first repair."""
        for key, value in self.remembered():
            try:
                self.around.host.set_sysctl(key, value)
            except (OSError, ValueError):  # gone with its interface: nothing to put back
                pass
            self.forget(key)

    def governs(self, key: str) -> bool:
        """True if the section has the setting."""
        path = sysctl_path(key).split("/")
        for setting in self.section.set:
            parts = sysctl_path(setting.key).split("/")
            if len(parts) == len(path) and all(a in ("*", b) for a, b in zip(parts, path, strict=True)):
                return True
        return False

    def _differences(self) -> Iterator[Difference]:
        host = self.around.host
        for key, value in self._settings():
            host.breathe()
            try:
                if not isinstance(value, str):
                    raise value
                found = host.sysctl(key)
            except (OSError, ValueError) as error:  # ValueError: an interface whose name is no part of a key
                if isinstance(error, FileNotFoundError) and sysctl_path(key) in self._expanded:
                    continue  # its interface has gone since the list was made
                wanted = value if isinstance(value, str) else "a list of settings"
                yield could_not_look(printable(key), wanted, error)
                continue
            if found != value:
                yield Difference(key, value, found)

    def _settings(self) -> Iterator[tuple[str, str | OSError]]:
        """Yield every setting as it is to be now, or why a `*` could not be looked through."""
        named = {sysctl_path(setting.key) for setting in self.section.set}
        self._expanded = set()
        for setting in self.section.set:
            if "*" not in setting.key:
                yield setting.key, setting.value
                continue
            try:
                paths = self.around.host.sysctls(setting.key)
            except OSError as error:
                yield setting.key, error
                continue
            for path in paths:
                if path not in named and path not in self._expanded:
                    self._expanded.add(path)
                    yield path if "." in path else path.replace("/", "."), setting.value

    def _write(self, key: str, value: str) -> None:
        host = self.around.host
        try:
            found = host.sysctl(key)
            if found != value:
                self.remember_first(key, found)
                host.set_sysctl(key, value)
        except (OSError, ValueError):
            return  # the next observation reports it with the reason
