"""`[blocks]`: which disks may be there, and which of them are held read-only.

Whole block devices with a medium in them: disks, sticks, card readers, loop and device-mapper devices. Serials and ids are the
device's own claims. `read-only` sets the kernel's flag, which covers partitions too; what was mounted for writing
before may go on. `remove` takes a SCSI disk (USB sticks are such) from the kernel. `[usb]` decides before a stick is a disk.
Refuses to touch an unknown disk that the system itself stands on: that one is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.probes import Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.probes._gone import Departures, Removed
from agent.probes._vital import vital_parts
from agent.sysfsbuses import Disk
from agent.usbrules import Reason
from contract.messages import Drift, never_more

SUBSYSTEMS = ("block",)
MAX_TOLD = 32
NamePattern = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9!*_-]{1,32}\Z")]
SaidText = Annotated[str, Meta(min_length=1, max_length=256)]


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[blocks.allow]]`: disks that may be there. Every key that is given must match; the first rule that does decides."""

    reason: Reason
    """Why, for the next reader."""
    names: Annotated[list[NamePattern], Meta(min_length=1, max_length=64)]
    """The kernel's names, with `*`: `sd*`, `nvme0n1`, `loop*`."""
    serial: SaidText | None = None
    """Serial number."""
    wwid: SaidText | None = None
    """World-wide name, or the device-mapper's id."""
    model: SaidText | None = None
    """Model, or the device-mapper's name."""
    removable: bool | None = None
    """Whether the medium can be taken out."""
    read_only: bool = False
    """Held read-only."""
    required: bool = False
    """It is a drift while no such disk is there."""

    def names_it(self, disk: Disk) -> bool:
        """True if the rule speaks of this disk."""
        pairs = (
            (self.serial, disk.serial),
            (self.wwid, disk.wwid),
            (self.model, disk.model),
            (self.removable, disk.removable),
        )
        return any(fnmatchcase(disk.name, each) for each in self.names) and all(
            wanted is None or wanted == found for wanted, found in pairs
        )


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[blocks]`."""

    unknown: Literal["report", "read-only", "remove"] = "report"
    """What becomes of a disk that no rule names."""
    removed: Removed = "tell"
    """Whether a device that a rule names and that went is told, and how loudly."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Disks that may be there."""


class Probe(probes.Probe[Section]):
    """Compares the disks with the rules."""

    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._held: dict[tuple[str, ...], Notice] = {}
        self._told: set[tuple[str, ...]] = set()
        self._gone = Departures(self.name, section.removed)

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each disk that no rule names, that can be written and must not, and for each that is missing."""
        self._held = {}
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set the read-only flag; take unknown disks away, if the section says so."""
        wrong = {drift.key for drift in drifts}
        vital = vital_parts(self.around).disks
        for disk in self.around.host.disks.all():
            if not wrong & {disk.name, f"{disk.name} read-only", "disks"}:
                continue
            if self._rule(disk) is None and disk.name in vital:
                continue  # the system stands on it: told, not taken
            try:
                if self._rule(disk) is None and self.section.unknown == "remove":
                    self.around.host.disks.delete(disk)
                elif self._held_read_only(disk) and not disk.read_only:
                    self.remember_first(disk.name, f"{disk.number[0]}:{disk.number[1]}")
                    self.around.host.nodes.set_read_only(_path(disk), disk.number, True)
            except OSError:
                continue  # the next observation reports it

    def undo(self) -> None:
        """Make writable again what was made read-only. A disk that was taken away comes back when it is plugged in anew."""
        there = {disk.name: disk for disk in self._disks_or_none()}
        for name, number in self.remembered():
            disk = there.get(name)
            if disk is not None and f"{disk.number[0]}:{disk.number[1]}" == number:
                try:
                    self.around.host.nodes.set_read_only(_path(disk), disk.number, False)
                except OSError:  # it has gone
                    pass
            self.forget(name)

    def governs(self, key: str) -> bool:
        """True if the section does not let the disk be written either."""
        disk = next((each for each in self._disks_or_none() if each.name == key), None)
        if disk is None:
            return False
        if self._rule(disk) is None and (
            self.section.unknown == "report" or key in vital_parts(self.around).disks
        ):
            return False
        return self._held_read_only(disk) or self._rule(disk) is None

    def notices(self, now: float) -> list[Notice]:
        """Return `blocks.read-only` once for each unknown disk that is held read-only, `blocks.gone` for each that went."""
        fresh = [notice for key, notice in self._held.items() if key not in self._told]
        self._told = set(self._held)
        return fresh + self._gone.take()

    def _rule(self, disk: Disk) -> Allow | None:
        return next((rule for rule in self.section.allow if rule.names_it(disk)), None)

    def _held_read_only(self, disk: Disk) -> bool:
        rule = self._rule(disk)
        return rule.read_only if rule is not None else self.section.unknown == "read-only"

    def _disks_or_none(self) -> list[Disk]:
        try:
            return self.around.host.disks.all()
        except OSError:
            return []

    def _differences(self) -> Iterator[Difference]:
        try:
            disks = self.around.host.disks.all()
        except OSError as error:
            yield could_not_look("disks", "a list of disks", error)
            return
        named = [disk for disk in disks if self._rule(disk) is not None]
        self._gone.look({f"{d.name} {d.serial} {d.wwid}": f"disk {d.name} ({d.describe()})" for d in named})
        yield from bounded("disks", self._each(disks), MAX_TOLD)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(self._rule(disk) is rule for disk in disks):
                yield Difference(f"allow {number}", f"there ({rule.reason})", "not there")

    def _each(self, disks: Sequence[Disk]) -> Iterator[Difference]:
        for disk in disks:
            rule = self._rule(disk)
            if rule is not None:
                if rule.read_only and not disk.read_only:
                    yield Difference(f"{disk.name} read-only", "yes", "no")
            elif self.section.unknown == "read-only" and disk.read_only:
                detail = {"name": disk.name, "serial": disk.serial, "wwid": disk.wwid, "model": disk.model}
                text = f"disk {disk.name} ({disk.describe()}) is held read-only: no rule names it"
                cut = {key: never_more(value, 2048) for key, value in detail.items()}
                self._held[(disk.name, disk.serial, disk.wwid)] = Notice(
                    "blocks.read-only", "warning", never_more(text, 2048), cut
                )
            else:
                yield Difference(disk.name, "a disk that a rule names", disk.describe())


def _path(disk: Disk) -> str:
    # The kernel writes `!` for a `/` in a device's name.
    return f"/dev/{disk.name.replace('!', '/')}"
