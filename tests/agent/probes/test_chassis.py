"""Lid, temperatures and fans: a made sysfs; what a machine's own looks like is in `tests/agent/test_umockdev.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import chassis as chassis_probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.hwmontree import Chips

NOW = 1_700_000_000.0
CPU = """
[[chassis.temperature]]
chip = "nct6775"
label = "CPU"
min_c = 5
max_c = 85
reason = "it throttles at 95"
[[chassis.fan]]
chip = "nct6775"
label = "CPU"
min_rpm = 600
reason = "a fan that stands means dust"
"""
LID = "nct6775 nct6775.656 intrusion0"


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    chips = Chips(folder / "sys")

    def blind() -> None:
        (chips.board / "intrusion0_alarm").unlink()
        (chips.board / "intrusion0_alarm").mkdir()

    yield Case(
        toml='[chassis]\nclear = "maintenance"\n' + CPU,
        around=Surroundings(host=Host(sysfs_root=chips.sysfs), posture="maintenance"),
        spoil=lambda: chips.put(chips.board, "intrusion0_alarm", "1"),
        blind=blind,
        state=lambda: tree_state(chips.sysfs),
        trace=lambda: tree_trace(chips.sysfs),
        undoes=False,  # a latch that was cleared stays cleared: it was told
    )


@pytest.fixture
def chips(tmp_path: Path) -> Chips:
    return Chips(tmp_path / "sys")


def _probe(chips: Chips, toml: str = CPU) -> Probe[chassis_probe.Section]:
    return probe_of("chassis", "[chassis]\n" + toml, Surroundings(host=Host(sysfs_root=chips.sysfs)))


def _found(probe: Probe[chassis_probe.Section], now: float = NOW) -> dict[str, str]:
    return {drift.key: drift.found for drift in probe.observe(now)}


def _told(probe: Probe[chassis_probe.Section]) -> list[tuple[str, str]]:
    return [(each.kind, each.severity) for each in probe.notices(NOW)]


def test_an_opened_lid_is_told_once_and_stays_a_drift_until_somebody_acts(chips: Chips) -> None:
    probe = _probe(chips)
    assert _found(probe) == {} and _told(probe) == []
    chips.put(chips.board, "intrusion0_alarm", "1")
    assert _found(probe) == {LID: "opened"}
    assert _told(probe) == [("chassis.intrusion", "critical")]
    probe.repair(probe.observe(NOW), NOW)
    assert (chips.board / "intrusion0_alarm").read_text() == "1\n"  # never by itself
    assert _found(probe) == {LID: "opened"} and _told(probe) == []
    # Another agent process sees it as well: the latch is the chip's.
    assert _found(_probe(chips)) == {LID: "opened"}
    assert _found(_probe(chips, 'intrusion = "ignore"\n' + CPU)) == {}
    report = _probe(chips, 'intrusion = "report"\n')
    assert _found(report) == {LID: "opened"} and _told(report) == []


def test_the_latch_is_cleared_in_maintenance_alone_and_where_the_section_says_so(chips: Chips) -> None:
    chips.put(chips.board, "intrusion0_alarm", "1")
    for clear, posture, cleared in (
        ("never", "maintenance", False),
        ("maintenance", "normal", False),
        ("maintenance", "isolated", False),
        ("maintenance", "maintenance", True),
    ):
        probe = _probe(chips, f'clear = "{clear}"\n')
        probe.around = replace(probe.around, posture=posture)  # type: ignore[arg-type]
        probe.repair(probe.observe(NOW), NOW)
        assert ((chips.board / "intrusion0_alarm").read_text().strip() == "0") is cleared
    assert [kind for kind, _ in _told(probe)] == ["chassis.intrusion", "chassis.rearmed"]
    assert _found(probe) == {} and _told(probe) == []


def test_a_latch_that_somebody_else_cleared_is_told(chips: Chips) -> None:
    probe = _probe(chips)
    chips.put(chips.board, "intrusion0_alarm", "1")
    _found(probe)
    _told(probe)
    chips.put(chips.board, "intrusion0_alarm", "0")
    assert _found(probe) == {} and _told(probe) == [("chassis.cleared-by-others", "warning")]


def test_a_machine_without_a_switch_is_told_unless_it_is_to_be_ignored(chips: Chips) -> None:
    (chips.board / "intrusion0_alarm").unlink()
    assert _found(_probe(chips, "")) == {"intrusion": "?"}
    assert _found(_probe(chips, 'intrusion = "ignore"\n')) == {}
    with_none = Surroundings(host=Host(sysfs_root=chips.sysfs.parent / "nothing"))
    assert [d.found for d in probe_of("chassis", "[chassis]\n", with_none).observe(NOW)] == ["?"]


def test_what_is_out_of_bounds_is_told_at_its_worst_and_good_again_with_a_margin(chips: Chips) -> None:
    probe = _probe(chips)
    steps = [
        ("86000", "86 °C, at worst"),
        ("86300", "86 °C, at worst"),  # what wavers is not told anew
        ("91700", "92 °C, at worst"),
        ("86000", "92 °C, at worst"),
        ("84000", "92 °C, at worst"),  # inside, but barely
        ("82000", None),
        ("84000", None),
        ("4000", "4 °C, at worst"),
        ("-2000", "-2 °C, at worst"),
        ("3000", "-2 °C, at worst"),
    ]
    for value, found in steps:
        chips.put(chips.board, "temp1_input", value)
        assert _found(probe).get("temperature nct6775 CPU") == found, value
    chips.put(chips.board, "fan1_input", "0")
    assert _found(probe)["fan nct6775 CPU"] == "0 turns a minute, at worst"


def test_narrow_bounds_can_be_met_again(chips: Chips) -> None:
    probe = _probe(chips, CPU.replace("min_c = 5", "min_c = 84"))
    for value, good in (("90000", False), ("84500", True)):
        chips.put(chips.board, "temp1_input", value)
        assert ("temperature nct6775 CPU" not in _found(probe)) is good


def test_a_reading_that_fails_is_a_drift_with_the_last_good_one_and_its_time(chips: Chips) -> None:
    probe = _probe(chips)
    _found(probe)
    for spoil in ("temp1_fault", "temp1_input", "gone"):
        if spoil == "gone":
            (chips.board / "temp1_input").unlink()
        else:
            chips.put(chips.board, spoil, "1" if spoil == "temp1_fault" else "N/A")
        (drift,) = probe.observe(NOW + 60)
        assert (drift.key, drift.found) == ("temperature nct6775 CPU", "?")
        assert "from 5 up to 85 °C, last 41 °C (good, 2023-11-14T22:13:20Z)" in drift.wanted
        assert "could not look" in drift.wanted
        (again,) = probe.observe(NOW + 120)
        assert again.since == NOW + 60  # its age is its own, not that of the words
        (chips.board / "temp1_fault").unlink(missing_ok=True)
        if spoil != "gone":
            chips.put(chips.board, "temp1_input", "41000")
            probe.observe(NOW)


def test_chips_of_one_name_are_all_held_or_told_apart_by_their_place(chips: Chips) -> None:
    disk = '[[chassis.temperature]]\nchip = "nvme"\nlabel = "temp1"\nmax_c = 70\nreason = "it slows down"\n'
    second = chips.sysfs / "devices/pci0000:00/0000:02:00.0/hwmon/hwmon2"
    chips.put(second, "temp1_input", "75000")
    assert list(_found(_probe(chips, disk))) == ["temperature nvme temp1"]
    for place, found in (("0000:01:00.0", {}), ("0000:02:00.0", {"temperature nvme 0000:02:00.0 temp1"})):
        one = disk.replace('label = "temp1"', f'label = "temp1"\ndevice = "{place}"')
        assert set(_found(_probe(chips, one))) == set(found)


def test_attributes_of_old_drivers_are_found_below_the_device(tmp_path: Path) -> None:
    chip = Chips(tmp_path / "sys")
    folder = chip.sysfs / "class/hwmon/hwmon0"
    for each in [each for each in folder.iterdir() if each.name != "device"]:
        each.rename(folder / "device" / each.name)
    assert _found(_probe(chip)) == {}
    (folder / "device/intrusion0_alarm").write_text("1\n")
    assert list(_found(_probe(chip))) == [LID]


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[[chassis.fan]]\nchip = "x"\nlabel = "y"\nreason = "why"\n', "a lowest or a highest value"),
        (
            '[[chassis.fan]]\nchip = "x"\nlabel = "y"\nmin_rpm = 5\nmax_rpm = 5\nreason = "why"\n',
            "below the highest",
        ),
        (CPU + CPU, "each temperature once"),
        ('intrusion = "warn"\n', "intrusion"),
    ],
)
def test_what_says_nothing_or_contradicts_itself_is_refused(toml: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("chassis", "[chassis]\n" + toml)
