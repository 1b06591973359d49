"""Disks: real loop devices where the kernel gives them; `blockdev` is the witness. A SCSI disk's switch on plain files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of


class Loop:
    """A loop device over a file; its sysfs is the kernel's own, in a tree that holds nothing else."""

    def __init__(self, folder: Path) -> None:
        image = folder / "disk.img"
        image.write_bytes(bytes(1024 * 1024))
        found = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"no loop devices here: {found.stderr.strip()}")
        self.path = found.stdout.strip()
        self.set("--setrw")  # the flag outlives what was attached
        self.name = self.path.rpartition("/")[2]
        self.sysfs = folder / "sys"
        (self.sysfs / "block").mkdir(parents=True)
        (self.sysfs / "block" / self.name).symlink_to(f"/sys/block/{self.name}")
        self.around = Surroundings(host=Host(sysfs_root=self.sysfs))

    def read_only(self) -> bool:
        """Ask the kernel with another program."""
        return subprocess.check_output(["blockdev", "--getro", self.path], text=True).strip() == "1"

    def set(self, flag: str) -> None:
        subprocess.run(["blockdev", flag, self.path], check=True)

    def close(self) -> None:
        self.set("--setrw")
        subprocess.run(["losetup", "--detach", self.path], check=True)


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    loop = Loop(folder)
    loop.set("--setro")
    toml = '[blocks]\n[[blocks.allow]]\nnames = ["loop*"]\nread_only = true\nreason = "the image"\n'

    def blind() -> None:
        (loop.sysfs / "block" / loop.name).unlink()
        (loop.sysfs / "block").rmdir()

    try:
        yield Case(
            toml=toml,
            around=loop.around,
            spoil=lambda: loop.set("--setrw"),
            blind=blind,
            state=loop.read_only,
            trace=loop.read_only,
            heirs=('[blocks]\nunknown = "read-only"\n',),
        )
    finally:
        loop.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path)
    yield made
    made.close()


def _probe(around: Surroundings, toml: str) -> Probe:  # type: ignore[type-arg]
    return probe_of("blocks", "[blocks]\n" + toml, around)


def test_d05_an_unknown_disk_is_held_read_only_by_the_kernel(loop: Loop) -> None:
    probe = _probe(loop.around, 'unknown = "read-only"\n')
    drifts = probe.observe(1.0)
    assert [drift.key for drift in drifts] == [loop.name]
    probe.repair(drifts, 1.0)
    assert loop.read_only() and probe.observe(2.0) == []
    with pytest.raises(OSError, match="not permitted"):
        os.close(os.open(loop.path, os.O_WRONLY))
        done = subprocess.run(
            ["dd", "if=/dev/zero", f"of={loop.path}", "count=1", "conv=fsync"], capture_output=True
        )
        raise OSError(done.stderr.decode())
    assert [each.kind for each in probe.notices(2.0)] == ["blocks.read-only"]
    probe.undo()
    assert not loop.read_only()


def test_d05_reported_only_unless_the_section_says_more(loop: Loop) -> None:
    probe = _probe(loop.around, "")
    drifts = probe.observe(1.0)
    probe.repair(drifts, 1.0)
    assert [drift.key for drift in drifts] == [loop.name] and not loop.read_only()


class Disk:
    """A SCSI disk in plain files."""

    def __init__(self, folder: Path, **facts: str) -> None:
        self.sysfs = folder
        self.at = folder / "block/sdb"
        (self.at / "device").mkdir(parents=True)
        whole = {"dev": "8:16", "size": "2048", "removable": "1", "ro": "0", "device/model": "Stick"}
        for name, value in {**whole, **facts, "device/delete": ""}.items():
            (self.at / name).write_text(value + "\n" if value else "")
        (self.at / "device/vpd_pg80").write_bytes(b"\0\x80\0\x08  AB1234")
        self.around = Surroundings(host=Host(sysfs_root=folder))


def test_d05_an_unknown_scsi_disk_is_taken_from_the_kernel(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    probe = _probe(disk.around, 'unknown = "remove"\n')
    drifts = probe.observe(1.0)
    assert "serial AB1234" in drifts[0].found and "removable" in drifts[0].found
    probe.repair(drifts, 1.0)
    assert (disk.at / "device/delete").read_text() == "1"


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ('serial = "AB1234"', True),
        ('serial = "AB1235"', False),
        ('model = "Stick"', True),
        ('model = "Disk"', False),
        ("removable = true", True),
        ("removable = false", False),
        ('wwid = "naa.5000"', True),
        ('wwid = "naa.5001"', False),
    ],
)
def test_d05_every_key_of_a_rule_must_match(tmp_path: Path, key: str, known: bool) -> None:
    disk = Disk(tmp_path, **{"device/wwid": "naa.5000"})
    probe = _probe(disk.around, f'[[blocks.allow]]\nnames = ["sd*"]\n{key}\nreason = "why"\n')
    assert (probe.observe(1.0) == []) is known


def test_an_empty_drive_is_no_disk(tmp_path: Path) -> None:
    assert _probe(Disk(tmp_path, size="0").around, "").observe(1.0) == []


def test_what_the_kernel_never_writes_is_a_failed_look(tmp_path: Path) -> None:
    (drift,) = _probe(Disk(tmp_path, size="many").around, "").observe(1.0)
    assert drift.found == "?"


@pytest.mark.parametrize("rule", ["", "names = []", 'names = ["/dev/sda"]', 'names = ["sd[ab]"]'])
def test_rules_that_could_mean_more_than_they_say_are_refused(rule: str) -> None:
    with pytest.raises(Rejected):
        section_of("blocks", f'[blocks]\n[[blocks.allow]]\n{rule}\nreason = "why not"\n')
