"""`[usb]`: which USB devices, and which interfaces of them, may work on this node.

Default deny: with `default = "block"` devices and interfaces that come later start shut out by the kernel itself, and
this probe lets in what a rule allows. Root hubs are never shut out. A device that is refused and shut out
is as it should be: it is a notice (`usb.refused`), not a drift. What a device says of itself can be
cloned (vendor, product, serial): a rule narrows what is plugged in by mistake or on the cheap; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.devices import MALFORMED, ROOT_HUB, UsbDevice
from agent.probes import Difference, Notice, could_not_look
from contract.messages import Drift, Severity, never_more

Hex4 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{4}\Z")]
Kind = Annotated[str, Meta(pattern=r"\A([0-9a-f]{2}|\*):([0-9a-f]{2}|\*):([0-9a-f]{2}|\*)\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]

DEFAULTS = ("authorized_default", "interface_authorized_default")
_IN, _OUT = "authorized", "not authorized"


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What identifies a device. Every key that is given must match."""

    reason: Reason
    """Why, for the next reader."""
    vendor: Hex4 | None = None
    """`idVendor`, four hexadecimal digits in lower case."""
    product: Hex4 | None = None
    """`idProduct`."""
    serial: Annotated[str, Meta(min_length=1, max_length=126)] | None = None
    """The serial number the device tells."""
    port: Annotated[str, Meta(pattern=r"\A[0-9]+-[0-9]+(\.[0-9]+)*\Z")] | None = None
    """The place in the tree as sysfs names it: `1-2.4`."""

    def names(self, device: UsbDevice) -> bool:
        """True if the rule speaks of this device."""
        pairs = (
            (self.vendor, device.vendor),
            (self.product, device.product),
            (self.serial, device.serial),
            (self.port, device.name),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


class Allow(Rule, frozen=True, kw_only=True):
    """`[[usb.allow]]`: a device that may work, with those of its interfaces that are listed."""

    interfaces: Annotated[list[Kind], Meta(min_length=1, max_length=32)]
    """`class:subclass:protocol` in hexadecimal, `*` for any: `03:01:01` is a boot keyboard, `09:*:*` a hub."""

    def takes(self, kind: str) -> bool:
        """True if an interface of this kind may work."""
        return any(_matches(pattern, kind) for pattern in self.interfaces)


class Block(Rule, frozen=True, kw_only=True):
    """`[[usb.block]]`: a device that may not work whatever else says so."""

    interfaces: Annotated[list[Kind], Meta(max_length=32)] = field(default_factory=list)
    """If given: only devices that offer one of these kinds."""

    def __post_init__(self) -> None:
        if not (self.vendor or self.product or self.serial or self.port or self.interfaces):
            raise ValueError("expected at least one of vendor, product, serial, port, interfaces")

    def hits(self, device: UsbDevice) -> bool:
        """True if the device is to be shut out."""
        kinds = any(_matches(pattern, kind) for pattern in self.interfaces for kind in device.offered)
        return self.names(device) and (kinds or not self.interfaces)


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[usb]`."""

    default: Literal["block", "allow"] = "block"
    """What happens to a device that no rule names."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may work."""
    block: Annotated[list[Block], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may not work; stronger than `allow`."""


class Probe(probes.Probe[Section]):
    """Compares and sets the kernel's `authorized` switches."""

    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._refused: dict[tuple[str, ...], Notice] = {}
        self._told: set[tuple[str, ...]] = set()
        self._admitted: list[Notice] = []

    def settle(self, now: float) -> None:
        """Let in what a rule allows and the kernel shut out because it was told to: an arrival is no drift."""
        if self.section.default != "block":
            return
        for device in self._devices():
            if (
                self._allowed(device)
                and self._waits(device)
                and self._set_device(device)
                and not device.authorized
            ):
                self._admitted.append(_notice("usb.admitted", "info", device, device.offered, "is let in"))

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each switch that is not as the rules want it, and for each that cannot be read."""
        self._refused = {}
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set the switches: the kernel's defaults first, then shut out, then let in."""
        wrong = {drift.key for drift in drifts}
        usb = self.around.host.usb
        try:
            names = usb.names()
        except OSError:
            return
        for name in names:
            if ROOT_HUB.fullmatch(name):
                self._repair_defaults(name, wrong)
        for device in sorted(self._devices(), key=self._allowed):
            if any(key == _key(device) or key.startswith(f"{device.name}:") for key in wrong):
                self._set_device(device)

    def undo(self) -> None:
        """Put the kernel's defaults back. Devices stay as they are: the next baseline judges them."""
        for key, value in self.remembered():
            hub, _, attribute = key.partition(" ")
            try:
                self.around.host.usb.set_default(hub, attribute, value)
            except OSError:  # the hub has gone
                pass
            self.forget(key)

    def governs(self, key: str) -> bool:
        """True if the section shuts the kernel's defaults too."""
        return self.section.default == "block"

    def notices(self, now: float) -> list[Notice]:
        """Return `usb.refused` and `usb.admitted`, once for each device, again after it was plugged in anew."""
        fresh = [notice for identity, notice in self._refused.items() if identity not in self._told]
        self._told = set(self._refused)
        admitted, self._admitted = self._admitted, []
        return fresh + admitted

    def _differences(self) -> Iterator[Difference]:
        usb = self.around.host.usb
        try:
            names = usb.names()
        except OSError as error:
            yield could_not_look("devices", "a list of USB devices", error)
            return
        for name in names:
            try:
                if ROOT_HUB.fullmatch(name):
                    yield from self._default_differences(name)
                elif (device := usb.device(name)) is not None:
                    yield from self._device_differences(device)
            except OSError as error:
                yield could_not_look(name, "a look at the device", error)

    def _default_differences(self, hub: str) -> Iterator[Difference]:
        if self.section.default != "block":
            return
        for attribute in DEFAULTS:
            found = self.around.host.usb.default(hub, attribute)
            if found is not None and found != "0":
                yield Difference(f"{hub} {attribute}", "0", found)

    def _device_differences(self, device: UsbDevice) -> Iterator[Difference]:
        allowed = self._allowed(device)
        if not allowed:
            whole = (device.name, device.number, device.vendor, device.product, device.serial)
            self._refused[whole] = _notice("usb.refused", "warning", device, device.offered, "is refused")
        if device.authorized != allowed:
            wanted = _IN if allowed else f"{_OUT} ({self._why(device)})"
            yield Difference(_key(device), wanted, _IN if device.authorized else _OUT)
        if not (allowed and device.authorized):
            return
        for interface in device.interfaces:
            may = self._may(device, interface.kind)
            if not may:
                part = (interface.name, device.number, interface.kind)
                self._refused[part] = _notice(
                    "usb.refused", "warning", device, (interface.kind,), "is refused"
                )
            if interface.authorized != may:
                found = _IN if interface.authorized else _OUT
                yield Difference(f"{interface.name} {interface.kind}", _IN if may else _OUT, found)

    def _allowed(self, device: UsbDevice) -> bool:
        if any(rule.hits(device) for rule in self.section.block):
            return False
        if self.section.default == "allow":
            return True
        return MALFORMED not in device.offered and any(self._may(device, kind) for kind in device.offered)

    def _may(self, device: UsbDevice, kind: str) -> bool:
        rules = [rule for rule in self.section.allow if rule.names(device)]
        if not rules and self.section.default == "allow":
            return True
        return any(rule.takes(kind) for rule in rules)

    def _why(self, device: UsbDevice) -> str:
        blocking = next((rule for rule in self.section.block if rule.hits(device)), None)
        return f"blocked: {blocking.reason}" if blocking else "no rule allows it"

    def _repair_defaults(self, hub: str, wrong: set[str]) -> None:
        usb = self.around.host.usb
        for attribute in DEFAULTS:
            key = f"{hub} {attribute}"
            try:
                if key in wrong and (found := usb.default(hub, attribute)) is not None:
                    self.remember_first(key, found)
                    usb.set_default(hub, attribute, "0")
            except OSError:
                continue  # the next observation reports it

    def _devices(self) -> Iterator[UsbDevice]:
        """Yield the devices that can be read; `observe` reports the others."""
        usb = self.around.host.usb
        try:
            names = usb.names()
        except OSError:
            return
        for name in names:
            try:
                device = None if ROOT_HUB.fullmatch(name) else usb.device(name)
            except OSError:
                continue
            if device is not None:
                yield device

    def _waits(self, device: UsbDevice) -> bool:
        """True if the device, or an interface of it that may work, is shut out."""
        waiting = [each for each in device.interfaces if not each.authorized and self._may(device, each.kind)]
        return bool(waiting) or not device.authorized

    def _set_device(self, device: UsbDevice) -> bool:
        """Set the switches of a device by what it is now: another may sit in its port. False if it could not be done."""
        usb = self.around.host.usb
        allowed = self._allowed(device)
        try:
            if device.authorized != allowed:
                usb.authorize(device.name, allowed)
            if not allowed:
                return True
            # Its interfaces appear when it is let in, so they are read anew.
            for interface in (usb.device(device.name) or device).interfaces:
                may = self._may(device, interface.kind)
                if interface.authorized != may:
                    usb.authorize_interface(device.name, interface.name, may)
        except OSError:
            return False  # unplugged meanwhile, or reported by the next observation
        return True


def _matches(pattern: str, kind: str) -> bool:
    found = kind.split(":")
    parts = pattern.split(":")
    return len(found) == len(parts) and all(
        part in ("*", have) for part, have in zip(parts, found, strict=True)
    )


def _key(device: UsbDevice) -> str:
    return f"{device.name} {device.vendor}:{device.product}"


def _notice(kind: str, severity: Severity, device: UsbDevice, kinds: Sequence[str], what: str) -> Notice:
    name = f"{device.vendor}:{device.product}" + (f" ({device.label})" if device.label else "")
    detail = {
        "port": device.name,
        "vendor": device.vendor,
        "product": device.product,
        "serial": device.serial,
        "label": device.label,
        "interfaces": " ".join(kinds) or "unknown",
    }
    cut = {key: never_more(value, 2048) for key, value in detail.items()}
    return Notice(kind, severity, never_more(f"USB device {name} at {device.name} {what}", 2048), cut)
