"""What packages install, without building them: units, scripts and files that are there and agree with each other."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[1]
CONTROLLERS = {"ringfence-controller.service", "ringfence-backup.timer"}
UNITS = sorted((TREE / "packaging/systemd").iterdir())
SCRIPTS = sorted(path for path in (TREE / "packaging/os").glob("[!_]*/p*") if path.is_file())


def started(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the package starts it."""
    script = TREE / f"packaging/os/start/{program.replace('-', '_')}.py"
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=TREE,
        env={**os.environ, "PYTHONPATH": str(TREE)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("program", ["ringfence-agent", "ringfence-controller", "ringfence"])
def test_every_program_tells_its_version(program: str) -> None:
    version = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"]
    done = started(program, "--version")
    assert (done.returncode, done.stdout) == (0, f"{program}, version {version}\n"), done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_scripts_are_taken_by_the_shell_and_stop_at_the_first_error(path: Path) -> None:
    subprocess.run(["sh", "-n", path], check=True)
    assert "\nset -e\n" in path.read_text()


def test_scripts_enable_and_disable_every_unit_that_wants_to_be() -> None:
    wanting = {unit.name for unit in UNITS if "[Install]" in unit.read_text()} - CONTROLLERS
    for script in ("postinst", "prerm"):
        named = set(
            re.findall(
                r"ringfence-[a-z]+\.(?:service|path|socket)",
                (TREE / "packaging/os/agent" / script).read_text(),
            )
        )
        assert wanting <= named, script
    for unit in UNITS:
        found = re.search(r"^WantedBy=(\S+)$", unit.read_text(), re.M)
        if found and unit.name in wanting:
            assert f"{unit.name}:{found[1]}" in (TREE / "packaging/os/agent/postinst").read_text()


def test_no_script_starts_anything_or_opens_the_fence() -> None:
    for path in SCRIPTS:
        text = path.read_text()
        assert "systemctl start" not in text
        assert path.name == "prerm" or not re.search(r"^\s*nft (flush|delete)", text, re.M)


@pytest.mark.parametrize(
    ("asked", "code", "kept"), [("", 0, True), ("keep", 0, True), ("open", 0, False), ("opne", 1, True)]
)
@pytest.mark.parametrize("argument", ["remove", "0", "upgrade", "1"])
def test_removal_opens_the_fence_only_when_asked(argument: str, asked: str, code: int, kept: bool) -> None:
    """With the real nftables, in a network namespace of its own. Other people's tables stay in any case."""
    removes = argument in ("remove", "0")
    script = f"""
        nft add table inet ringfence; nft add table arp ringfence; nft add table netdev ringfence-cut; nft add table inet theirs
        mount -t tmpfs none /etc/systemd; [ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd
        {"unset RINGFENCE_ON_REMOVE" if not asked else f"export RINGFENCE_ON_REMOVE={asked}"}
        sh {TREE}/packaging/os/agent/prerm {argument} 1.0; echo code $?; nft list tables
    """
    told = subprocess.run(["unshare", "-n", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert f"code {code if removes else 0}\n" in told.stdout
    assert "table inet theirs" in told.stdout
    for table in ("inet ringfence\n", "arp ringfence\n", "netdev ringfence-cut\n"):
        assert (f"table {table}" in told.stdout) == (kept or not removes), told.stdout + told.stderr
    if removes:
        assert {0: "stays in the kernel" if kept else "was opened, as asked", 1: "nothing was changed"}[
            code
        ] in told.stderr


def test_removal_by_rpm_opens_the_fence_of_the_machine() -> None:
    """Scripts have a network namespace of their own there (rpm 4.20, plugin unshare): process 1 is in the one that counts."""
    script = f"""
        nft add table inet ringfence; nft add table inet theirs
        mount -t tmpfs none /etc/systemd; mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mkdir /run/systemd/system
        RINGFENCE_ON_REMOVE=open unshare -n sh {TREE}/packaging/os/agent/prerm 0; echo code $?; nft list tables
    """
    alone = ["unshare", "-n", "-m", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    told = subprocess.run(alone, capture_output=True, text=True)
    assert told.stdout == "code 0\ntable inet theirs\n" and "opened, as asked" in told.stderr, told


@pytest.mark.parametrize(("asked", "code"), [("open", 1), ("keep", 0)])
def test_removal_that_opens_the_fence_is_refused_where_nft_does_not_answer(asked: str, code: int) -> None:
    script = f"""
        nft add table inet ringfence; mount -t tmpfs none /etc/systemd; [ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd
        mkdir -p /etc/systemd/system/paths.target.wants; touch /etc/systemd/system/paths.target.wants/ringfence-grants.path
        export RINGFENCE_ON_REMOVE={asked}
        setpriv --bounding-set=-net_admin --inh-caps=-net_admin sh {TREE}/packaging/os/agent/prerm remove; echo code $?
        ls /etc/systemd/system/paths.target.wants; nft list tables
    """
    told = subprocess.run(["unshare", "-n", "-m", "sh", "-c", script], capture_output=True, text=True)
    left = "ringfence-grants.path\n" if code else ""
    assert told.stdout == f"code {code}\n{left}table inet ringfence\n", told
    assert ("the fence cannot be opened: " in told.stderr and "nothing was changed" in told.stderr) == bool(
        code
    )


def test_units_run_commands_that_there_are_and_wait_for_their_configuration() -> None:
    for unit in UNITS:
        text = unit.read_text()
        for program, command in re.findall(r"^ExecStart=/usr/bin/(ringfence[a-z-]*) ([a-z-]+)", text, re.M):
            done = started(program, command, "--help")
            assert done.returncode == 0, f"{unit.name}: {program} {command}: {done.stderr}"
            assert f"{command} [" in done.stdout + done.stderr
    assert (
        "ConditionPathExists=/etc/ringfence/agent.toml"
        in (TREE / "packaging/systemd/ringfence-agent.service").read_text()
    )


def test_units_are_what_systemd_understands() -> None:
    """By systemd itself, where it is installed."""
    try:
        done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no systemd-analyze here")
    assert done.returncode == 0
    for unit in UNITS:
        told = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
        wrong = [line for line in told.stderr.splitlines() if "Unknown" in line or "ignoring" in line]
        assert not wrong, f"{unit.name}: {wrong}"


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg here")
@pytest.mark.parametrize("package", ["agent", "controller"])
def test_a_downgrade_is_refused_unless_asked_for(package: str, tmp_path: Path) -> None:
    script = tmp_path / "preinst"
    script.write_text((TREE / f"packaging/os/{package}/preinst").read_text().replace("@VERSION@", "1.9.0"))
    cases = [
        (["install"], {}, 0),
        (["install", "1.10.0-1"], {}, 1),
        (["upgrade", "1.10.0-1"], {}, 1),
        (["upgrade", "1.10.0-1"], {"RINGFENCE_DOWNGRADE": "1"}, 0),
        (["upgrade", "1.9.0-1"], {}, 0),
        (["upgrade", "1.8.7-1"], {}, 0),
        (["abort-upgrade", "1.10.0-1"], {}, 0),
        (["2"], {}, 0),  # rpm's word for an upgrade
    ]
    for arguments, around, code in cases:
        done = subprocess.run(
            ["sh", script, *arguments],
            env={"PATH": os.environ["PATH"], **around},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (arguments, done.stderr)
        assert ("RINGFENCE_DOWNGRADE=1" in done.stderr) == bool(code)


MOST_EXPOSED = {
    "ringfence-agent.service": 3.0,
    # Root, with mounts, modules and files of the whole machine, for a moment and without a network: what is left to systemd is little.
    "ringfence-repair.service": 4.8,
    "ringfence-early.service": 3.3,
    "ringfence-fence.service": 2.7,
    "ringfence-grants.service": 2.6,
    "ringfence-upgrade.service": 3.9,
    "ringfence-controller.service": 1.5,
    "ringfence-backup.service": 1.5,
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize(
    "unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.stem
)
def test_a_unit_is_exposed_no_more_than_its_work_asks_for(unit: Path) -> None:
    told = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={MOST_EXPOSED[unit.name] * 10:.0f}",
            unit,
        ],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout[-300:] + told.stderr


def test_the_unit_for_repairs_leaves_them_what_their_code_asks_of_the_kernel() -> None:
    """Mounts in another mount namespace, a network namespace for the dry run, a foreign file: with the unit's capabilities alone."""
    unit = (TREE / "packaging/systemd/ringfence-repair.service").read_text()
    named = re.search(r"^CapabilityBoundingSet=(.+)$", unit, re.M)
    assert named
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in named[1].split())
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def must(done): assert done == 0, os.strerror(ctypes.get_errno())
here = os.open("/proc/{os.getpid()}/ns/mnt", os.O_RDONLY)
net = os.open("/proc/{os.getpid()}/ns/net", os.O_RDONLY)
must(libc.unshare(0x00000200))
must(libc.setns(here, 0x00020000))
must(libc.unshare(0x40000000))
must(libc.setns(net, 0x40000000))
"""
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "setpriv",
            "--bounding-set",
            f"-all,{kept}",
            "--inh-caps",
            "-all",
            "--no-new-privs",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_what_root_has_left_in_the_state_folder_becomes_the_agents_and_nothing_else_does(
    tmp_path: Path,
) -> None:
    """The folder was the agent's before: links in it must lead root nowhere."""
    state, theirs = tmp_path / "state", tmp_path / "theirs"
    (state / "tuf").mkdir(parents=True)
    for path in (state / "keys", state / "tuf/root.json", theirs, tmp_path / "linked"):
        path.write_text("x")
    (state / "link").symlink_to(theirs)
    (state / "up").symlink_to(tmp_path)
    (state / "second").hardlink_to(tmp_path / "linked")
    (state / "another").write_text("x")
    os.chown(state / "another", 64_442, 64_442)
    script = TREE / "packaging/os/agent/prepare"
    done = subprocess.run(["sh", script, state, "nobody"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    given = {path.name for path in (state, *state.rglob("*")) if path.lstat().st_uid == nobody}
    assert given == {"state", "tuf", "keys", "root.json"}
    assert {path.lstat().st_uid for path in (theirs, tmp_path / "linked", tmp_path)} == {0}
