"""Accounts of vendors: shut while no grant is open. Real files below a made root, a real process of a real user."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.grants import OpenGrant
from agent.host import Host
from agent.probes import Surroundings
from contract.errors import Rejected
from tests.agent.firewall.lab import until
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace

UID = 61_234
"""Nobody's on the machine that runs this."""
TOML = """\
[access]

[[access.accounts]]
names = ["vendor"]
max_s = 14400
reason = "the press maker's technician"
"""
NOW = 1_700_000_000.0


def _files(folder: Path, expiry: str) -> None:
    (folder / "etc").mkdir(exist_ok=True)
    (folder / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/sh\nvendor:x:{UID}:{UID}::/:/bin/sh\n")
    (folder / "etc/shadow").write_text(
        f"root:*:19000:0:99999:7:::\nvendor:$6$a$b:19000:0:99999:7::{expiry}:\n"
    )
    (folder / "etc/.pwd.lock").touch()


def expiry(folder: Path) -> str:
    """The eighth field, as a witness of its own reads it."""
    line = next(each for each in (folder / "etc/shadow").read_text().splitlines() if "vendor" in each)
    return line.split(":")[7]


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    _files(folder, "1")

    def blind() -> None:
        (folder / "etc/shadow").unlink()
        (folder / "etc/shadow").mkdir()

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(root=folder, sysfs_root=folder / "sys"), remembered={}),
        spoil=lambda: _files(folder, ""),
        blind=blind,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=(TOML.replace('"vendor"', '"other", "vendor"'), TOML.replace("14400", "60")),
    )


def _granted(case: Case, ends_at: float) -> Surroundings:
    grant = OpenGrant(id=1, ends_s=1e9, accounts=("vendor",), ends_at=ends_at)
    return replace(case.around, grants=(grant,))


def test_an_account_is_open_while_a_grant_is_and_shut_after_it(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        probe = probe_of("access", TOML, _granted(made, NOW + 3600))
        probe.repair(probe.observe(NOW), NOW)
        assert expiry(tmp_path) == str(int((NOW + 3600) // 86400) + 1), (
            "shut by itself at the end of that day"
        )
        assert probe.observe(NOW) == []
        probe.around = made.around
        drifts = probe.observe(NOW)
        assert [drift.key for drift in drifts] == ["account vendor"]
        probe.repair(drifts, NOW)
        assert expiry(tmp_path) == "1"
        shadow = (tmp_path / "etc/shadow").read_text()
        assert shadow.startswith("root:*:19000:0:99999:7:::\nvendor:$6$a$b:19000:0:99999:7::1:")


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's process")
def test_d10_what_runs_under_an_account_ends_when_it_is_shut(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        sleeping = subprocess.Popen(["sleep", "60"], user=UID)
        try:
            time.sleep(0.1)
            probe = probe_of("access", TOML, _granted(made, NOW + 3600))
            probe.repair(probe.observe(NOW), NOW)
            assert sleeping.poll() is None, "the grant is open"
            probe.around = made.around
            drifts = probe.observe(NOW)
            assert [drift.key for drift in drifts] == ["account vendor", "account vendor processes"]
            probe.repair(drifts, NOW)
            assert sleeping.wait(5) == -9
        finally:
            with suppress(ProcessLookupError):
                sleeping.kill()
            sleeping.wait(5)


SESSION = """# This is private data. Do not parse.
UID={uid}
USER=vendor
ACTIVE=1
STATE=active
REMOTE=1
TYPE=tty
CLASS=user
REMOTE_HOST={host}
SERVICE=sshd
"""


def log_in(folder: Path, number: str, host: str, uid: int = UID) -> None:
    """What systemd-logind writes when somebody logs in."""
    there = folder / "run/systemd/sessions"
    there.mkdir(parents=True, exist_ok=True)
    (there / number).write_text(SESSION.format(uid=uid, host=host))


def test_every_login_under_an_account_that_a_grant_has_opened_is_a_use_of_it(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        probe = probe_of("access", TOML, made.around)
        log_in(tmp_path, "1", "198.51.100.1")
        probe.observe(NOW)
        assert probe.notices(NOW) == [], "no grant is open"
        (tmp_path / "run/systemd/sessions/1").unlink()
        os.mkfifo(tmp_path / "run/systemd/sessions/2.ref")
        (tmp_path / "run/systemd/sessions/9").write_text("UID=-1\n")
        probe.around = _granted(made, NOW + 3600)
        log_in(tmp_path, "2", "198.51.100.7")
        log_in(tmp_path, "3", "198.51.100.9", uid=0)
        probe.observe(NOW)
        (used,) = probe.notices(NOW)
        assert used.kind == "grant.used"
        assert used.detail == {"grant": "1", "source": "account vendor from 198.51.100.7 by sshd"}
        log_in(tmp_path, "4", "198.51.100.7")
        log_in(tmp_path, "c5", "")
        found = [each.detail["source"] for each in probe.notices(NOW)]
        assert found == ["account vendor from here by sshd"], "each place once"
        probe.around = made.around
        assert probe.notices(NOW) == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's process")
def test_without_sessions_a_process_under_the_account_is_the_use(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        probe = probe_of("access", TOML, _granted(made, NOW + 3600))
        assert probe.notices(NOW) == []
        sleeping = subprocess.Popen(["sleep", "60"], user=UID)
        try:
            told = probe.notices(NOW)
            assert [each.kind for each in told] == ["grant.used"]
            assert f"pid {sleeping.pid}" in told[0].detail["source"]
            assert probe.notices(NOW) == [], "once"
        finally:
            sleeping.kill()
            sleeping.wait(5)


def test_a_login_wakes_the_section_while_a_grant_is_open(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        woken: list[str] = []
        (tmp_path / "run/systemd/sessions").mkdir(parents=True)
        host = made.around.host
        host.wake = woken.append
        probe = probe_of("access", TOML, made.around)
        try:
            probe.observe(NOW)
            probe.around = _granted(made, NOW + 3600)
            probe.observe(NOW)
            log_in(tmp_path, "2", "198.51.100.7")
            until(lambda: "access" in woken)
        finally:
            host.close()


def test_a_file_that_somebody_else_changes_now_is_left_alone(tmp_path: Path) -> None:
    with case(tmp_path) as made:
        made.spoil()
        holder = subprocess.Popen(
            ["python3", "-c", HOLDER, str(tmp_path / "etc/.pwd.lock")], stdout=subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            probe = probe_of("access", TOML, made.around)
            with pytest.raises(OSError, match="unavailable"):
                probe.repair(probe.observe(NOW), NOW)
            assert expiry(tmp_path) == ""
        finally:
            holder.kill()
            holder.wait(5)


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w"); fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize(
    ("find", "put", "where"),
    [
        ('names = ["vendor"]', "names = []", "access.accounts"),
        ('names = ["vendor"]', 'names = ["root"]', "access.accounts"),
        ('names = ["vendor"]', 'names = ["vendor", "vendor"]', "access"),
        ("max_s = 14400", "max_s = 0", "access.accounts"),
        ("max_s = 14400", "max_s = 99999999", "access.accounts"),
        ("[access]\n", '[access]\n[[access.network]]\nname = "a"\n', "access.network"),
        (
            "[access]\n",
            "[access]\n[[access.network]]\n"
            'name = "a"\ndirection = "in"\nzone = "gone"\nprotocol = "tcp"\nports = [22]\nmax_s = 60\nreason = "why"\n',
            "access.network[0].zone",
        ),
        (
            "[access]\n",
            '[firewall.zones.gone]\ninterfaces = ["eth0"]\nmacs = ["02:00:00:00:00:01"]\n[access]\n[[access.network]]\n'
            'name = "a"\ndirection = "in"\nzone = "gone"\nprotocol = "tcp"\nports = [22]\nmax_s = 60\nreason = "why"\n',
            "access.network[0].zone",
        ),
        (
            "[access]\n",
            "[access]\n[[access.network]]\n"
            'name = "a"\ndirection = "in"\nzone = "gone"\nprotocol = "tcp"\nports = []\nmax_s = 60\nreason = "why"\n',
            "access.network",
        ),
    ],
)
def test_c16_a_bound_of_nothing_or_of_everything_is_refused(find: str, put: str, where: str) -> None:
    assert find in TOML
    with pytest.raises(Rejected) as refused:
        section_of("access", TOML.replace(find, put, 1))
    assert refused.value.code == "baseline.key"
    assert f": {where}" in refused.value.detail, refused.value.detail
