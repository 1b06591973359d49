"""`[chassis]`: the machine's own body: its lid, its temperatures and fans, by the chips that the kernel shows (hwmon).

An opened lid stays a drift as long as the chip's latch is in, over restarts of the agent; nothing here clears it but
the posture `maintenance`, where the section says so: somebody has ordered that, with a name and a reason. Every reading
is a value, when it was taken, and whether it can be believed; one that fails is a drift, with the last good one.

Refuses to steer anything: fans and limits are the firmware's. A physical signal proves little by itself: a sensor can be
warmed, and a switch glued; what it leads to is the controller's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct, field

from agent import probes
from agent.hwmon import Chip, Kind, Sensor
from agent.probes import Difference, Notice, could_not_look
from contract.messages import Drift, never_more

SUBSYSTEMS = ("hwmon",)
Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
MARGIN = {"temperature": 2.0, "fan": 50.0}
"""So far back inside its bounds a reading must be before it counts as good again."""
_STEP = {"temperature": 1, "fan": 100}
"""What is told is rounded to this, so that a reading that wavers is not told anew."""
_UNIT = {"temperature": "°C", "fan": "turns a minute"}


class Temperature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[chassis.temperature]]`: a sensor that must be there and show no more, or less, than this."""

    chip: Word
    """The driver's word for the chip, as in its file `name`: `coretemp`."""
    device: Word | None = None
    """Its place on the bus, where there are several of that name; absent: each of them."""
    label: Word
    """The sensor's label, or `temp1` where it has none."""
    min_c: Annotated[float, Meta(ge=-100, le=200)] | None = None
    max_c: Annotated[float, Meta(ge=-100, le=200)] | None = None
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        _check(self.min_c, self.max_c)


class Fan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[chassis.fan]]`: a fan that must be there and turn as fast as this."""

    chip: Word
    """The driver's word for the chip."""
    device: Word | None = None
    """Its place on the bus, where there are several of that name; absent: each of them."""
    label: Word
    """The fan's label, or `fan1` where it has none."""
    min_rpm: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    max_rpm: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        _check(self.min_rpm, self.max_rpm)


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[chassis]`."""

    intrusion: Literal["alert", "report", "ignore"] = "alert"
    """What an opened lid is: a critical event and a drift, a drift, or not looked at. There must be a switch, unless ignored."""
    clear: Literal["never", "maintenance"] = "never"
    """`maintenance`: in `enforce`, the latch is cleared while the posture is `maintenance`, and that is told."""
    temperature: Annotated[list[Temperature], Meta(max_length=64)] = field(default_factory=list)
    """Temperatures by chip and label."""
    fan: Annotated[list[Fan], Meta(max_length=64)] = field(default_factory=list)
    """Fans by chip and label."""

    def __post_init__(self) -> None:
        for what, listed in (("temperature", self.temperature), ("fan", self.fan)):
            named = [(each.chip, each.device, each.label) for each in listed]
            if len(set(named)) != len(named):
                raise ValueError(f"expected each {what} once")


class Bound(NamedTuple):
    """What one sensor is held to."""

    kind: Kind
    chip: str
    device: str | None
    label: str
    low: float | None
    high: float | None

    def key(self) -> str:
        """Return how a drift names it."""
        return " ".join(each for each in (self.kind, self.chip, self.device, self.label) if each)

    def margin(self) -> float:
        """Return how far inside a reading must be that was outside before."""
        if self.low is None or self.high is None:
            return MARGIN[self.kind]
        return min(MARGIN[self.kind], (self.high - self.low) / 4)

    def wanted(self) -> str:
        """Return the bounds in words."""
        ends = [
            f"from {self.low:g}" if self.low is not None else "",
            f"up to {self.high:g}" if self.high is not None else "",
        ]
        return f"{' '.join(each for each in ends if each)} {_UNIT[self.kind]}"


class Reading(NamedTuple):
    """What a sensor showed."""

    value: float
    at: float
    """Wall clock."""
    quality: Literal["good", "out of bounds"]

    def said(self, kind: str) -> str:
        """Return it in words, with its time, so that nobody takes it for later than it is."""
        at = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{_rounded(self.value, kind)} {_UNIT[kind]} ({self.quality}, {at})"


class Probe(probes.Probe[Section]):
    """Compares what the chips show with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._bounds = [
            Bound("temperature", e.chip, e.device, e.label, e.min_c, e.max_c) for e in section.temperature
        ]
        self._bounds += [Bound("fan", e.chip, e.device, e.label, e.min_rpm, e.max_rpm) for e in section.fan]
        self._last: dict[tuple[str, str], Reading] = {}
        """By key of the bound and place of the chip."""
        self._worst: dict[tuple[str, str], Reading] = {}
        self._opened: dict[str, bool] = {}
        self._fresh: list[Notice] = []

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each opened lid, each reading out of its bounds, and whatever could not be read."""
        return self.drifts(self._differences(now), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Clear the latch of an opened lid, in maintenance and where the section says so; nothing else can be mended."""
        if self.section.clear != "maintenance" or self.around.posture != "maintenance":
            return
        wrong = {drift.key for drift in drifts}
        hwmon = self.around.host.hwmon
        with suppress(OSError):  # the next observation reports it
            for chip in hwmon.chips():
                for attribute in hwmon.intrusions(chip):
                    key = _lid(chip, attribute)
                    if key in wrong and hwmon.opened(chip, attribute):
                        hwmon.clear(chip, attribute)
                        self._opened[key] = False
                        self._fresh.append(
                            _notice("chassis.rearmed", "warning", key, "latch cleared in maintenance")
                        )

    def notices(self, now: float) -> list[Notice]:
        """Return each lid that was opened, was cleared by somebody else, or was cleared here; once."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _differences(self, now: float) -> Iterator[Difference]:
        try:
            chips = self.around.host.hwmon.chips()
        except OSError as error:
            yield could_not_look("chips", "a list of the monitoring chips", error)
            return
        if self.section.intrusion != "ignore":
            yield from self._lids(chips)
        for bound in self._bounds:
            yield from self._held(bound, chips, now)

    def _lids(self, chips: Sequence[Chip]) -> Iterator[Difference]:
        hwmon = self.around.host.hwmon
        switches = [(chip, attribute) for chip in chips for attribute in hwmon.intrusions(chip)]
        if not switches:
            yield could_not_look("intrusion", "a chassis switch", OSError(0, "no chip has one"))
        for chip, attribute in switches:
            key = _lid(chip, attribute)
            try:
                opened = hwmon.opened(chip, attribute)
            except OSError as error:
                yield could_not_look(key, "closed", error)
                continue
            before, self._opened[key] = self._opened.get(key, False), opened
            if opened:
                yield Difference(key, "closed since it was last cleared", "opened")
                if not before and self.section.intrusion == "alert":
                    self._fresh.append(_notice("chassis.intrusion", "critical", key, "the lid was opened"))
            elif before:
                what = "latch cleared, not by this agent: by somebody on the machine, or for want of power"
                self._fresh.append(_notice("chassis.cleared-by-others", "warning", key, what))

    def _held(self, bound: Bound, chips: Sequence[Chip], now: float) -> Iterator[Difference]:
        hwmon = self.around.host.hwmon
        found = 0
        for chip in chips:
            if chip.name != bound.chip or bound.device not in (None, chip.device):
                continue
            self.around.host.breathe()
            try:
                sensors = [
                    each
                    for each in hwmon.sensors(chip)
                    if (each.kind, each.label) == (bound.kind, bound.label)
                ]
            except OSError as error:
                yield could_not_look(bound.key(), bound.wanted(), error)
                continue
            for sensor in sensors:
                found += 1
                yield from self._judged(bound, chip, sensor, now)
        if not found:
            yield could_not_look(
                bound.key(), self._wanted_with_last(bound, None), OSError(0, "no such sensor")
            )

    def _judged(self, bound: Bound, chip: Chip, sensor: Sensor, now: float) -> Iterator[Difference]:
        place = (bound.key(), chip.device or chip.folder)
        try:
            value = self.around.host.hwmon.value(chip, sensor)
        except OSError as error:
            yield could_not_look(bound.key(), self._wanted_with_last(bound, place), error)
            return
        worst = self._worst.get(place)
        margin = bound.margin() if worst is not None else 0.0
        excess = max(
            bound.low + margin - value if bound.low is not None else float("-inf"),
            value - (bound.high - margin) if bound.high is not None else float("-inf"),
        )
        quality: Literal["good", "out of bounds"] = "out of bounds" if excess > 0 else "good"
        self._last[place] = reading = Reading(value, now, quality)
        if excess <= 0:
            self._worst.pop(place, None)
            return
        if worst is None or _further(bound, value, worst.value):
            self._worst[place] = worst = reading
        yield Difference(
            bound.key(), bound.wanted(), f"{_rounded(worst.value, bound.kind)} {_UNIT[bound.kind]}, at worst"
        )

    def _wanted_with_last(self, bound: Bound, place: tuple[str, str] | None) -> str:
        """Return the bounds, and what was read last: a reading that fails must not pass for a good one."""
        last = [
            reading
            for at, reading in self._last.items()
            if at == place or (place is None and at[0] == bound.key())
        ]
        if not last:
            return bound.wanted()
        newest = max(last, key=lambda each: each.at)
        return f"{bound.wanted()}, last {newest.said(bound.kind)}"


def _check(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise ValueError("expected a lowest or a highest value; a sensor without bounds says nothing")
    if low is not None and high is not None and low >= high:
        raise ValueError("expected the lowest value below the highest")


def _lid(chip: Chip, attribute: str) -> str:
    return " ".join(each for each in (chip.name, chip.device, attribute.removesuffix("_alarm")) if each)


def _rounded(value: float, kind: str) -> str:
    step = _STEP[kind]
    return f"{round(value / step) * step:g}"


def _further(bound: Bound, value: float, before: float) -> bool:
    """Tell whether a value is further out than one before, by what is told of it."""
    if _rounded(value, bound.kind) == _rounded(before, bound.kind):
        return False
    high = bound.high is not None and before > bound.high
    return value > before if high else value < before


def _notice(kind: str, severity: Literal["info", "warning", "critical"], key: str, what: str) -> Notice:
    return Notice(kind, severity, never_more(f"{key}: {what}", 2048), {"switch": key})
