"""`[sysctl]`: kernel settings below /proc/sys that must have a certain value.

Refuses keys that are no settings and values with line ends. A setting that the kernel does not have is a
drift ("?"), since the promise behind it is not kept. Undo writes back what was there before the first repair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct, field

from agent import probes
from agent.host import sysctl_path
from agent.probes import Difference, could_not_look
from contract.messages import Drift

Value = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[!-~]+( [!-~]+)*\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]


class Setting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[sysctl.set]]`: one setting."""

    key: Annotated[str, Meta(max_length=200)]
    """`net.ipv4.ip_forward`; with `/` between the parts where a part has a dot: `net/ipv4/conf/eth0.1/rp_filter`."""
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

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each setting that has another value, or that cannot be read."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Write the settings that differ. One that the kernel does not take stays a drift."""
        wrong = {drift.key for drift in drifts}
        for setting in self.section.set:
            if setting.key in wrong:
                self._write(setting)

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
        return any(sysctl_path(setting.key) == sysctl_path(key) for setting in self.section.set)

    def _differences(self) -> Iterator[Difference]:
        for setting in self.section.set:
            try:
                found = self.around.host.sysctl(setting.key)
            except OSError as error:
                yield could_not_look(setting.key, setting.value, error)
                continue
            if found != setting.value:
                yield Difference(setting.key, setting.value, found)

    def _write(self, setting: Setting) -> None:
        host = self.around.host
        try:
            self.remember_first(setting.key, host.sysctl(setting.key))
            host.set_sysctl(setting.key, setting.value)
        except OSError:
            return  # the next observation reports it with the reason
