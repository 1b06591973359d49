"""`[agent]`: which release of the agent itself must run here, and how it comes.

Refuses to fetch or unpack anything: an order goes to a unit of its own (`agent.upgrade`), which leaves it to the machine's package
manager, its sources and their keys. Nothing is begun while the baseline is on trial or the node isolated. A release that did not come
up and was taken back is not tried again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta
from msgspec.structs import replace

from agent import probes
from agent.packages import PackageVersion, compare
from agent.probes import Difference, Notice, could_not_look
from agent.upgrade import Result
from contract.messages import Drift, Severity

PACKAGE: Final = "ringfence-agent"
RETRY_S: Final = 900.0
"""After an order that came to nothing, and twice as long each time, up to DOUBLED times: a source may be away for a while."""
DOUBLED: Final = 6
UNTAKEN_S: Final = 60.0
"""So long an order may lie there before people are told that nobody takes it."""
LONGEST_S: Final = 2700.0
"""Also in packaging/systemd/ringfence-upgrade.service: what runs longer has been ended."""
RELEASE: Final = "release"

Version = Annotated[str, Meta(pattern=r"\A[0-9][A-Za-z0-9.+~^:_-]{0,127}\Z")]
"""The folder's script takes no other (packaging/os/agent/upgrade)."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[agent]`."""

    release: Version
    """As `dpkg-query -W ringfence-agent` or `rpm -q` shows it."""
    newer: Literal["report", "replace"] = "report"
    """What happens to a newer one: an older agent may not read its state."""


class Probe(probes.Probe[Section]):
    """Compares the installed package with the section."""

    by_hands = False
    rationed = False  # orders are spaced here, by what became of the last

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._stamp: tuple[int, ...] | None = None
        self._package: PackageVersion | None = None
        self._result: Result | None = None
        self._looked = False
        self._failures = 0
        self._off_since: float | None = None
        self._notices: list[Notice] = []

    def observe(self, now: float) -> list[Drift]:
        """Return a drift where another release is installed, or none. It is as old as that, whatever became of it since."""
        try:
            found = list(self._differences(self._installed(), now))
        except OSError as error:
            found = [could_not_look(RELEASE, self.section.release, error)]
        self._off_since = (self._off_since or now) if found else None
        return [replace(drift, since=self._off_since) for drift in self.drifts(found, now)]

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Order the release, where nothing stands against it. It comes later, from another process. Raises OSError."""
        package = self._installed()
        if package is None or not self._wrong(package) or self._stands_against(package, now):
            return
        self.around.host.upgrade.order(self.section.release, older=compare(package, self.section.release) > 0)
        self._note(
            "agent.upgrade-ordered", "info", f"{package.version} -> {self.section.release}", package.version
        )

    def undo(self) -> None:
        """Take back an order that nobody has taken yet."""
        self.around.host.upgrade.withdraw()

    def notices(self, now: float) -> list[Notice]:
        """Return what was ordered, and what came of it."""
        told, self._notices = self._notices, []
        return told

    def _installed(self) -> PackageVersion | None:
        packages = self.around.host.packages
        stamp = packages.stamp()
        if stamp != self._stamp:
            self._package = next((each for each in packages.versions() if each.name == PACKAGE), None)
            self._stamp = stamp
        return self._package

    def _wrong(self, package: PackageVersion) -> bool:
        return package.state != "installed" or compare(package, self.section.release) != 0

    def _differences(self, package: PackageVersion | None, now: float) -> Iterator[Difference]:
        self._hear(self.around.host.upgrade.result())
        if package is None:
            yield Difference(RELEASE, self.section.release, "not installed as a package")
        elif self._wrong(package):
            against = self._stands_against(package, now)
            state = "" if package.state == "installed" else f", {package.state}"
            wanted = f"{self.section.release} ({against})" if against else self.section.release
            yield Difference(RELEASE, wanted, f"{package.version}{state}")

    def _stands_against(self, package: PackageVersion, now: float) -> str:
        """Return why nothing is to be ordered now, for people; empty where it is."""
        upgrade = self.around.host.upgrade
        if compare(package, self.section.release) > 0 and self.section.newer == "report":
            return 'an older agent is put back with `newer = "replace"` alone'
        running = upgrade.running_since()
        booted = now - self.around.host.clock.boot_s()
        if running is not None and booted <= running and now - running < LONGEST_S:
            return "on its way"
        if (ordered := upgrade.ordered_at()) is not None:
            waits = now - ordered < UNTAKEN_S
            return (
                "ordered" if waits else "ordered, and nobody takes the order: look at ringfence-upgrade.path"
            )
        if (last := self._result) is not None and last.version == self.section.release:
            if last.outcome in ("back", "lost"):
                return f"not tried again: {last.said}"
            wait_s = RETRY_S * 2 ** min(self._failures, DOUBLED)
            if 0 <= now - last.at < wait_s:
                return f"tried again {wait_s / 60:.0f} minutes after the last time: {last.said}"
        if self.around.posture == "isolated":
            return "not while the node is isolated"
        if self.around.on_trial:
            return "once this baseline is confirmed"
        return ""

    def _hear(self, result: Result | None) -> None:
        """Put an outcome on record that came since the first look; earlier ones were told by who looked then."""
        new, self._result, self._looked = self._looked and result != self._result, result, True
        if not new or result is None:
            return
        self._failures = self._failures + 1 if result.outcome == "failed" else 0
        kinds: dict[str, tuple[str, Severity, str]] = {
            "done": ("agent.upgraded", "info", f"{result.before} -> {result.version}"),
            "failed": ("agent.upgrade-failed", "warning", f"{result.version}: {result.said}"),
            "back": ("agent.upgrade-taken-back", "critical", f"{result.version}: {result.said}"),
            "lost": ("agent.upgrade-lost", "critical", f"{result.version}: {result.said}"),
        }
        self._note(*kinds[result.outcome], result.before)

    def _note(self, kind: str, severity: Severity, summary: str, before: str) -> None:
        detail = {"release": self.section.release, "before": before}
        self._notices.append(Notice(kind, severity, summary, detail))
