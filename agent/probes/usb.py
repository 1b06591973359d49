"""`[usb]`: which USB devices, and which interfaces of them, may work on this node.

Default deny: with `default = "block"` devices and interfaces that come later start shut out by the kernel itself, and
this probe lets in what a rule allows (`agent.usbrules` decides). Root hubs are never shut out. A device that is refused
and shut out is as it should be: it is a notice (`usb.refused`), not a drift. What a device says of itself can be
cloned, all of it: a rule narrows what is plugged in by mistake or on the cheap; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, field

from agent import probes
from agent.devices import ROOT_HUB, USBCORE, UsbDevice
from agent.probes import Contradiction, Difference, Notice, could_not_look
from agent.usbrules import Allow, Block, Policy, Verdict, judge, matches
from contract.messages import Drift, Severity, never_more

SUBSYSTEMS = ("usb",)
DEFAULTS = ("authorized_default", "interface_authorized_default")
_IN, _OUT = "authorized", "not authorized"


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[usb]`."""

    default: Literal["block", "allow"] = "block"
    """What happens to a device that no rule names."""
    present: Literal["apply", "keep", "allow", "block"] = "apply"
    """What happens to devices that were there at boot: rules and default apply, they stay as they are, all or none may work."""
    inserted: Literal["apply", "block"] = "apply"
    """What happens to devices that come later: rules and default apply, or none may work (but for grants)."""
    removed: Literal["ignore", "tell", "warn"] = "tell"
    """Whether a device that worked and was pulled out is told, and how loudly."""
    keyboards: Literal["any", "one", "boot"] = "any"
    """`one`: none beside one that works; `boot`: none that comes later, besides; a rule can except its own."""
    boot_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    """What was plugged in within so many seconds of the kernel's start was there at boot."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may work."""
    block: Annotated[list[Block], Meta(max_length=256)] = field(default_factory=list)
    """Devices that may not work; stronger than `allow`."""

    def policy(self, granted: Mapping[str, Collection[str]]) -> Policy:
        """Return what verdicts depend on."""
        return Policy(
            allow=self.allow,
            block=self.block,
            default=self.default,
            present=self.present,
            inserted=self.inserted,
            keyboards=self.keyboards,
            boot_s=self.boot_s,
            granted=granted,
        )

    def shuts(self) -> bool:
        """True if a device has to wait for its verdict: whenever there is one that could go against it."""
        asks = self.inserted == "block" or self.keyboards != "any"
        return self.default == "block" or asks or bool(self.allow or self.block)


def advice(
    parsed: Mapping[str, probes.SectionBase], interfaces: Collection[str] | None
) -> Iterator[Contradiction]:
    """Warn of rules that can let nothing in, because a rule for every device blocks all that they name."""
    section = parsed["usb"]
    if not isinstance(section, Section):
        return
    blocked = [pattern for rule in section.block if rule.blocks_everywhere() for pattern in rule.interfaces]
    for number, rule in enumerate(section.allow):
        wanted = [pattern.partition("@")[0] for pattern in rule.interfaces]
        if all(any(matches(each, pattern) for each in blocked) for pattern in wanted):
            yield Contradiction(
                ("usb", "allow", number, "interfaces"),
                "nothing gets in by this rule: [[usb.block]], which is stronger, shuts out every device that offers these",
            )


class Probe(probes.Probe[Section]):
    """Compares and sets the kernel's `authorized` switches."""

    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._refused: dict[tuple[str, ...], Notice] = {}
        self._told: set[tuple[str, ...]] = set()
        self._worked: dict[tuple[str, ...], UsbDevice] = {}
        self._removed: list[Notice] = []

    def settle(self, now: float) -> None:
        """Let in what a rule allows and the kernel shut out because it was told to: an arrival is no drift."""
        for device, verdict in self._waiting():
            if self._set_device(device, verdict) and not device.authorized:
                grant = self._note_use(device, verdict)
                what = "is let in" + (f" under grant {grant}" if grant else "")
                self.acted.append(_notice("usb.admitted", "info", device, device.kinds(), what, grant=grant))

    def unsettled(self) -> frozenset[str]:
        """Return the devices that a rule allows and that wait to be let in."""
        return frozenset(_mark(_identity(device)) for device, _ in self._waiting())

    def _waiting(self) -> list[tuple[UsbDevice, Verdict]]:
        if not self.section.shuts():
            return []
        judged = self._judged(self._look()[0])
        return [each for each in judged if each[1].allowed and not each[1].kept and _waits(*each)]

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each switch that is not as the rules want it, and for each that cannot be read."""
        self._refused = {}
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set the switches: the kernel's defaults first, then shut out, then let in."""
        wrong = {drift.key for drift in drifts}
        usb = self.around.host.usb
        try:
            hubs = [name for name in usb.names() if ROOT_HUB.fullmatch(name)]
        except OSError:
            return
        for hub in [USBCORE, *hubs]:
            self._repair_defaults(hub, wrong)
        devices, _ = self._look()
        for device, verdict in sorted(self._judged(devices), key=lambda each: each[1].allowed):
            meant = any(key == _key(device) or key.startswith(f"{device.name}:") for key in wrong)
            if meant and self._set_device(device, verdict) and verdict.allowed > device.authorized:
                self._note_use(device, verdict)

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
        return self.section.shuts()

    def notices(self, now: float) -> list[Notice]:
        """Return `usb.refused`, `usb.admitted` and `usb.removed`, once for each device, again after it was plugged in anew.

        A device that is let in by a grant is a use of it: `grant.used`.
        """
        fresh = [notice for identity, notice in self._refused.items() if identity not in self._told]
        self._told = set(self._refused)
        removed, self._removed = self._removed, []
        return fresh + self.take_acted() + removed

    def _look(self) -> tuple[list[UsbDevice], list[Difference]]:
        """Return the devices that can be read, and what could not be looked at."""
        usb = self.around.host.usb
        devices, unseen = [], []
        try:
            names = usb.names()
        except OSError as error:
            return [], [could_not_look("devices", "a list of USB devices", error)]
        for name in names:
            try:
                device = None if ROOT_HUB.fullmatch(name) else usb.device(name)
            except OSError as error:
                unseen.append(could_not_look(name, "a look at the device", error))
                continue
            if device is not None:
                devices.append(device)
        return devices, unseen

    def _judged(self, devices: Sequence[UsbDevice]) -> list[tuple[UsbDevice, Verdict]]:
        granted = {name: kinds for grant in self.around.grants for name, kinds in grant.usb}
        verdicts = judge(self.section.policy(granted), devices)
        return [(device, verdicts[device.name]) for device in devices]

    def _differences(self) -> Iterator[Difference]:
        devices, unseen = self._look()
        yield from unseen
        yield from self._default_differences()
        for device, verdict in self._judged(devices):
            yield from self._device_differences(device, verdict)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(rule.names(device) for device in devices):
                yield Difference(f"allow {number}", f"plugged in ({rule.reason})", "not there")
        if not unseen:
            self._note_removed(devices)

    def _default_differences(self) -> Iterator[Difference]:
        if not self.section.shuts():
            return
        usb = self.around.host.usb
        try:
            hubs = [name for name in usb.names() if ROOT_HUB.fullmatch(name)]
        except OSError:
            return  # told already
        for hub, attributes in [(USBCORE, DEFAULTS[:1]), *((hub, DEFAULTS) for hub in hubs)]:
            for attribute in attributes:
                try:
                    found = usb.default(hub, attribute)
                except OSError as error:
                    yield could_not_look(f"{hub} {attribute}", "0", error)
                    continue
                if found is not None and found != "0":
                    yield Difference(f"{hub} {attribute}", "0", found)

    def _device_differences(self, device: UsbDevice, verdict: Verdict) -> Iterator[Difference]:
        if verdict.kept:
            return
        grant = self._granted(_identity(device))
        if not verdict.allowed:
            over = f"; grant {grant} is over" if grant else ""
            what = f"is refused: {verdict.why}{over}"
            self._refused[_identity(device)] = _notice(
                "usb.refused", "warning", device, device.kinds(), what, grant=grant
            )
        if device.authorized != verdict.allowed:
            wanted = _IN if verdict.allowed else f"{_OUT} ({verdict.why})"
            yield Difference(_key(device), wanted, _IN if device.authorized else _OUT)
        if not (verdict.allowed and device.authorized):
            return
        for interface in device.interfaces:
            may = verdict.interfaces[interface.name]
            if not may:
                part = (interface.name, device.number, interface.kind)
                self._refused[part] = _notice(
                    "usb.refused",
                    "warning",
                    device,
                    (interface.kind,),
                    f"has interface {interface.name} refused",
                    grant=grant,
                )
            if interface.authorized != may:
                found = _IN if interface.authorized else _OUT
                yield Difference(f"{interface.name} {interface.kind}", _IN if may else _OUT, found)

    def _note_removed(self, devices: Sequence[UsbDevice]) -> None:
        worked = {_identity(device): device for device in devices if device.authorized}
        there = {_identity(device) for device in devices}
        if self.section.removed != "ignore":
            severity: Severity = "warning" if self.section.removed == "warn" else "info"
            for identity, device in self._worked.items():
                if identity not in there:
                    grant = self._granted(identity)
                    self._removed.append(
                        _notice(
                            "usb.removed", severity, device, device.kinds(), "was pulled out", grant=grant
                        )
                    )
        self._worked = worked
        marks = {_mark(identity) for identity in there}
        self.marks = {mark: grant for mark, grant in self.marks.items() if mark in marks}

    def _note_use(self, device: UsbDevice, verdict: Verdict) -> int:
        """Put on record which grant a device was let in by; return its id, 0 for none."""
        if not verdict.granted:
            return 0
        name = f"{device.vendor}:{device.product}"
        # The last of those that name it, as `_judged` has it.
        grant = [each.id for each in self.around.grants if any(name == known for known, _ in each.usb)][-1]
        self.marks[_mark(_identity(device))] = str(grant)
        source = f"USB {name} at {device.name}" + (f", serial {device.serial}" if device.serial else "")
        detail = {"grant": str(grant), "source": never_more(source, 2048)}
        summary = never_more(f"grant {grant}: used by {source}", 2048)
        self.acted.append(Notice("grant.used", "info", summary, detail))
        return grant

    def _granted(self, identity: tuple[str, ...]) -> int:
        """Return which grant a device was let in by; 0 for none."""
        return int(self.marks.get(_mark(identity), 0))

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

    def _set_device(self, device: UsbDevice, verdict: Verdict) -> bool:
        """Set the switches of a device. False if it could not be done, or another sits in its port by now."""
        usb = self.around.host.usb
        try:
            there = usb.device(device.name)
            if there is None or _identity(there) != _identity(device) or there.offered != device.offered:
                return False  # judged by the next look
            if there.authorized != verdict.allowed:
                usb.authorize(device.name, verdict.allowed)
            if not verdict.allowed:
                return True
            # Its interfaces appear when it is let in, so they are read and judged anew.
            devices, _ = self._look()
            for again, now in self._judged(devices):
                if _identity(again) == _identity(device) and now.allowed:
                    for interface in again.interfaces:
                        may = now.interfaces[interface.name]
                        if interface.authorized != may:
                            usb.authorize_interface(device.name, interface.name, may)
        except OSError:
            return False  # unplugged meanwhile, or reported by the next observation
        return True


def _waits(device: UsbDevice, verdict: Verdict) -> bool:
    """True if the device, or an interface of it that may work, is shut out."""
    waiting = any(not each.authorized and verdict.interfaces[each.name] for each in device.interfaces)
    return waiting or not device.authorized


def _identity(device: UsbDevice) -> tuple[str, ...]:
    return (device.name, device.number, device.vendor, device.product, device.serial)


def _mark(identity: tuple[str, ...]) -> str:
    return "\x1f".join(identity)


def _key(device: UsbDevice) -> str:
    return f"{device.name} {device.vendor}:{device.product}"


def _notice(
    kind: str, severity: Severity, device: UsbDevice, kinds: Sequence[str], what: str, *, grant: int = 0
) -> Notice:
    name = f"{device.vendor}:{device.product}" + (f" ({device.label})" if device.label else "")
    detail = {
        "port": device.name,
        "vendor": device.vendor,
        "product": device.product,
        "serial": device.serial,
        "label": device.label,
        "interfaces": " ".join(kinds) or "unknown",
        "digest": device.digest or "",
    }
    if grant:
        detail["grant"] = str(grant)
    cut = {key: never_more(value, 2048) for key, value in detail.items()}
    return Notice(kind, severity, never_more(f"USB device {name} at {device.name} {what}", 2048), cut)
