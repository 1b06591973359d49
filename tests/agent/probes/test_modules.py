"""Kernel modules: in a made procfs and sysfs for the faults, on the running kernel for the truth."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import UNSEEN, Surroundings
from agent.probes.modules import MODPROBE_FILE, SHOWN
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace

TOML = """\
[modules]
lockdown = "integrity"
signatures = "required"
loading = "closed"
closed_after_s = 0

[[modules.allow]]
names = ["nf_tables", "virtio-net"]
reason = "the fence and the network card"

[[modules.block]]
names = ["usb-storage", "dccp"]
reason = "no storage by USB, no protocol that nobody uses"
"""
FENCE = "nf_tables 311296 42 nft_ct,nft_limit, Live 0x0000000000000000\n"
CARD = "virtio_net 73728 0 - Live 0x0000000000000000\n"


class Machine:
    """A made root with the folders of a kernel's procfs and sysfs."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc, self.sysfs = folder / "root", folder / "proc", folder / "sys"
        self.file = self.root / MODPROBE_FILE.removeprefix("/")
        self.file.parent.mkdir(parents=True)
        self.kernel = self.proc / "sys/kernel"
        (self.kernel / "random").mkdir(parents=True)
        for name in ("ostype", "osrelease", "random/boot_id"):
            (self.kernel / name).write_text((Path("/proc/sys/kernel") / name).read_text())
        (self.kernel / "modules_disabled").write_text("1\n")
        (self.kernel / "tainted").write_text("0\n")
        self.list(FENCE + CARD)
        for name in ("nf_tables", "virtio_net"):
            self.in_sysfs(name)
        self.lockdown = self.sysfs / "kernel/security/lockdown"
        self.lockdown.parent.mkdir(parents=True)
        self.lockdown.write_text("none [integrity] confidentiality\n")
        self.enforce = self.sysfs / "module/module/parameters/sig_enforce"
        self.enforce.parent.mkdir(parents=True)
        self.enforce.write_text("N\n")
        self.around = Surroundings(
            host=Host(root=self.root, proc_root=self.proc, sysfs_root=self.sysfs), remembered={}
        )

    def list(self, text: str) -> None:
        """Write /proc/modules."""
        (self.proc / "modules").write_text(text)

    def in_sysfs(self, name: str) -> None:
        """Make a module stand in sysfs as one that was loaded."""
        (self.sysfs / "module" / name).mkdir(parents=True)
        (self.sysfs / "module" / name / "initstate").write_text("live\n")

    def found(self, toml: str) -> dict[str, str]:
        """Return the drifts under a section, by key."""
        return {d.key: d.found for d in probe_of("modules", toml, self.around).observe(1.0)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    machine = Machine(folder)
    good = probe_of("modules", TOML, machine.around)
    good.repair(good.observe(0.0), 0.0)
    machine.around.remembered.clear()

    def spoil() -> None:
        machine.file.write_text("install usb_storage /sbin/insmod /tmp/usb-storage.ko\n")
        machine.file.chmod(0o666)

    yield Case(
        toml=TOML,
        around=machine.around,
        spoil=spoil,
        blind=(machine.proc / "modules").unlink,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=(
            TOML.replace('"dccp"', '"sctp"'),
            '[modules]\nunknown = "ignore"\n[[modules.block]]\nnames = ["sctp"]\nreason = "nobody uses it"\n',
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[modules.block]]\nnames = ["a-b", "a_b"]\nreason = "why"\n', "'a_b' twice"),
        (
            '[[modules.allow]]\nnames = ["a"]\nreason = "why"\n[[modules.block]]\nnames = ["a"]\nreason = "why"\n',
            "'a' both allowed and blocked",
        ),
        ('unknown = "repair"\n', "unload = true"),
        ('[[modules.block]]\nnames = ["a\\ninstall b /tmp/x"]\nreason = "why"\n', "names"),
        ('[[modules.block]]\nnames = []\nreason = "why"\n', "names"),
    ],
)
def test_entries_that_contradict_or_are_no_names_are_refused(text: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("modules", "[modules]\n" + text)


def test_d11_a_module_that_no_entry_names_is_a_drift(machine: Machine) -> None:
    machine.list(FENCE + CARD + "rootkit 16384 0 - Live 0x0000000000000000 (OE)\n")
    machine.in_sysfs("rootkit")
    toml = TOML.replace("[[modules.block]]", "[[modules.allow]]", 1)
    assert machine.found(toml) == {"module rootkit": "loaded, taints OE"}


def test_d11_a_blocked_module_is_a_drift_also_where_unknown_ones_are_not(machine: Machine) -> None:
    machine.list(FENCE + "usb_storage 86016 1 uas, Live 0x0\nsomething 4096 0 - Live 0x0\n")
    found = machine.found(TOML.replace("[modules]\n", '[modules]\nunknown = "ignore"\n'))
    assert found["module usb_storage"] == "loaded"
    assert "module something" not in found


def test_d11_a_module_that_took_itself_off_the_list_is_a_drift(machine: Machine) -> None:
    machine.in_sysfs("rootkit")
    (machine.sysfs / "module/built_in_one/parameters").mkdir(parents=True)
    assert machine.found(TOML)["hidden modules"] == "rootkit"


def test_d11_an_unsigned_module_that_came_and_went_between_two_looks_is_a_drift(machine: Machine) -> None:
    (machine.kernel / "tainted").write_text(f"{1 << 13 | 1 << 12}\n")
    assert machine.found(TOML)["taint"] == "unsigned"


def test_many_unknown_modules_are_few_drifts(machine: Machine) -> None:
    machine.list("".join(f"m{n:04} 4096 0 - Live 0x0\n" for n in range(1000)))
    found = machine.found("[modules]\n")
    assert len([key for key in found if key.startswith("module ")]) == SHOWN
    assert found["more modules"].startswith(f"{1000 - SHOWN} more: m0032, m0033")


def test_an_empty_section_reports_every_module_and_asks_for_nothing_else(machine: Machine) -> None:
    machine.lockdown.unlink()
    machine.enforce.unlink()
    assert machine.found("[modules]\n") == {"module nf_tables": "loaded", "module virtio_net": "loaded"}


@pytest.mark.parametrize(
    ("state", "wanted", "drift"),
    [
        ("[none] integrity confidentiality", "integrity", "none"),
        ("none [integrity] confidentiality", "integrity", None),
        ("none [integrity] confidentiality", "confidentiality", "integrity"),
        ("none integrity [confidentiality]", "integrity", None),
        ("[none]", "none", None),
        ("nonsense", "integrity", UNSEEN),
    ],
)
def test_lockdown_is_at_least_so_strict(machine: Machine, state: str, wanted: str, drift: str | None) -> None:
    machine.lockdown.write_text(state + "\n")
    found = machine.found(f'[modules]\nunknown = "ignore"\nlockdown = "{wanted}"\n')
    assert found == ({} if drift is None else {"lockdown": drift})


def test_d11_lockdown_and_signatures_are_raised_and_never_lowered(machine: Machine) -> None:
    wanted = '[modules]\nunknown = "ignore"\nlockdown = "{}"\nsignatures = "required"\n'
    machine.lockdown.write_text("[none] integrity confidentiality\n")
    probe = probe_of("modules", wanted.format("integrity"), machine.around)
    drifts = probe.observe(1.0)
    assert {drift.key for drift in drifts} == {"lockdown", "signatures"}
    probe.repair(drifts, 1.0)
    assert machine.lockdown.read_text() == "integrity" and machine.enforce.read_text() == "1"
    # What the kernel would make of these words.
    machine.lockdown.write_text("none [integrity] confidentiality\n")
    machine.enforce.write_text("Y\n")
    assert probe.observe(2.0) == []
    probe.undo()
    stricter = "none integrity [confidentiality]\n"
    for state, level in ((stricter, "integrity"), (stricter, "none")):
        machine.lockdown.write_text(state)
        probe = probe_of("modules", wanted.format(level), machine.around)
        probe.repair(probe.observe(1.0), 1.0)
        assert machine.lockdown.read_text() == state


def test_d11_a_kernel_without_lockdown_has_nothing_to_raise(machine: Machine) -> None:
    machine.lockdown.unlink()
    machine.enforce.unlink()
    toml = '[modules]\nunknown = "ignore"\nlockdown = "integrity"\nsignatures = "required"\n'
    probe = probe_of("modules", toml, machine.around)
    probe.repair(probe.observe(1.0), 1.0)
    assert {drift.found for drift in probe.observe(2.0)} == {UNSEEN}
    assert not machine.lockdown.exists() and not machine.enforce.exists()


def test_signatures_are_enforced_by_the_parameter_or_by_lockdown(machine: Machine) -> None:
    toml = '[modules]\nunknown = "ignore"\nsignatures = "required"\n'
    assert machine.found(toml) == {}
    machine.lockdown.write_text("[none] integrity confidentiality\n")
    assert machine.found(toml) == {"signatures": "not enforced"}
    machine.enforce.write_text("Y\n")
    assert machine.found(toml) == {}
    machine.enforce.unlink()
    assert machine.found(toml) == {"signatures": UNSEEN}


def test_the_door_is_closed_only_when_asked_and_only_after_the_boot_has_settled(machine: Machine) -> None:
    switch = machine.kernel / "modules_disabled"
    switch.write_text("0\n")
    for toml, written in (
        ("[modules]\n", "0\n"),
        ('[modules]\nloading = "closed"\nclosed_after_s = 86400\n', "0\n"),
        ('[modules]\nloading = "closed"\nclosed_after_s = 0\n', "1\n"),
    ):
        if "86400" in toml and machine.around.host.uptime_s() > 86000:
            continue
        probe = probe_of("modules", toml, machine.around)
        probe.repair(probe.observe(1.0), 1.0)
        assert switch.read_text() == written
    assert "loading" not in [drift.key for drift in probe.observe(2.0)]


def test_d06_a_link_in_the_files_place_is_replaced_and_not_followed(machine: Machine) -> None:
    elsewhere = machine.root / "etc/shadow"
    elsewhere.write_text("secret\n")
    elsewhere.chmod(0o600)
    machine.file.symlink_to(elsewhere)
    probe = probe_of("modules", TOML, machine.around)
    drifts = probe.observe(1.0)
    assert [drift.found for drift in drifts if drift.key == MODPROBE_FILE] == [UNSEEN]
    probe.repair(drifts, 1.0)
    assert probe.observe(2.0) == []
    assert (elsewhere.read_text(), elsewhere.stat().st_mode & 0o777) == ("secret\n", 0o600)
    assert not machine.file.is_symlink()


def test_d06_a_linked_folder_and_a_second_name_lead_nowhere(machine: Machine) -> None:
    elsewhere = machine.root / "elsewhere"
    elsewhere.mkdir()
    other = elsewhere / "other.conf"
    other.write_text("other\n")
    os.link(other, machine.file)
    probe = probe_of("modules", TOML, machine.around)
    probe.repair(probe.observe(1.0), 1.0)
    assert other.read_text() == "other\n"
    machine.file.unlink()
    machine.file.parent.rmdir()
    machine.file.parent.symlink_to(elsewhere)
    probe.repair(probe.observe(2.0), 2.0)
    assert [path.name for path in elsewhere.iterdir()] == ["other.conf"]
    assert UNSEEN in [drift.found for drift in probe.observe(3.0)]


def test_what_the_file_says_is_what_modprobe_reads(machine: Machine) -> None:
    probe = probe_of("modules", TOML, machine.around)
    probe.repair(probe.observe(1.0), 1.0)
    lines = [line for line in machine.file.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["install dccp /bin/false", "install usb_storage /bin/false"]
    assert machine.file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in machine.file.parent.iterdir()] == [machine.file.name]
    probe.undo()
    assert not machine.file.exists()


def test_a_blocked_module_that_is_built_in_is_a_drift(machine: Machine) -> None:
    release = machine.root / "usr/lib/modules" / os.uname().release
    release.mkdir(parents=True)
    (release / "modules.builtin").write_text(
        "kernel/drivers/usb/storage/usb-storage.ko\nkernel/fs/ext4/ext4.ko\n"
    )
    assert machine.found(TOML)["module usb_storage"] == "built into the kernel"


def test_unloading_is_tried_only_when_asked_and_never_for_another_kernels_tree(machine: Machine) -> None:
    name = "rf_no_such_module"  # the running kernel has none of that name
    machine.list(f"{name} 4096 0 - Live 0x0\n")
    with pytest.raises(OSError, match=r"No such file|not implemented|not permitted"):
        machine.around.host.modules.unload(name)
    (machine.kernel / "random/boot_id").write_text("another\n")
    with pytest.raises(PermissionError, match="another kernel"):
        machine.around.host.modules.unload(name)
    for unload in ("false", "true"):
        toml = f'[modules]\nunload = {unload}\n[[modules.block]]\nnames = ["{name}"]\nreason = "why"\n'
        probe = probe_of("modules", toml, machine.around)
        probe.repair(probe.observe(1.0), 1.0)
        assert f"module {name}" in [drift.key for drift in probe.observe(2.0)]


def test_a_list_that_does_not_parse_is_not_silence(machine: Machine) -> None:
    machine.list("nf_tables\n")
    assert machine.found("[modules]\n") == {"modules": UNSEEN}


def test_the_running_kernel_answers(tmp_path: Path) -> None:
    modules = Host().modules
    listed = Path("/proc/modules")
    assert modules.loadable() == listed.exists()
    if not listed.exists():  # a kernel without modules: nothing can be loaded, nothing is wrong
        toml = '[modules]\nsignatures = "required"\nloading = "closed"\nclosed_after_s = 0\n'
        assert probe_of("modules", toml, Surroundings(host=Host())).observe(1.0) == []
        return
    assert [module.name for module in modules.loaded()] == sorted(
        line.split()[0] for line in listed.read_text().splitlines()
    )
    assert modules.hidden() == []


def test_the_kernels_own_state_of_lockdown_is_read(tmp_path: Path) -> None:
    security = tmp_path / "kernel/security"
    security.mkdir(parents=True)
    script = f"mount -t securityfs none {security} && cat {security}/lockdown"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no lockdown here: {done.stderr.strip()}")
    (security / "lockdown").write_text(done.stdout)
    state = Host(sysfs_root=tmp_path).modules.lockdown()
    assert f"[{state}]" in done.stdout
