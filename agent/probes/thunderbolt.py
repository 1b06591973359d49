"""`[thunderbolt]`: which Thunderbolt and USB4 devices may have a PCIe tunnel, and how the host controllers are set up.

A tunnel is a PCI slot outside the case. With a security level of `user` or `secure` the kernel opens none by itself, and this probe
opens those that a rule allows. Names and ids are the device's own claims; the `uuid` is burnt in, but it is told by the
device as well: only `secure` (a key kept on both sides, by boltd) proves a device, and only DMA protection bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.probes import Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.probes._gone import Departures, Removed
from agent.sysfsbuses import ThunderboltDevice
from agent.usbrules import Reason
from contract.messages import Drift, Severity, never_more

SUBSYSTEMS = ("thunderbolt",)
MAX_TOLD = 32
Uuid = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,4}\Z")]
Place = Annotated[str, Meta(pattern=r"\A[0-9]+-[0-9a-f]+\Z")]
SaidText = Annotated[str, Meta(min_length=1, max_length=126)]
Security = Literal["none", "user", "secure", "dponly", "usbonly", "nopcie"]
_IN, _OUT = "authorized", "not authorized"


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[thunderbolt.allow]]`: a device that may have its tunnel. Every key that is given must match."""

    reason: Reason
    """Why, for the next reader."""
    uuid: Uuid | None = None
    """`unique_id`."""
    vendor: Hex | None = None
    """Number of the vendor, hexadecimal without `0x`."""
    device: Hex | None = None
    """Number of the device."""
    vendor_name: SaidText | None = None
    """What it calls its maker."""
    device_name: SaidText | None = None
    """What it calls itself."""
    place: Place | None = None
    """Domain and route: `0-3`."""
    required: bool = False
    """It is a drift while no such device is there."""

    def __post_init__(self) -> None:
        if not any(getattr(self, key) for key in ("uuid", "vendor", "vendor_name", "device_name", "place")):
            raise ValueError("expected at least one of uuid, vendor, vendor_name, device_name, place")

    def names(self, found: ThunderboltDevice) -> bool:
        """True if the rule speaks of this device."""
        pairs = (
            (self.uuid, found.uuid),
            (self.vendor, found.vendor),
            (self.device, found.device),
            (self.vendor_name, found.vendor_name),
            (self.device_name, found.device_name),
            (self.place, found.name),
        )
        return all(wanted is None or wanted == there for wanted, there in pairs)


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[thunderbolt]`."""

    security: Annotated[list[Security], Meta(min_length=1)] = field(
        default_factory=lambda: ["user", "secure", "dponly", "usbonly", "nopcie"]
    )
    """Which levels a host controller may be set to, in the firmware. With `none` every device has its tunnel at once."""
    dma_protection: Literal["required", "any"] = "any"
    """Whether the IOMMU must stand before the memory."""
    removed: Removed = "tell"
    """Whether a device that a rule names and that went is told, and how loudly."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may have their tunnel."""


class Probe(probes.Probe[Section]):
    """Compares and sets the `authorized` switches."""

    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._refused: dict[tuple[str, ...], Notice] = {}
        self._told: set[tuple[str, ...]] = set()
        self._gone = Departures(self.name, section.removed)

    def unsettled(self) -> frozenset[str]:
        """Return the devices that a rule allows and that wait for their tunnels."""
        try:
            return frozenset(f"{device.name} {device.uuid}" for device in self._waiting())
        except OSError:
            return frozenset()  # `observe` reports it

    def settle(self, now: float) -> None:
        """Open the tunnels of devices that a rule allows: an arrival is no drift."""
        try:
            for device in self._waiting():
                self.around.host.thunderbolt.authorize(device, True)
                self.acted.append(_notice("thunderbolt.admitted", "info", device, "is let in"))
        except OSError:
            return  # `observe` reports it

    def _waiting(self) -> list[ThunderboltDevice]:
        devices = self.around.host.thunderbolt.devices()
        return [each for each in devices if not each.authorized and self._allowed(each)]

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each switch that is not as the rules want it, and for each controller that is set up otherwise."""
        self._refused = {}
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Close the tunnels of devices that no rule allows, then open those of others."""
        wrong = {drift.key for drift in drifts}
        bus = self.around.host.thunderbolt
        for device in sorted(bus.devices(), key=self._allowed):
            allowed = self._allowed(device)
            if device.authorized != allowed and wrong & {device.name, "devices"}:
                try:
                    bus.authorize(device, allowed)
                except OSError:
                    continue  # the next observation reports it

    def notices(self, now: float) -> list[Notice]:
        """Return `thunderbolt.refused` and `thunderbolt.admitted`, once for each device until it is unplugged."""
        fresh = [notice for key, notice in self._refused.items() if key not in self._told]
        self._told = set(self._refused)
        return fresh + self.take_acted() + self._gone.take()

    def _allowed(self, device: ThunderboltDevice) -> bool:
        return any(rule.names(device) for rule in self.section.allow)

    def _differences(self) -> Iterator[Difference]:
        bus = self.around.host.thunderbolt
        try:
            domains, devices = bus.domains(), bus.devices()
        except OSError as error:
            yield could_not_look("devices", "a list of Thunderbolt devices", error)
            return
        named = [device for device in devices if self._allowed(device)]
        self._gone.look(
            {f"{d.name} {d.uuid}": f"Thunderbolt device {d.device_name} at {d.name}" for d in named}
        )
        for domain in domains:
            if domain.security not in self.section.security:
                yield Difference(
                    f"{domain.name} security", " or ".join(self.section.security), domain.security
                )
            if self.section.dma_protection == "required" and not domain.dma_protection:
                yield Difference(f"{domain.name} iommu_dma_protection", "1", "0")
        yield from bounded("devices", self._each(devices), MAX_TOLD)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(rule.names(device) for device in devices):
                yield Difference(f"allow {number}", f"plugged in ({rule.reason})", "not there")

    def _each(self, devices: Sequence[ThunderboltDevice]) -> Iterator[Difference]:
        for device in devices:
            allowed = self._allowed(device)
            if not allowed:
                key = (device.name, device.uuid)
                self._refused[key] = _notice(
                    "thunderbolt.refused", "warning", device, "is refused: no rule allows it"
                )
            if device.authorized != allowed:
                yield Difference(
                    device.name, _IN if allowed else f"{_OUT} (no rule allows it)", _OUT if allowed else _IN
                )


def _notice(kind: str, severity: Severity, device: ThunderboltDevice, what: str) -> Notice:
    detail = {
        "place": device.name,
        "uuid": device.uuid,
        "vendor": device.vendor,
        "device": device.device,
        "vendor_name": device.vendor_name,
        "device_name": device.device_name,
    }
    text = f"Thunderbolt device {device.vendor_name} {device.device_name} at {device.name} {what}"
    cut = {key: never_more(value, 2048) for key, value in detail.items()}
    return Notice(kind, severity, never_more(text, 2048), cut)
