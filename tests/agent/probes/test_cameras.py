"""Cameras: who may open them, who has them open. The same code serves `[accelerators]` and `[serials]`."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agent.devicenodes import SHUT
from agent.probes import Probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of
from tests.agent.probes.nodecase import OTHER, Machine, case_of, holding

NOBODY = 65534
RULE = """\
[[cameras.allow]]
nodes = ["/dev/video*"]
vendor = "046d"
product = "0825"
serial = "A1B2"
driver = "uvcvideo"
mode = "0660"
opened_by = []
reason = "the camera of the line"
"""


def case(folder: Path) -> AbstractContextManager[Case]:
    return case_of("cameras", "/dev/video", folder)


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Not below pytest's own folder, which nobody but its user may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Machine(Path(folder))


def _probe(machine: Machine, toml: str) -> Probe:  # type: ignore[type-arg]
    return probe_of("cameras", "[cameras]\n" + toml, machine.around)


def _found(probe: Probe) -> dict[str, str]:  # type: ignore[type-arg]
    return {drift.key: drift.found for drift in probe.observe(1.0)}


def _list(*named: tuple[int, int, int]) -> bytes:
    """Return an access control list with entries (tag, bits, number), as setfacl(1) writes it."""
    entries = [(1, 6, 0xFFFFFFFF), *named, (4, 6, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in sorted(entries))


def test_a_camera_that_the_rule_means_is_no_drift_and_every_key_must_match(machine: Machine) -> None:
    machine.node("/dev/video0")
    machine.usb((1, 7), "046d", "0825", "A1B2", "uvcvideo")
    assert _found(_probe(machine, RULE)) == {}
    for key, other in (("046d", "046e"), ("0825", "0826"), ("A1B2", "A1B3"), ("uvcvideo", "uvc")):
        assert "/dev/video0" in _found(_probe(machine, RULE.replace(key, other)))


def test_d05_an_unknown_camera_is_closed_told_once_and_given_back(machine: Machine) -> None:
    node = machine.node("/dev/video3", mode=0o666)
    os.setxattr(node, "system.posix_acl_access", _list((2, 6, NOBODY)))
    before = (node.stat().st_mode, os.getxattr(node, "system.posix_acl_access"))
    probe = _probe(machine, 'unknown = "close"\n')
    opened = ["head", "-c1", str(node)]
    assert subprocess.run(opened, user=NOBODY, capture_output=True).returncode == 0
    probe.repair(probe.observe(1.0), 1.0)
    assert os.listxattr(node) == []
    refused = subprocess.run(opened, user=NOBODY, capture_output=True, text=True)
    assert "Permission denied" in refused.stderr
    assert probe.observe(2.0) == []
    assert [each.kind for each in probe.notices(2.0)] == ["cameras.closed"]
    probe.observe(3.0)
    assert probe.notices(3.0) == []
    _probe(machine, 'unknown = "close"\n').undo()
    assert (node.stat().st_mode, os.getxattr(node, "system.posix_acl_access")) == before


def test_d05_a_list_that_names_a_user_is_found_and_taken_away(machine: Machine) -> None:
    node = machine.node("/dev/video0")
    os.setxattr(node, "system.posix_acl_access", _list((2, 6, NOBODY)))
    toml = '[[cameras.allow]]\nnodes = ["/dev/video0"]\nmode = "0660"\nopened_by = []\nreason = "why"\n'
    probe = _probe(machine, toml)
    found = _found(probe)
    assert found["/dev/video0 acl"] == f"user {NOBODY} rw-"
    probe.repair(probe.observe(1.0), 1.0)
    assert os.listxattr(node) == [] and node.stat().st_mode & 0o777 == 0o660
    assert _found(probe) == {}


@pytest.mark.parametrize(
    ("opener", "wanted"),
    [
        ('"anybody"', False),
        (f'"user:{NOBODY}"', False),
        ('"user:nobody"', False),
        ('"user:root"', True),
        ('"user:no-such-user"', True),
        ('"program:/usr/bin/other"', True),
        ("", True),
    ],
)
def test_d05_who_has_it_open(machine: Machine, opener: str, wanted: bool) -> None:
    node = machine.node("/dev/video0", mode=0o666)
    toml = f'[[cameras.allow]]\nnodes = ["/dev/video0"]\nopened_by = [{opener}]\nreason = "why"\n'
    with holding(node, uid=NOBODY) as process:
        found = _found(_probe(machine, toml))
        assert (f"/dev/video0 pid {process.pid}" in found) is wanted


def test_d05_a_program_may_be_named(machine: Machine) -> None:
    node = machine.node("/dev/video0")
    with holding(node) as process:
        program = Path(f"/proc/{process.pid}/exe").readlink()
        toml = (
            f'[[cameras.allow]]\nnodes = ["/dev/video0"]\nopened_by = ["program:{program}"]\nreason = "why"\n'
        )
        assert _found(_probe(machine, toml)) == {}


def test_d05_a_second_node_of_the_same_device_made_elsewhere_hides_nothing(machine: Machine) -> None:
    machine.node("/dev/video0")
    hidden = machine.node("/tmp/harmless")
    toml = '[[cameras.allow]]\nnodes = ["/dev/video0"]\nopened_by = []\nreason = "why"\n'
    with holding(hidden) as process:
        assert f"/dev/video0 pid {process.pid}" in _found(_probe(machine, toml))


def test_d05_a_stranger_is_killed_only_where_the_section_says_so(machine: Machine) -> None:
    node = machine.node("/dev/video0")
    rule = '[[cameras.allow]]\nnodes = ["/dev/video0"]\nopened_by = []\nreason = "why"\n'
    with holding(node) as process:
        probe = _probe(machine, rule)
        probe.repair(probe.observe(1.0), 1.0)
        assert process.poll() is None
        probe = _probe(machine, 'strangers = "kill"\n' + rule)
        probe.repair(probe.observe(1.0), 1.0)
        assert process.wait(2) == -9
    assert _found(probe) == {}


def test_d05_what_stands_in_a_nodes_place_is_told_and_never_changed(machine: Machine) -> None:
    victim = machine.root / "dev/victim"
    victim.write_text("x")
    victim.chmod(0o600)
    os.link(victim, machine.root / "dev/video0")
    (machine.root / "dev/video1").symlink_to("victim")
    probe = _probe(machine, 'unknown = "close"\n')
    drifts = probe.observe(1.0)
    assert [(drift.key, drift.found) for drift in drifts] == [("/dev/video0", "something else")]
    probe.repair(drifts, 1.0)
    assert victim.stat().st_mode & 0o777 == 0o600


def test_d05_a_node_that_became_another_device_is_not_changed(machine: Machine) -> None:
    node = machine.node("/dev/video0", mode=0o666)
    seen = machine.host.nodes.node("/dev/video0")
    assert seen is not None
    node.unlink()
    machine.node("/dev/video0", OTHER, 0o666)
    with pytest.raises(OSError, match="another device"):
        machine.host.nodes.set_access(seen, SHUT)
    assert node.stat().st_mode & 0o777 == 0o666


def test_a_required_camera_that_is_not_there_is_a_drift(machine: Machine) -> None:
    probe = _probe(machine, RULE + "required = true\n")
    assert _found(probe) == {"allow 0": "not there"}


def test_a_garbled_list_names_nobody_and_breaks_nothing() -> None:
    for raw in (b"", b"\2\0\0\0", b"\2\0\0\0\2\0"):
        assert type(SHUT)(uid=0, gid=0, mode=0, acl=base64.b64encode(raw).decode()).named() == []


@pytest.mark.parametrize(
    "rule",
    [
        'nodes = ["/dev/*/video0"]\nopened_by = []',
        'nodes = ["/etc/shadow"]\nopened_by = []',
        'nodes = ["/dev/../etc/x"]\nopened_by = ["*"]',
        'nodes = ["/dev/video0"]',
        'nodes = []\nopened_by = ["anybody"]',
        'nodes = ["/dev/video0"]\nopened_by = ["user:"]',
        'nodes = ["/dev/video0"]\nopened_by = []\nmode = "660"',
    ],
)
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected):
        section_of("cameras", f'[cameras]\n[[cameras.allow]]\n{rule}\nreason = "why not"\n')
