"""Monitoring chips in a sysfs of the test's own, laid out as Documentation/hwmon/sysfs-interface.rst says."""

from __future__ import annotations

from pathlib import Path


class Chips:
    """`class/hwmon` with a board's chip (lid, fan, two temperatures) and two disks of one name."""

    def __init__(self, sysfs: Path) -> None:
        self.sysfs = sysfs
        self.board = self.add("hwmon0", "nct6775", "platform/nct6775.656")
        for name, value in {
            "intrusion0_alarm": "0",
            "temp1_input": "41000",
            "temp1_label": "CPU",
            "temp2_input": "30500",
            "fan1_input": "2400",
            "fan1_label": "CPU",
        }.items():
            self.put(self.board, name, value)
        for number, place in ((1, "pci0000:00/0000:01:00.0"), (2, "pci0000:00/0000:02:00.0")):
            self.put(self.add(f"hwmon{number}", "nvme", place), "temp1_input", "35000")

    def add(self, folder: str, name: str, place: str) -> Path:
        """Add a chip; return its folder."""
        device = self.sysfs / "devices" / place
        chip = device / "hwmon" / folder
        chip.mkdir(parents=True)
        (chip / "device").symlink_to(device)
        self.put(chip, "name", name)
        (self.sysfs / "class/hwmon").mkdir(parents=True, exist_ok=True)
        (self.sysfs / "class/hwmon" / folder).symlink_to(chip)
        return chip

    def put(self, chip: Path, name: str, value: str) -> None:
        """Make an attribute show a value."""
        (chip / name).write_text(value + "\n")
