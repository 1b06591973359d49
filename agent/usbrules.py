"""Which USB devices and interfaces may work: rules and facts in, verdicts out. PURE: no clock, no files.

Refuses to let anything in by luck: descriptors that do not parse match no rule, a rule whose seats are taken speaks
for nobody else, and what blocks is stronger than what allows. `agent.probes.usb` reads the facts and sets the switches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct, field

from agent.devices import MALFORMED, UsbDevice

Hex4 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{4}\Z")]
Kind = Annotated[str, Meta(pattern=r"\A([0-9a-f]{2}|\*):([0-9a-f]{2}|\*):([0-9a-f]{2}|\*)\Z")]
Exact = Annotated[str, Meta(pattern=r"\A[0-9a-f]{2}:[0-9a-f]{2}:[0-9a-f]{2}\Z")]
Numbered = Annotated[
    str, Meta(pattern=r"\A([0-9a-f]{2}|\*):([0-9a-f]{2}|\*):([0-9a-f]{2}|\*)(@[0-9]{1,3})?\Z")
]
Place = Annotated[str, Meta(pattern=r"\A[0-9]+-[0-9]+(\.[0-9]+)*\Z")]
Hub = Annotated[str, Meta(pattern=r"\A(root|[0-9]+-[0-9]+(\.[0-9]+)*|[0-9a-f]{4}:[0-9a-f]{4})\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SaidText = Annotated[str, Meta(max_length=126)]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
Connect = Literal["hotplug", "hardwired", "not used", "unknown"]

MAX_KINDS = 32
KEYBOARD_KINDS = ("03:01:01", "03:00:*")
"""Boot keyboards, and HID without a boot protocol: what those are only their driver learns, and it may be a keyboard."""


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What identifies a device. Every key that is given must match."""

    reason: Reason
    """Why, for the next reader."""
    vendor: Hex4 | None = None
    """`idVendor`, four hexadecimal digits in lower case."""
    product: Hex4 | None = None
    """`idProduct`."""
    serial: SaidText | None = None
    """The serial number the device tells; empty: it tells none."""
    name: SaidText | None = None
    """The product name it tells."""
    digest: Sha256 | None = None
    """Of texts and descriptors (`agent.devices.device_digest`)."""
    port: Place | None = None
    """The place in the tree as sysfs names it: `1-2.4`."""
    hub: Hub | None = None
    """What it hangs on: `root`, a place, or `vendor:product`."""
    connect: Annotated[list[Connect], Meta(min_length=1, max_length=4)] | None = None
    """What the firmware says of the port."""
    exactly: Annotated[list[Exact], Meta(min_length=1, max_length=MAX_KINDS)] | None = None
    """It offers these interfaces, each as often as written, and no other."""
    all_of: Annotated[list[Kind], Meta(min_length=1, max_length=MAX_KINDS)] | None = None
    """It offers each of these."""
    none_of: Annotated[list[Kind], Meta(min_length=1, max_length=MAX_KINDS)] | None = None
    """It offers none of these."""

    def names(self, device: UsbDevice) -> bool:
        """True if the rule speaks of this device."""
        pairs = (
            (self.vendor, device.vendor),
            (self.product, device.product),
            (self.serial, device.serial),
            (self.name, device.label),
            (self.digest, device.digest),
            (self.port, device.name),
        )
        return (
            all(wanted is None or wanted == found for wanted, found in pairs)
            and (self.hub is None or self.hub in device.hub)
            and (self.connect is None or device.connect in self.connect)
            and self._offers(device)
        )

    def _offers(self, device: UsbDevice) -> bool:
        kinds = device.kinds()
        exact = self.exactly is None or Counter(self.exactly) == Counter(each.kind for each in device.offered)
        every = all(any(matches(each, kind) for kind in kinds) for each in self.all_of or ())
        none = not any(matches(each, kind) for each in self.none_of or () for kind in kinds)
        return exact and every and none


class Allow(Rule, frozen=True, kw_only=True):
    """`[[usb.allow]]`: a device that may work, with those of its interfaces that are listed."""

    interfaces: Annotated[list[Numbered], Meta(min_length=1, max_length=MAX_KINDS)]
    """`class:subclass:protocol` in hexadecimal, `*` for any: `03:01:01` is a boot keyboard, `09:*:*` a hub; `@1`: number 1 only."""
    one_of: Annotated[list[Kind], Meta(min_length=1, max_length=MAX_KINDS)] | None = None
    """It offers at least one of these."""
    max: Annotated[int, Meta(ge=1, le=127)] | None = None
    """So many devices of this rule may be in at once."""
    required: bool = False
    """It is a drift while no such device is there."""
    late_keyboard: bool = False
    """Its keyboard may come at any time, whatever `keyboards` says."""

    def names(self, device: UsbDevice) -> bool:
        """True if the rule speaks of this device."""
        kinds = device.kinds()
        one = self.one_of is None or any(matches(each, kind) for each in self.one_of for kind in kinds)
        return one and super().names(device)

    def takes(self, number: int, kind: str) -> bool:
        """True if an interface of this number and kind may work."""
        for pattern in self.interfaces:
            wanted, _, only = pattern.partition("@")
            if matches(wanted, kind) and only in ("", str(number)):
                return True
        return False


class Block(Rule, frozen=True, kw_only=True):
    """`[[usb.block]]`: a device that may not work whatever else says so."""

    interfaces: Annotated[list[Kind], Meta(max_length=MAX_KINDS)] = field(default_factory=list)
    """If given: only devices that offer one of these kinds."""

    def __post_init__(self) -> None:
        if not self.interfaces and self.blocks_everywhere():
            raise ValueError("expected at least one key besides reason")

    def blocks_everywhere(self) -> bool:
        """True if nothing but the kinds of its interfaces decides whom the rule hits."""
        keys = (key for key in self.__struct_fields__ if key not in ("reason", "interfaces"))
        return all(getattr(self, key) is None for key in keys)

    def hits(self, device: UsbDevice) -> bool:
        """True if the device is to be shut out."""
        kinds = any(matches(pattern, kind) for pattern in self.interfaces for kind in device.kinds())
        return self.names(device) and (kinds or not self.interfaces)


class Policy(NamedTuple):
    """The section, as far as verdicts depend on it."""

    allow: Sequence[Allow]
    block: Sequence[Block]
    default: Literal["block", "allow"]
    present: Literal["apply", "keep", "allow", "block"]
    inserted: Literal["apply", "block"]
    keyboards: Literal["any", "one", "boot"]
    boot_s: float
    granted: Mapping[str, Collection[str]] = {}
    """`vendor:product` that a grant lets in for now, with the kinds of its interfaces that may work."""


class Verdict(NamedTuple):
    """What is to become of one device."""

    allowed: bool
    interfaces: dict[str, bool]
    """By name, for the interfaces that exist now."""
    why: str
    """Why it is shut out."""
    kept: bool = False
    """It stays as it is, whatever that is."""
    granted: bool = False
    """It works by a grant."""


class _Seats:
    """Who has come before: devices are judged in order, those that work already first."""

    def __init__(self) -> None:
        self.taken: Counter[int] = Counter()
        self.keyboard = False


def judge(policy: Policy, devices: Sequence[UsbDevice]) -> dict[str, Verdict]:
    """Return the verdict for each device, by its place.

    What works already keeps its seat; of the others the one that was plugged in first gets it.
    """
    seats = _Seats()
    ranked = sorted(devices, key=_rank)
    verdicts = {}
    for device in ranked:
        verdict = verdicts[device.name] = _judge(policy, device, seats)
        types = any(verdict.interfaces[each.name] and is_keyboard(each.kind) for each in device.interfaces)
        seats.keyboard = seats.keyboard or types
    return verdicts


def was_present(policy: Policy, device: UsbDevice) -> bool:
    """Tell whether a device was there when the machine had started. What cannot be told is taken for inserted later."""
    return device.connected_s is not None and device.connected_s <= policy.boot_s


def matches(pattern: str, kind: str) -> bool:
    """True if a kind is one of the pattern: `03:*:*`."""
    found = kind.split(":")
    parts = pattern.split(":")
    return len(found) == len(parts) and all(
        part in ("*", have) for part, have in zip(parts, found, strict=True)
    )


def _judge(policy: Policy, device: UsbDevice, seats: _Seats) -> Verdict:
    # 1. What blocks is stronger than everything, and what does not parse is let in by nobody.
    blocking = next((rule for rule in policy.block if rule.hits(device)), None)
    if blocking is not None:
        return _out(device, f"blocked: {blocking.reason}")
    present = was_present(policy, device)
    if present and policy.present == "keep":
        return Verdict(
            device.authorized, {each.name: each.authorized for each in device.interfaces}, "", True
        )
    if MALFORMED in device.kinds():
        return _out(device, "its descriptors do not parse")
    # 2. A grant names it, or the default of its kind of arrival decides.
    granted = policy.granted.get(f"{device.vendor}:{device.product}", ())
    taken = {each.name: any(matches(pattern, each.kind) for pattern in granted) for each in device.interfaces}
    if any(matches(pattern, kind) for pattern in granted for kind in device.kinds()):
        return Verdict(True, taken, "", granted=True)
    if present and policy.present == "allow":
        return Verdict(True, {each.name: True for each in device.interfaces}, "")
    if present and policy.present == "block":
        return _out(device, "was there at boot")
    if not present and policy.inserted == "block":
        return _out(device, "came after boot")
    return _by_rules(policy, device, present, seats)


def _by_rules(policy: Policy, device: UsbDevice, present: bool, seats: _Seats) -> Verdict:
    # 3. Rules that name it and have a seat left.
    naming = [(n, rule) for n, rule in enumerate(policy.allow) if rule.names(device)]
    free = [(n, rule) for n, rule in naming if rule.max is None or seats.taken[n] < rule.max]
    if naming and not free:
        return _out(device, "no more of these: " + "; ".join(rule.reason for _, rule in naming))
    # 4. Interfaces: those of its rules, and keyboards only where one may come now.
    late = policy.keyboards != "any" and (seats.keyboard or (policy.keyboards == "boot" and not present))

    def may(number: int, kind: str) -> bool:
        taking = [rule for _, rule in free if rule.takes(number, kind)]
        if not taking and (naming or policy.default != "allow"):
            return False
        return not (late and is_keyboard(kind)) or any(rule.late_keyboard for rule in taking)

    open_kinds = {each for each in device.offered if may(each.number, each.kind)}
    if not open_kinds and (naming or policy.default != "allow" or device.offered):
        held = late and any(is_keyboard(each.kind) for each in device.offered)
        why = "no rule allows it" if not held else "a keyboard that comes late"
        return _out(device, why)
    for n, _ in free:
        seats.taken[n] += 1
    seats.keyboard = seats.keyboard or any(is_keyboard(each.kind) for each in open_kinds)
    return Verdict(True, {each.name: may(each.number, each.kind) for each in device.interfaces}, "")


def _rank(device: UsbDevice) -> tuple[bool, bool, float, str]:
    types = any(each.authorized and is_keyboard(each.kind) for each in device.interfaces)
    return not device.authorized, not types, round(device.connected_s or 0, 1), device.name


def is_keyboard(kind: str) -> bool:
    """True if an interface of this kind can type."""
    return any(matches(each, kind) for each in KEYBOARD_KINDS)


def _out(device: UsbDevice, why: str) -> Verdict:
    return Verdict(False, {each.name: False for each in device.interfaces}, why)
