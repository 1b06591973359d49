"""Draft of `[chassis]`: whether there is a switch, and the temperatures and fans with bounds that what they show now fits."""

from __future__ import annotations

from agent.hwmon import Chip
from agent.learning import Draft, entry, section
from agent.probes import Surroundings

_ROOM_C = 30.0
_SHARE = 0.5


def draft(around: Surroundings) -> Draft:
    """Return what this machine's chips show. Raises OSError."""
    hwmon = around.host.hwmon
    chips = hwmon.chips()
    switches = [(chip, each) for chip in chips for each in hwmon.intrusions(chip)]
    opened = any(hwmon.opened(chip, each) for chip, each in switches)
    decide = "the lid was opened since the latch was last cleared: by whom?" if opened else ""
    text = [section("chassis", {"intrusion": "alert" if switches else "ignore"}, decide=decide)]
    left_out = [] if chips else ["chassis: the kernel shows no monitoring chip"]
    for chip in chips:
        for sensor in hwmon.sensors(chip):
            try:
                value = hwmon.value(chip, sensor)
            except OSError as error:
                left_out.append(f"chassis: {chip.name} {sensor.label}: {error.strerror}")
                continue
            keys: dict[str, object] = {
                "chip": chip.name,
                "device": _place(chip, chips),
                "label": sensor.label,
            }
            if sensor.kind == "temperature":
                keys["max_c"] = float(round(value + _ROOM_C))
            elif value > 0:
                keys["min_rpm"] = round(value * _SHARE)
            else:
                left_out.append(f"chassis: {chip.name} {sensor.label}: a fan that stands, or is not there")
                continue
            text.append(
                entry(f"chassis.{sensor.kind}", keys, decide="what may it be at most, at its hottest?")
            )
    return Draft("\n".join(text), left_out)


def _place(chip: Chip, chips: list[Chip]) -> str | None:
    """Return what tells a chip from others of its name; None where nothing has to."""
    return (chip.device or None) if sum(each.name == chip.name for each in chips) > 1 else None
