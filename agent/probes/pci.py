"""`[pci]`: which PCI devices may be there, and what becomes of one that is plugged in (hot-plug, Thunderbolt, CXL).

A PCI device can read and write memory where no IOMMU stops it. With `arrivals = "wait"` the kernel binds no driver to what
comes until this probe has seen that a rule names it. An unknown device is reported or taken from the kernel; bridges
never are (everything behind them would go with them), nor is what the system's disk or the way to the controller hangs on.
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
from agent.sysfsbuses import PciDevice
from agent.usbrules import Hex4, Reason
from contract.messages import Drift, never_more

SUBSYSTEMS = ("pci", "drivers", "module")
MAX_TOLD = 32
_BRIDGE = "06"
_AUTOPROBE = "drivers_autoprobe"
_REMOVED = "removed"
ClassPattern = Annotated[str, Meta(pattern=r"\A([0-9a-f]{6}|[0-9a-f]{4}\*|[0-9a-f]{2}\*)\Z")]
Slot = Annotated[str, Meta(pattern=r"\A[0-9a-f*]{1,8}:[0-9a-f*]{1,2}:[0-9a-f*]{1,2}\.[0-7*]\Z")]


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[pci.allow]]`: devices that may be there. Every key that is given must match."""

    reason: Reason
    """Why, for the next reader."""
    vendor: Hex4 | None = None
    """As `lspci -n` shows it before the colon."""
    device: Hex4 | None = None
    """After the colon."""
    kind: ClassPattern | None = None
    """Class, subclass and interface: `0108*` is NVMe, `03*` is graphics."""
    slot: Slot | None = None
    """Address, with `*`: `0000:01:*.*`."""
    drivers: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)] | None
    ) = None
    """Which drivers may be bound to it. Empty: none."""
    required: bool = False
    """It is a drift while no such device is there."""

    def __post_init__(self) -> None:
        if self.vendor is None and self.kind is None and self.slot is None:
            raise ValueError("expected at least one of vendor, kind, slot")

    def names(self, found: PciDevice) -> bool:
        """True if the rule speaks of this device."""
        pairs = ((self.vendor, found.vendor), (self.device, found.device))
        return (
            all(wanted is None or wanted == there for wanted, there in pairs)
            and (self.kind is None or fnmatchcase(found.kind, self.kind))
            and (self.slot is None or fnmatchcase(found.address, self.slot))
        )


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[pci]`."""

    unknown: Literal["report", "remove"] = "report"
    """`remove`: take a device from the kernel that no rule names, but no bridge."""
    arrivals: Literal["bind", "wait"] = "bind"
    """`wait`: a device that comes gets no driver before its rule was found."""
    removed: Removed = "tell"
    """Whether a device that a rule names and that went is told, and how loudly."""
    allow: Annotated[list[Allow], Meta(max_length=1024)] = field(default_factory=list)
    """Devices that may be there."""


class Probe(probes.Probe[Section]):
    """Compares the PCI bus with the rules."""

    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._gone = Departures(self.name, section.removed)

    def settle(self, now: float) -> None:
        """Have drivers found for devices that a rule names and that wait: that is what `arrivals = "wait"` is for."""
        try:
            for device in self._waiting():
                self.around.host.pci.bind(device)
        except OSError:
            return  # `observe` reports it

    def unsettled(self) -> frozenset[str]:
        """Return the devices that a rule names and that wait for their drivers."""
        try:
            return frozenset(device.address for device in self._waiting())
        except OSError:
            return frozenset()  # `observe` reports it

    def _waiting(self) -> list[PciDevice]:
        bus = self.around.host.pci
        if self.section.arrivals != "wait" or bus.autoprobe() is not False:
            return []
        rules = ((device, self._rule(device)) for device in bus.devices() if not device.driver)
        return [device for device, rule in rules if rule is not None and rule.drivers != []]

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each device that no rule names or that has another driver, and for each that is missing."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Make arrivals wait; take unknown devices away, if the section says so."""
        wrong = {drift.key for drift in drifts}
        bus = self.around.host.pci
        if _AUTOPROBE in wrong and bus.autoprobe():
            self.remember_first(_AUTOPROBE, "1")
            bus.set_autoprobe(False)
        if self.section.unknown != "remove":
            return
        vital = vital_parts(self.around).pci
        for device in bus.devices():
            if device.address in vital:
                continue  # the system's disk or the way to the controller: told, not taken
            if self._rule(device) is None and not _is_bridge(device) and wrong & {device.address, "devices"}:
                try:
                    bus.remove(device)
                except OSError:
                    continue  # the next observation reports it
                self.remember_first(_REMOVED, device.address)
                self.acted.append(_notice(device))

    def undo(self) -> None:
        """Give drivers to arrivals again, and have the bus looked through for what was taken away."""
        bus = self.around.host.pci
        for key, _ in self.remembered():
            try:
                if key == _AUTOPROBE:
                    bus.set_autoprobe(True)
                else:
                    bus.rescan()
            except OSError:  # there is nothing else to do about it
                pass
            self.forget(key)

    def governs(self, key: str) -> bool:
        """True if the section makes arrivals wait too; and of what was taken away, where a look through the bus would bind it."""
        if key == _AUTOPROBE:
            return self.section.arrivals == "wait"
        try:
            return self.section.unknown == "remove" and self.around.host.pci.autoprobe() is not False
        except OSError:
            return True

    def notices(self, now: float) -> list[Notice]:
        """Return `pci.removed` for each device that was taken away, `pci.gone` for each that went."""
        return self.take_acted() + self._gone.take()

    def _rule(self, device: PciDevice) -> Allow | None:
        return next((rule for rule in self.section.allow if rule.names(device)), None)

    def _differences(self) -> Iterator[Difference]:
        bus = self.around.host.pci
        try:
            devices, autoprobe = bus.devices(), bus.autoprobe()
        except OSError as error:
            yield could_not_look("devices", "a list of PCI devices", error)
            return
        named = [device for device in devices if self._rule(device) is not None]
        self._gone.look(
            {f"{d.address} {d.vendor}:{d.device}": f"PCI device {d.address} ({d.describe()})" for d in named}
        )
        if self.section.arrivals == "wait" and autoprobe:
            yield Difference(_AUTOPROBE, "0", "1")
        yield from bounded("devices", self._each(devices), MAX_TOLD)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(rule.names(device) for device in devices):
                yield Difference(f"allow {number}", f"there ({rule.reason})", "not there")

    def _each(self, devices: Sequence[PciDevice]) -> Iterator[Difference]:
        for device in devices:
            rule = self._rule(device)
            if rule is None:
                yield Difference(device.address, "a device that a rule names", device.describe())
            elif rule.drivers is not None and device.driver and device.driver not in rule.drivers:
                yield Difference(
                    f"{device.address} driver", " or ".join(rule.drivers) or "none", device.driver
                )


def _is_bridge(device: PciDevice) -> bool:
    return device.kind.startswith(_BRIDGE)


def _notice(device: PciDevice) -> Notice:
    detail = {
        "address": device.address,
        "vendor": device.vendor,
        "device": device.device,
        "class": device.kind,
    }
    text = f"PCI device {device.address} ({device.describe()}) is taken away: no rule names it"
    return Notice("pci.removed", "warning", never_more(text, 2048), detail)
