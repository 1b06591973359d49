"""The device sections on what a process takes for the machine's own /sys: umockdev, with the devices it knows to play.

The tests of this file run in a process of their own under `umockdev-wrapper`; the first one starts it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agent import learn_devices, probes
from agent.host import Host
from agent.probes import Surroundings
from contract.baseline import parse_baseline
from tests.agent.probes.case import HEAD, probe_of
from tests.parts.umockdev import Testbed, under_umockdev
from tests.parts.usbtree import KEYBOARD, KNOWN_KEYBOARD, STORAGE, STORAGE_STICK, Device

inside = pytest.mark.skipif(not under_umockdev(), reason="runs in the process that the first test starts")
USB = """\
[usb]
[[usb.allow]]
vendor = "046d"
product = "c31c"
exactly = ["03:01:01", "03:00:00"]
interfaces = ["03:*:*"]
reason = "service keyboard"
"""
DOCK = """\
P: /devices/pci0000:00/0000:00:0d.2/domain0
E: SUBSYSTEM=thunderbolt
E: DEVTYPE=thunderbolt_domain
A: security=user\\n
A: iommu_dma_protection=1\\n

P: /devices/pci0000:00/0000:00:0d.2/domain0/0-0/0-1
E: SUBSYSTEM=thunderbolt
E: DEVTYPE=thunderbolt_device
A: unique_id=c4010000-0000-7508-2314-c1e1a1c01921\\n
A: vendor=0xd4\\n
A: device=0xb070\\n
A: vendor_name=CalDigit, Inc.\\n
A: device_name=TS3 Plus\\n
A: authorized=1\\n

P: /devices/pci0000:00/0000:05:00.0
E: SUBSYSTEM=pci
A: vendor=0x1234\\n
A: device=0x5678\\n
A: class=0x088000\\n
A: remove=

"""
BOARD = """\
P: /devices/platform/nct6775.656
E: SUBSYSTEM=platform

P: /devices/platform/nct6775.656/hwmon/hwmon3
E: SUBSYSTEM=hwmon
L: device=../../../nct6775.656
A: name=nct6775\\n
A: intrusion0_alarm=0\\n
A: temp1_label=CPU\\n
A: temp1_input=41000\\n
A: fan1_input=2400\\n
"""
CHASSIS = """\
[chassis]
clear = "maintenance"
[[chassis.temperature]]
chip = "nct6775"
device = "nct6775.656"
label = "CPU"
max_c = 85
reason = "it throttles at 95"
[[chassis.fan]]
chip = "nct6775"
label = "fan1"
min_rpm = 600
reason = "a fan that stands means dust"
"""


@pytest.mark.skipif(under_umockdev(), reason="the others do the work")
def test_d03_d05_under_umockdev() -> None:
    done = subprocess.run(
        ["umockdev-wrapper", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", __file__],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout or "...." in done.stdout


@pytest.fixture
def bed() -> Iterator[Testbed]:
    made = Testbed()
    made.root_hub()
    yield made
    made.close()


@inside
def test_d03_a_hot_plugged_device_is_decided_by_its_uevent(bed: Testbed) -> None:
    host = Host()  # the roots of a real machine
    probe = probe_of("usb", USB, Surroundings(host=host))
    probe.repair(probe.observe(1.0), 1.0)
    hub = "devices/pci0000:00/0000:00:14.0/usb1"
    assert bed.read(f"{hub}/authorized_default") == "0" and bed.read(f"{hub}/authorized") == "1"
    decided: list[float] = []

    def decide(section: str) -> None:
        probe.settle(1.0)
        decided.append(time.monotonic())

    events = host.watch_devices({"usb": ["usb"]}, decide)
    try:
        time.sleep(0.2)
        decided.clear()
        begun = time.monotonic()
        keyboard = bed.plug("1-1", KNOWN_KEYBOARD, number=2)
        while bed.read(f"{keyboard}/authorized") != "1" and time.monotonic() < begun + 20:
            time.sleep(0.001)
        took_s = time.monotonic() - begun
        stick = bed.plug("1-2", STORAGE_STICK, number=3)
        time.sleep(0.5)
    finally:
        events.stop()
    assert decided and took_s < 20, f"{took_s:.3f} s"
    assert bed.read(f"{stick}/authorized") == "0"
    kinds = {each.detail["port"]: each.kind for each in (probe.observe(2.0) and []) or probe.notices(2.0)}
    assert kinds == {"1-1": "usb.admitted", "1-2": "usb.refused"}


@inside
def test_d02_a_keyboard_with_storage_in_it_stays_out(bed: Testbed) -> None:
    probe = probe_of("usb", USB, Surroundings(host=Host()))
    path = bed.plug("1-4", Device(0x046D, 0xC31C, "Keyboard K120", interfaces=(KEYBOARD, STORAGE)), number=7)
    for _ in range(2):
        probe.settle(1.0)
        probe.repair(probe.observe(1.0), 1.0)
    assert bed.read(f"{path}/authorized") == "0"


@inside
def test_d03_a_device_that_worked_and_went_is_told(bed: Testbed) -> None:
    probe = probe_of("usb", USB, Surroundings(host=Host()))
    path = bed.plug("1-1", KNOWN_KEYBOARD, number=2)
    probe.settle(1.0)
    probe.observe(1.0)
    probe.notices(1.0)
    bed.remove(path)
    probe.observe(2.0)
    assert [each.kind for each in probe.notices(2.0)] == ["usb.removed"]


@inside
def test_d05_a_thunderbolt_device_that_no_rule_allows_loses_its_tunnel(bed: Testbed) -> None:
    bed.add(DOCK)
    probe = probe_of("thunderbolt", "[thunderbolt]\n", Surroundings(host=Host()))
    drifts = probe.observe(1.0)
    assert [drift.key for drift in drifts] == ["0-1"]
    probe.repair(drifts, 1.0)
    assert bed.read("devices/pci0000:00/0000:00:0d.2/domain0/0-0/0-1/authorized") == "0"


@inside
def test_d05_an_unknown_pci_device_is_taken_from_the_kernel(bed: Testbed) -> None:
    bed.add(DOCK)
    probe = probe_of("pci", '[pci]\nunknown = "remove"\n', Surroundings(host=Host()))
    drifts = [drift for drift in probe.observe(1.0) if drift.key == "0000:05:00.0"]
    assert len(drifts) == 1
    probe.repair(drifts, 1.0)
    assert bed.read("devices/pci0000:00/0000:05:00.0/remove") == "1"


@inside
def test_the_lid_and_the_readings_of_a_boards_chip(bed: Testbed) -> None:
    bed.add(BOARD)
    host = Host()
    probe = probe_of("chassis", CHASSIS, Surroundings(host=host, posture="maintenance"))
    assert probe.observe(1.0) == []
    chip = "/devices/platform/nct6775.656/hwmon/hwmon3"
    for name, value in (("intrusion0_alarm", "1"), ("temp1_input", "93500"), ("fan1_input", "0")):
        bed.set_attribute(chip, name, value)
    found = {drift.key: drift.found for drift in probe.observe(2.0)}
    assert found == {
        "nct6775 nct6775.656 intrusion0": "opened",
        "temperature nct6775 nct6775.656 CPU": "94 °C, at worst",
        "fan nct6775 fan1": "0 turns a minute, at worst",
    }
    assert [each.kind for each in probe.notices(2.0)] == ["chassis.intrusion"]
    probe.repair(probe.observe(3.0), 3.0)
    assert bed.read(f"{chip}/intrusion0_alarm") == "0"
    bed.remove(chip)
    assert {drift.found for drift in probe.observe(4.0)} == {"?"}


@inside
def test_a_chip_that_comes_wakes_the_section(bed: Testbed) -> None:
    woken: list[str] = []
    events = Host().watch_devices(probes.subsystems(), woken.append)
    try:
        bed.add(BOARD)
        deadline = time.monotonic() + 10
        while "chassis" not in woken and time.monotonic() < deadline:
            bed.uevent("/devices/platform/nct6775.656/hwmon/hwmon3", "add")
            time.sleep(0.05)
    finally:
        events.stop()
    assert "chassis" in woken


@inside
def test_what_is_learned_there_has_no_drift(bed: Testbed) -> None:
    bed.add(DOCK)
    bed.plug("1-1", KNOWN_KEYBOARD, number=2)
    host = Host()
    sections = probes.parse_sections(parse_baseline((HEAD + learn_devices.draft(host)).encode()))
    for name in ("usb", "thunderbolt"):
        probe = probes.sections()[name].Probe(sections[name], Surroundings(host=host))
        probe.settle(1.0)
        keys = [drift.key for drift in probe.observe(1.0)]
        assert [key for key in keys if "authorized_default" not in key] == []
