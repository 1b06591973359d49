"""Packages: in roots that dpkg and rpm made, and in this machine's own database."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import UNSEEN, Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.packagekit import Dpkg, Rpm, write_status

TOML = """\
[packages]
[[packages.want]]
name = "tool"
minimum = "1:1.0-2"
reason = "before that it took any password"
[[packages.forbid]]
name = "telnetd*"
reason = "passwords in the clear"
[[packages.allow]]
names = ["lib*", "base"]
reason = "what the image has"
"""
_FILE = {"usr/share/x": b"x\n"}


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    good = [("tool", "1:1.0-10", "installed"), ("libx", "1", "installed"), ("base", "1", "installed")]
    write_status(folder, *good)
    status = folder / "var/lib/dpkg/status"
    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(root=folder)),
        spoil=lambda: write_status(folder, *good[1:], ("telnetd", "0.17", "installed")),
        blind=status.unlink,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        mends=False,
    )


def _found(folder: Path, toml: str) -> list[tuple[str, str, str]]:
    probe = probe_of("packages", toml, Surroundings(host=Host(root=folder)))
    return [(drift.key, drift.wanted, drift.found) for drift in probe.observe(1.0)]


def test_missing_old_half_installed_forbidden_and_unknown(tmp_path: Path) -> None:
    write_status(tmp_path, ("tool", "1:1.0-10", "unpacked"))
    assert _found(tmp_path, TOML) == [("tool", "1:1.0-2 or newer", "unpacked")]
    write_status(tmp_path, ("tool", "1:1.0~rc3-2", "installed"), ("telnetd-ssl", "1", "installed"))
    assert _found(tmp_path, TOML) == [
        ("tool", "1:1.0-2 or newer", "1:1.0~rc3-2"),
        ("telnetd-ssl", "not installed (passwords in the clear)", "1"),
        ("telnetd-ssl", "a package that is wanted or allowed", "1"),
    ]
    ignored = TOML.replace("[packages]\n", '[packages]\nunknown = "ignore"\n', 1)
    assert len(_found(tmp_path, ignored)) == 2


def test_an_empty_section_allows_nothing_and_stays_short(tmp_path: Path) -> None:
    write_status(tmp_path, *((f"p{number:03}", "1", "installed") for number in range(500)))
    found = _found(tmp_path, "[packages]\n")
    assert len(found) == 33
    assert found[-1] == ("unknown packages", "none", "468 more than the 32 that are named")


def test_forbidden_below_a_version(tmp_path: Path) -> None:
    toml = '[packages]\nunknown = "ignore"\n[[packages.forbid]]\nname = "xz*"\nbelow = "5.6.1+really5.4.5"\nreason = "back door"\n'
    write_status(
        tmp_path, ("xz-utils", "5.6.1-1", "installed"), ("xz-doc", "5.6.1+really5.4.5-1", "installed")
    )
    assert [key for key, _, _ in _found(tmp_path, toml)] == ["xz-utils"]


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[[packages.forbid]]\nname = "to*"\nreason = "why"\n', "wanted or forbidden"),
        ('[[packages.want]]\nname = "tool"\nreason = "why"\n', "each wanted package once"),
        ('[[packages.forbid]]\nname = "base"\nreason = "why"\n', "allowed or forbidden"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(toml: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("packages", TOML + toml)


def test_a_root_that_dpkg_made(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1:1.0-2", _FILE)
    assert _found(dpkg.root, TOML) == []
    dpkg.install("stranger", "1", {"usr/share/y": b"y\n"})
    assert _found(dpkg.root, TOML) == [("stranger", "a package that is wanted or allowed", "1")]


def test_a_root_that_rpm_made(tmp_path: Path) -> None:
    rpm = Rpm(tmp_path)
    rpm.install("tool", "1.0~rc1", {"usr/bin/tool": b"one\n"})
    toml = '[packages]\n[[packages.want]]\nname = "tool"\nminimum = "1.0"\nreason = "why"\n'
    assert _found(rpm.root, toml) == [("tool", "1.0 or newer", "1.0~rc1-1")]
    rpm.install("tool", "1.0", {"usr/bin/tool": b"two\n"})
    assert _found(rpm.root, toml) == []


def test_this_machines_packages_are_those_that_dpkg_query_shows() -> None:
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("no dpkg")
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${db:Status-Status}\n"],
        capture_output=True,
        text=True,
    )
    wanted = {tuple(line.split("\t")) for line in listed.stdout.splitlines()}
    found = Host().packages.versions()
    assert {(p.name, p.version, p.state) for p in found if p.kind == "dpkg"} == {
        each for each in wanted if each[2] not in ("config-files", "not-installed")
    }


def test_the_database_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    write_status(tmp_path, ("tool", "1:2", "installed"))
    probe = probe_of("packages", TOML, Surroundings(host=Host(root=tmp_path)))
    assert probe.observe(1.0) == []
    write_status(tmp_path, ("tool", "1:0", "installed"))
    assert [drift.found for drift in probe.observe(2.0)] == ["1:0"]
    (tmp_path / "var/lib/dpkg/status").unlink()
    assert [drift.found for drift in probe.observe(3.0)] == [UNSEEN]
