"""Mounts, in real mount namespaces of this kernel; `findmnt` and `stat` inside are the witnesses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import UNSEEN, Surroundings
from agent.probes.mounts import SHOWN
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of

TOML = """\
[mounts]
unknown = "ignore"

[[mounts.mount]]
path = "{folder}/scratch"
options = ["nodev", "nosuid", "noexec"]
types = ["tmpfs"]
remount = true
reason = "scratch space runs no programs"
"""


class MountNamespace:
    """A process in a mount namespace of its own, with two tmpfs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scratch", "other"):
            (folder / name).mkdir(parents=True)
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 600"],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self.pid = str(self._process.pid)
        self.run("mount", "-t", "tmpfs", "-o", "nodev,nosuid,noexec,size=1m", "scratch", folder / "scratch")

    def run(self, *argv: str | Path) -> str:
        """Run a program inside."""
        command = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, argv)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def options(self, path: Path) -> set[str]:
        """Return the options of a mount, as findmnt shows them."""
        return set(self.run("findmnt", "-n", "-o", "OPTIONS", path).strip().split(","))

    def table(self) -> object:
        """Return everything mounted below the folder, as findmnt shows it."""
        found = json.loads(self.run("findmnt", "-J", "-l", "-o", "TARGET,FSTYPE,OPTIONS"))["filesystems"]
        return [each for each in found if each["target"].startswith(str(self.folder))]

    def around(self) -> Surroundings:
        """Return what a probe is given on this machine."""
        return Surroundings(host=Host(mounts_of=self.pid), remembered={})

    def found(self, toml: str) -> dict[str, str]:
        """Return the drifts of a section below the folder, by key."""
        drifts = probe_of("mounts", toml, self.around()).observe(1.0)
        return {drift.key: drift.found for drift in drifts if str(self.folder) in drift.key}

    def end(self) -> None:
        """End the process; its namespace and mounts go with it."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[MountNamespace]:
    made = MountNamespace(tmp_path)
    yield made
    made.end()


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    made = MountNamespace(folder)
    scratch = folder / "scratch"
    try:
        yield Case(
            toml=TOML.format(folder=folder),
            around=made.around(),
            spoil=lambda: made.run("mount", "-o", "remount,bind,exec,dev,nosuid", scratch) and None,
            blind=made.end,  # a process that has gone has no table
            state=made.table,
            trace=made.table,
            heirs=(TOML.format(folder=folder).replace('"noexec"', '"noexec", "nosymfollow"'),),
        )
    finally:
        made.end()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[mounts.mount]]\npath = "/tmp"\noptions = ["ro", "rw"]\nreason = "why"\n', "options that agree"),
        (
            '[[mounts.mount]]\npath = "/tmp"\noptions = ["size=1g"]\nremount = true\nreason = "why"\n',
            "with `remount`",
        ),
        ('[[mounts.mount]]\npath = "/tmp"\nremount = true\nreason = "why"\n', "with `remount`"),
        ('[[mounts.mount]]\npath = "/a/../b"\nreason = "why"\n', "without '.' and '..'"),
        ('[[mounts.mount]]\npath = "tmp"\nreason = "why"\n', "path"),
        ('[[mounts.mount]]\npath = "/tmp"\nreason = "why"\n' * 2, "each path once"),
        ('[[mounts.forbid]]\ntypes = ["nfs"]\nreason = "why"\n' * 2, "each forbidden type once"),
        (
            '[[mounts.allow]]\npaths = ["/x"]\ntypes = ["fuse.sshfs"]\nreason = "why"\n'
            '[[mounts.forbid]]\ntypes = ["fuse"]\nreason = "why"\n',
            "'fuse.sshfs' both",
        ),
    ],
)
def test_entries_that_contradict_are_refused(text: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("mounts", "[mounts]\n" + text)


def test_options_are_added_in_the_other_namespace_and_nothing_else_changes(inside: MountNamespace) -> None:
    scratch = inside.folder / "scratch"
    inside.run("mount", "-o", "remount,bind,exec,dev,nosuid,noatime", scratch)
    before = inside.options(scratch)
    assert {"noexec", "nodev"} & before == set() and "noatime" in before
    around = inside.around()
    probe = probe_of("mounts", TOML.format(folder=inside.folder), around)
    drifts = probe.observe(1.0)
    assert [(d.key, d.found) for d in drifts] == [(f"{scratch} options", "lacks nodev,noexec")]
    probe.repair(drifts, 1.0)
    assert inside.options(scratch) == before | {"nodev", "noexec"}
    with pytest.raises(subprocess.CalledProcessError):
        inside.run("sh", "-c", f"cp /bin/true {scratch}/true && {scratch}/true")
    probe.undo()
    assert inside.options(scratch) == before


def test_options_are_not_added_unless_asked(inside: MountNamespace) -> None:
    scratch = inside.folder / "scratch"
    inside.run("mount", "-o", "remount,bind,exec", scratch)
    before = inside.options(scratch)
    toml = TOML.format(folder=inside.folder).replace("remount = true\n", "")
    probe = probe_of("mounts", toml, inside.around())
    drifts = probe.observe(1.0)
    probe.repair(drifts, 1.0)
    assert [drift.key for drift in probe.observe(2.0)] == [drift.key for drift in drifts] != []
    assert inside.options(scratch) == before


def test_read_only_counts_whether_of_the_mount_or_of_its_file_system(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    toml = f'[mounts]\nunknown = "ignore"\n[[mounts.mount]]\npath = "{other}"\noptions = ["{{}}"]\nreason = "why"\n'
    inside.run("mount", "-t", "tmpfs", "other", other)
    assert inside.found(toml.format("ro")) == {f"{other} options": "lacks ro"}
    inside.run("mount", "-o", "remount,bind,ro", other)
    assert inside.found(toml.format("ro")) == {}
    assert inside.found(toml.format("rw")) == {f"{other} options": "lacks rw"}


def test_what_is_not_mounted_is_a_drift_only_where_required(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    toml = f'[mounts]\nunknown = "ignore"\n[[mounts.mount]]\npath = "{other}"\nreason = "why"\n'
    assert inside.found(toml) == {str(other): "not mounted"}
    assert inside.found(toml + "required = false\n") == {}


def test_another_type_and_a_mount_over_a_mount_are_drifts(inside: MountNamespace) -> None:
    scratch = inside.folder / "scratch"
    inside.run("mount", "-t", "ramfs", "-o", "nodev,nosuid,noexec", "over", scratch)
    assert inside.found(TOML.format(folder=inside.folder)) == {
        f"{scratch} type": "ramfs",
        f"{scratch} layers": "2, one over the other",
    }


def test_an_unknown_mount_is_reported_and_unmounted_only_when_asked(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    inside.run("mount", "-t", "tmpfs", "a b", other)
    rest = '[[mounts.allow]]\npaths = ["/", "/*"]\nreason = "why"\n'
    for name in ("proc", "sys", "dev", "run", "mnt", "tmp/roots"):
        rest += f'[[mounts.allow]]\npaths = ["/{name}/"]\nreason = "why"\n'
    listed = TOML.format(folder=inside.folder)
    report = listed.replace('"ignore"', '"report"') + rest
    assert inside.found(report) == {f"mount {other}": "tmpfs, from a b"}
    probe = probe_of("mounts", report, inside.around())
    probe.repair(probe.observe(1.0), 1.0)
    assert inside.options(other)
    repair = probe_of("mounts", report.replace('"report"', '"repair"'), inside.around())
    drifts = [drift for drift in repair.observe(1.0) if str(other) in drift.key]
    repair.repair(drifts, 1.0)
    with pytest.raises(subprocess.CalledProcessError):
        inside.options(other)
    assert inside.options(inside.folder / "scratch")
    assert inside.options(Path("/proc"))


def test_the_root_in_a_list_of_paths_is_the_root_alone(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    inside.run("mount", "-t", "tmpfs", "other", other)
    toml = '[mounts]\n[[mounts.allow]]\npaths = ["/"]\nreason = "why"\n'
    drifts = probe_of("mounts", toml, inside.around()).observe(1.0)
    assert "mount /" not in [drift.key for drift in drifts]
    assert any(str(other) in drift.key + drift.found for drift in drifts)


def test_a_forbidden_type_is_a_drift_and_unmounted_only_when_asked(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    inside.run("mount", "-t", "ramfs", "ram", other)
    toml = '[mounts]\nunknown = "ignore"\n[[mounts.forbid]]\ntypes = ["ramfs"]\nreason = "no limit"\n'
    for text, left in ((toml, 1), (toml + "unmount = true\n", 0)):
        probe = probe_of("mounts", text, inside.around())
        drifts = probe.observe(1.0)
        assert [drift.found for drift in drifts] == ["ramfs, from ram"]
        probe.repair(drifts, 1.0)
        assert len(probe.observe(2.0)) == left
    assert not Path(f"/proc/{inside.pid}/mountinfo").read_text().count(str(other))


def test_what_is_in_use_stays_and_is_told(inside: MountNamespace) -> None:
    other = inside.folder / "other"
    inside.run("mount", "-t", "ramfs", "ram", other)
    busy = subprocess.Popen(
        ["nsenter", f"--mount=/proc/{inside.pid}/ns/mnt", "sh", "-c", f"cd {other}; echo in; exec sleep 60"],
        stdout=subprocess.PIPE,
    )
    try:
        assert busy.stdout is not None and busy.stdout.readline() == b"in\n"
        toml = '[mounts]\nunknown = "ignore"\n[[mounts.forbid]]\ntypes = ["ramfs"]\nunmount = true\nreason = "why"\n'
        probe = probe_of("mounts", toml, inside.around())
        probe.repair(probe.observe(1.0), 1.0)
        assert [drift.key for drift in probe.observe(2.0)] == [f"mount {other}"]
    finally:
        busy.kill()
        busy.wait()


def test_d06_a_link_on_the_way_to_a_mount_is_not_followed(inside: MountNamespace) -> None:
    scratch, other = inside.folder / "scratch", inside.folder / "other"
    inside.run("mount", "-o", "remount,bind,exec", scratch)
    table = inside.around().host.mounts
    (mount,) = [each for each in table.mounts() if each.path == str(scratch)]
    link = inside.folder / "link"
    link.symlink_to(scratch)
    with pytest.raises(OSError):
        table.change(mount._replace(path=str(link)), add=["noexec"])
    inside.run("mount", "-t", "tmpfs", "-o", "exec", "other", other)
    with pytest.raises(OSError, match="another mount"):
        table.change(mount._replace(path=str(other)), add=["noexec"])
    with pytest.raises(OSError, match="another mount"):
        table.unmount(mount._replace(path=str(other)))
    assert "noexec" not in inside.options(other) | inside.options(scratch)


def test_many_unknown_mounts_are_few_drifts(inside: MountNamespace) -> None:
    script = f"for n in $(seq 100 199); do mkdir {inside.folder}/other/$n; done; "
    script += f"for n in $(seq 100 199); do mount --bind {inside.folder}/other {inside.folder}/other/$n; done"
    inside.run("sh", "-c", script)
    drifts = probe_of("mounts", "[mounts]\n", inside.around()).observe(1.0)
    assert len([drift for drift in drifts if drift.key.startswith("mount ")]) == SHOWN
    assert drifts[-1].key == "more mounts"
    assert len(drifts) == SHOWN + 1


def test_names_with_blanks_and_line_ends_are_read_as_they_are(inside: MountNamespace) -> None:
    strange = inside.folder / "a b\nc\\d"
    strange.mkdir()
    inside.run("mount", "-t", "tmpfs", "-o", "size=1m", "x", strange)
    assert str(strange) in {mount.path for mount in inside.around().host.mounts.mounts()}
    drifts = probe_of("mounts", "[mounts]\n", inside.around()).observe(1.0)
    assert all(drift.key.isprintable() and drift.found.isprintable() for drift in drifts)


def test_a_table_that_does_not_parse_is_not_silence(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mountinfo").write_text("22 27 0:21 / /proc rw\n")
    probe = probe_of("mounts", "[mounts]\n", Surroundings(host=Host(proc_root=tmp_path)))
    assert [drift.found for drift in probe.observe(1.0)] == [UNSEEN]


def test_without_more_it_is_the_table_of_process_1() -> None:
    shown = {line.split()[0] for line in Path("/proc/1/mountinfo").read_text().splitlines()}
    assert {str(mount.number) for mount in Host().mounts.mounts()} == shown
