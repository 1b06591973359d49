"""Serial ports; what is common to all nodes is tested in `test_cameras`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from tests.agent.probes.case import Case, probe_of
from tests.agent.probes.nodecase import OTHER, Machine, case_of


def case(folder: Path) -> AbstractContextManager[Case]:
    return case_of("serials", "/dev/ttyS", folder)


def test_ports_without_hardware_are_left_out(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.node("/dev/ttyS0")
    machine.node("/dev/ttyS1", OTHER)
    for number, kind in (("1:7", "4"), ("1:5", "0")):
        (machine.sysfs / "dev/char" / number).mkdir()
        (machine.sysfs / "dev/char" / number / "type").write_text(kind + "\n")
    keys = [drift.key for drift in probe_of("serials", "[serials]\n", machine.around).observe(1.0)]
    assert keys == ["/dev/ttyS0"]


def test_d05_an_unknown_usb_serial_adapter_is_closed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.node("/dev/ttyUSB0", mode=0o666)
    machine.usb((1, 7), "0403", "6001", "", "ftdi_sio")
    known = '[[serials.allow]]\nnodes = ["/dev/ttyUSB*"]\nvendor = "10c4"\nopened_by = []\nreason = "PLC"\n'
    probe = probe_of("serials", '[serials]\nunknown = "close"\n' + known, machine.around)
    (drift,) = probe.observe(1.0)
    assert "0403:6001" in drift.found and "ftdi_sio" in drift.found
    probe.repair([drift], 1.0)
    assert probe.observe(2.0) == [] and (machine.root / "dev/ttyUSB0").stat().st_mode & 0o777 == 0
