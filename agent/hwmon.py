"""Hardware monitoring chips as sysfs shows them: temperatures, fans, the chassis switch. Part of the gate `agent.host`.

Kernel facts (Documentation/hwmon/sysfs-interface.rst): temperatures are in thousandths of a degree Celsius, fans in turns a
minute; `intrusionN_alarm` stays 1 after the lid was opened until 0 is written to it, or the chip loses its power; `_fault` says that a
sensor is broken. Old drivers have the attributes one folder below. Decides nothing; methods raise OSError.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from agent.sysfsbuses import text, write

Kind = Literal["temperature", "fan"]
_HWMON = re.compile(r"hwmon[0-9]{1,4}")
_INPUT = re.compile(r"(temp|fan)([0-9]{1,3})_input")
_INTRUSION = re.compile(r"intrusion[0-9]{1,2}_alarm")
_KINDS: dict[str, Kind] = {"temp": "temperature", "fan": "fan"}
_MILLI = {"temp": 1000.0, "fan": 1.0}


class Chip(NamedTuple):
    """One chip."""

    folder: str
    """`hwmon3`: another one at every boot."""
    name: str
    """The driver's word: `nct6775`, `coretemp`, `nvme`."""
    device: str
    """Its place on the bus: `0000:01:00.0`, `nct6775.656`; tells chips of one name apart. Empty where it has none."""
    attributes: frozenset[str]


class Sensor(NamedTuple):
    """One temperature or fan of a chip."""

    kind: Kind
    label: str
    """The chip's or the board's word, or else the attribute's: `CPU`, `temp1`."""
    stem: str
    """`temp1`."""


class HwmonTree:
    """The chips of a sysfs tree."""

    def __init__(self, sysfs_root: Path) -> None:
        self._class = sysfs_root / "class/hwmon"

    def chips(self) -> list[Chip]:
        """Return every chip, by name and place; none where the kernel has no such class."""
        try:
            names = sorted(os.listdir(self._class))  # noqa: PTH208
        except FileNotFoundError:
            if self._class.parent.parent.is_dir():
                return []
            raise
        found = []
        for name in names:
            if _HWMON.fullmatch(name):
                try:
                    found.append(self._chip(name))
                except FileNotFoundError:
                    if (self._class / name).exists():
                        raise
        return sorted(found, key=lambda chip: (chip.name, chip.device, chip.folder))

    def sensors(self, chip: Chip) -> list[Sensor]:
        """Return a chip's temperatures and fans."""
        found = []
        for attribute in sorted(chip.attributes):
            if match := _INPUT.fullmatch(attribute):
                stem = f"{match[1]}{match[2]}"
                label = text(self._at(chip, f"{stem}_label"), missing="") or stem
                found.append(Sensor(_KINDS[match[1]], label, stem))
        return found

    def value(self, chip: Chip, sensor: Sensor) -> float:
        """Return what a sensor shows now, in degrees Celsius or turns a minute. Raises OSError, also for a broken sensor."""
        if text(self._at(chip, f"{sensor.stem}_fault"), missing="0") != "0":
            raise OSError(errno.EIO, "the chip says that the sensor is broken")
        found = text(self._at(chip, f"{sensor.stem}_input"))
        try:
            return int(found) / _MILLI[sensor.stem.rstrip("0123456789")]
        except ValueError:
            raise OSError(errno.EBADMSG, f"no number: {found[:32]!r}") from None

    def intrusions(self, chip: Chip) -> list[str]:
        """Return the names of a chip's chassis switches: `intrusion0_alarm`."""
        return sorted(each for each in chip.attributes if _INTRUSION.fullmatch(each))

    def opened(self, chip: Chip, attribute: str) -> bool:
        """Tell whether a switch was opened since it was last cleared."""
        found = text(self._at(chip, attribute))
        if found not in ("0", "1"):
            raise OSError(errno.EBADMSG, f"neither 0 nor 1: {found[:32]!r}")
        return found == "1"

    def clear(self, chip: Chip, attribute: str) -> None:
        """Clear a switch's latch; while the lid is open it falls in again."""
        write(self._at(chip, attribute), "0")

    def _chip(self, name: str) -> Chip:
        folder = self._class / name
        listed = set(os.listdir(folder))  # noqa: PTH208
        if "name" not in listed:
            listed = set(os.listdir(folder / "device"))  # noqa: PTH208
        try:
            device = os.readlink(folder / "device").rpartition("/")[2]  # noqa: PTH115
        except OSError:  # a chip of no device
            device = ""
        chip = Chip(name, "", device, frozenset(listed))
        return chip._replace(name=text(self._at(chip, "name")))

    def _at(self, chip: Chip, attribute: str) -> Path:
        folder = self._class / chip.folder
        return folder / attribute if (folder / "name").exists() else folder / "device" / attribute
