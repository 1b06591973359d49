"""Accounts: made roots with the files as programs write them, keys of ssh-keygen, and this machine's own accounts."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.accountfiles import parse_authorized_keys, parse_group, parse_passwd, parse_sudoers
from agent.host import Host
from agent.probes import UNSEEN, Probe, Surroundings
from agent.probes import accounts as accounts_probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.packagekit import Dpkg

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
null:x:300:65534::/dev/null:/usr/sbin/nologin
anna:x:1000:1000:Anna:/home/anna:/bin/bash
"""
SHADOW = "root:$y$j9T$x$y:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\nanna:!:20000:0:99999:7:::\n"
GROUP = "root:x:0:\ndaemon:x:1:\nsudo:x:27:anna\nnogroup:x:65534:\nanna:x:1000:\n"
SUDOERS = """\
# comment that ends in \\
Defaults  env_reset
%sudo ALL=(ALL:ALL) \\
    ALL
@includedir /etc/sudoers.d
"""
KNOWN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGHnTVvH0xnn8o3OQDE8gzqTfMVAHuYC3gfEGr0eS8vZ anna@example.org"
STRANGE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3r4YcW4J9Zk0zM2hQw1m9qv9bC7uYt0zq6sZp3XkQe evil"
PAM = b"auth required pam_unix.so\n"


def _fingerprint(line: str) -> str:
    (key,) = parse_authorized_keys(line.encode())
    return key.fingerprint


TOML = f"""\
[accounts]
unknown = "repair"
[[accounts.user]]
name = "anna"
uid = 1000
shell = "/bin/bash"
reason = "keeps the line running"
[[accounts.group]]
name = "sudo"
members = ["anna"]
reason = "the same"
[[accounts.sudoers]]
path = "/etc/sudoers"
rules = ["Defaults env_reset", "%sudo ALL=(ALL:ALL) ALL"]
reason = "as installed"
[[accounts.key]]
user = "anna"
fingerprint = "{_fingerprint(KNOWN)}"
reason = "her laptop"
[[accounts.pam]]
path = "/etc/pam.d/sshd"
sha256 = "{hashlib.sha256(PAM).hexdigest()}"
reason = "as installed"
"""


def make(folder: Path) -> None:
    """Make a root that is as TOML wants it."""
    for name in ("etc/sudoers.d", "etc/pam.d", "usr/bin", "dev", "home/anna/.ssh"):
        (folder / name).mkdir(parents=True)
    (folder / "dev/null").touch()
    (folder / "bin").symlink_to("usr/bin")
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/shadow").write_text(SHADOW)
    (folder / "etc/group").write_text(GROUP)
    (folder / "etc/gshadow").write_text("sudo:*::anna\nroot:!::\n")
    (folder / "etc/sudoers").write_text(SUDOERS)
    (folder / "etc/sudoers.d/README").write_text("# nothing but comments\n")
    (folder / "etc/pam.d/sshd").write_bytes(PAM)
    keys = folder / "home/anna/.ssh/authorized_keys"
    keys.write_text(f"# hers\n{KNOWN}\n")
    keys.chmod(0o600)
    for path in (folder / "home/anna", folder / "home/anna/.ssh", keys):
        os.chown(path, 1000, 1000)


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    make(folder)

    def spoil() -> None:
        (folder / "etc/sudoers.d/90-evil").write_text("anna ALL=(ALL) NOPASSWD: ALL\n")
        (folder / "etc/sudoers.d/91-evil").symlink_to("/tmp/elsewhere")
        keys = folder / "home/anna/.ssh/authorized_keys"
        keys.write_text(f"# hers\n{STRANGE}\n{KNOWN}\n")

    def blind() -> None:
        (folder / "etc/passwd").unlink()
        (folder / "etc/passwd").symlink_to("/etc/passwd")

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(root=folder)),
        spoil=spoil,
        blind=blind,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=(
            TOML + '[[accounts.user]]\nname = "bert"\nreason = "new here"\n',
            TOML.replace('unknown = "repair"', 'unknown = "report"'),
        ),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


def _probe(root: Path, toml: str = TOML) -> Probe[accounts_probe.Section]:
    return probe_of("accounts", toml, Surroundings(host=Host(root=root)))


def _found(root: Path, toml: str = TOML) -> dict[str, str]:
    return {drift.key: drift.found for drift in _probe(root, toml).observe(1.0)}


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_d10_a_new_sudoers_file_is_taken_away_whole(root: Path) -> None:
    evil = root / "etc/sudoers.d/90-evil"
    evil.write_text("anna ALL=(ALL) NOPASSWD: ALL\n")
    evil.chmod(0o440)
    probe = _probe(root)
    (drift,) = probe.observe(1.0)
    assert drift.key == "/etc/sudoers.d/90-evil"
    assert drift.found.endswith(": anna ALL=(ALL) NOPASSWD: ALL")
    probe.repair([drift], 1.0)
    assert [path.name for path in (root / "etc/sudoers.d").iterdir()] == ["README"]
    probe.undo()
    assert (evil.read_text(), evil.stat().st_mode & 0o777) == ("anna ALL=(ALL) NOPASSWD: ALL\n", 0o440)


def test_d10_an_unknown_key_goes_and_the_known_one_stays(root: Path) -> None:
    keys = root / "home/anna/.ssh/authorized_keys"
    _append(keys, f'command="sh" {KNOWN}\n\t{STRANGE}\nnonsense\n')
    probe = _probe(root)
    drifts = probe.observe(1.0)
    assert [drift.key.rpartition(" ")[2] for drift in drifts] == [
        _fingerprint(KNOWN),
        _fingerprint(STRANGE),
        "5",
    ]
    probe.repair(drifts, 1.0)
    assert keys.read_text() == f"# hers\n{KNOWN}\n"
    facts = keys.stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (1000, 1000, 0o600)
    assert probe.observe(2.0) == []


def test_d10_a_second_key_file_and_one_of_a_system_user(root: Path) -> None:
    (root / "home/anna/.ssh/authorized_keys2").write_text(STRANGE)
    (root / "usr/bin/.ssh").mkdir()
    (root / "usr/bin/.ssh/authorized_keys").write_text(KNOWN)  # hers, and not bin's
    assert sorted(_found(root)) == [
        f"/home/anna/.ssh/authorized_keys2 {_fingerprint(STRANGE)}",
        f"/usr/bin/.ssh/authorized_keys {_fingerprint(KNOWN)}",
    ]


def test_d10_a_pam_file_that_is_new_or_changed(root: Path) -> None:
    (root / "etc/pam.d/sshd").write_bytes(b"auth sufficient pam_permit.so\n" + PAM)
    (root / "etc/pam.d/cron").write_bytes(PAM)
    assert sorted(_found(root)) == ["/etc/pam.d/cron", "/etc/pam.d/sshd sha256"]
    (root / "etc/pam.d/sshd").unlink()
    assert _found(root)["/etc/pam.d/sshd"] == "not there"


def test_d10_files_as_their_package_brought_them_need_no_entry(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    make(tmp_path / "made")
    (tmp_path / "made/bin").unlink()
    shutil.copytree(tmp_path / "made", dpkg.root, dirs_exist_ok=True, symlinks=True)
    dpkg.install("cron", "1", {"etc/pam.d/cron": PAM}, conffile="etc/pam.d/cron")
    assert _found(dpkg.root) == {}
    assert list(_found(dpkg.root, TOML.replace("[accounts]\n", '[accounts]\npackaged = "report"\n', 1))) == [
        "/etc/pam.d/cron"
    ]
    _append(dpkg.root / "etc/pam.d/cron", "auth sufficient pam_permit.so\n")
    assert list(_found(dpkg.root)) == ["/etc/pam.d/cron"]


@pytest.mark.parametrize("path", ["etc/sudoers", "etc/sudoers.d/tool", "etc/pam.conf"])
def test_d10_a_single_file_as_its_package_brought_it_needs_no_entry(tmp_path: Path, path: str) -> None:
    dpkg = Dpkg(tmp_path)
    (dpkg.root / "etc").mkdir()
    for name in ("passwd", "group"):
        (dpkg.root / "etc" / name).touch()
    dpkg.install("tool", "1", {path: b"Defaults env_reset\n"}, conffile=path)
    assert _found(dpkg.root, "[accounts]\n") == {}
    _append(dpkg.root / path, "eve ALL=(ALL) NOPASSWD: ALL\n")
    assert list(_found(dpkg.root, "[accounts]\n")) == [f"/{path}"]


def test_d10_lines_of_sudoers_that_look_like_comments(root: Path) -> None:
    sudoers = root / "etc/sudoers"
    _append(
        sudoers,
        "#1000 ALL=(ALL) NOPASSWD: ALL\n#include /tmp/x\n# a real comment \\\n%sudo ALL=(ALL) NOPASSWD: ALL\n",
    )
    assert list(_found(root).values()) == [
        "#1000 ALL=(ALL) NOPASSWD: ALL",
        "#include /tmp/x",
        "%sudo ALL=(ALL) NOPASSWD: ALL",
    ]


def test_d06_a_key_file_behind_a_link_is_told_and_nothing_behind_it_is_touched(root: Path) -> None:
    victim = root / "etc/victim"
    victim.write_text(STRANGE)
    keys = root / "home/anna/.ssh/authorized_keys"
    keys.unlink()
    keys.symlink_to(victim)
    probe = _probe(root)
    drifts = probe.observe(1.0)
    assert [(drift.key, drift.found) for drift in drifts] == [("/home/anna/.ssh/authorized_keys", UNSEEN)]
    probe.repair(drifts, 1.0)
    assert victim.read_text() == STRANGE
    keys.unlink()
    os.link(victim, keys)
    drifts = probe.observe(2.0)
    assert {drift.key for drift in drifts} == {
        "/home/anna/.ssh/authorized_keys names",
        f"/home/anna/.ssh/authorized_keys {_fingerprint(STRANGE)}",
    }
    before = tree_trace(root)
    probe.repair(drifts, 2.0)
    assert tree_trace(root) == before


def test_d06_a_link_to_a_home_that_is_not_roots_is_not_followed(root: Path) -> None:
    (root / "home/anna").rename(root / "home/else")
    (root / "home/anna").symlink_to("else")
    assert _found(root) == {}  # root's own link, in root's own folder
    os.lchown(root / "home/anna", 1000, 1000)
    assert _found(root) == {
        "/home/anna/.ssh/authorized_keys": UNSEEN,
        "/home/anna/.ssh/authorized_keys2": UNSEEN,
    }


def test_d08_an_immutable_key_file_stays_a_drift(root: Path) -> None:
    keys = root / "home/anna/.ssh/authorized_keys"
    _append(keys, STRANGE)
    if subprocess.run(["chattr", "+i", keys], capture_output=True).returncode:
        pytest.skip("the file system has no attributes")
    try:
        probe = _probe(root)
        drifts = probe.observe(1.0)
        probe.repair(drifts, 1.0)
        assert probe.observe(2.0)[0].key == drifts[0].key
        assert [path.name for path in keys.parent.iterdir()] == ["authorized_keys"]
    finally:
        subprocess.run(["chattr", "-i", keys], check=True)


def test_without_being_asked_nothing_is_repaired(root: Path) -> None:
    (root / "etc/sudoers.d/90-evil").write_text("anna ALL=(ALL) NOPASSWD: ALL\n")
    probe = _probe(root, TOML.replace('unknown = "repair"\n', ""))
    before = tree_trace(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert tree_trace(root) == before


def test_users_uid_0_and_passwords(root: Path) -> None:
    _append(
        root / "etc/passwd",
        "toor:x:0:0::/root:/usr/sbin/nologin\neve:x:1001:1001::/home/eve:\nshort:x:1\nanna::0:0::/:\n",
    )
    _append(root / "etc/shadow", "toor::1::::::\neve:$6$a$b:1::::::\n")
    assert _found(root) == {
        "/etc/passwd line 9": "another one",
        "user toor uid": "0",
        "user toor password": "empty",
        "user eve password": "set",
        "user eve": "/bin/sh",
        "user anna": "several",
        "user anna uid": "0",
        "user anna password": "empty",
        "user anna shell": "/bin/sh",
        "group root members": "also anna, toor",
    }


def test_members_of_privileged_groups_by_every_way(root: Path) -> None:
    (root / "etc/group").write_text(
        "root:x:0:eve\nsudo:x:27:anna,bob\nfriends:x:27:carl\ndocker:x:999:\nmine:x:5:x\n"
    )
    _append(root / "etc/passwd", "dora:x:1002:999::/home/dora:/usr/sbin/nologin\n")
    (root / "etc/gshadow").write_text("docker:$6$x$y::\nmine:$6$x$y::\n")
    assert _found(root) == {
        "group root members": "also eve",
        "group sudo members": "also bob",
        "group friends": "27",
        "group friends members": "also carl",
        "group docker members": "also dora",
        "group docker password": "set",
    }


def test_output_stays_short(root: Path) -> None:
    _append(root / "etc/passwd", "".join(f"u{n}:x:{2000 + n}:1::/none:/bin/sh\n" for n in range(500)))
    found = _found(root)
    assert len(found) == 17
    assert found["users"] == "484 more than the 16 that are named"


def test_many_unknown_sudoers_files_all_go(root: Path) -> None:
    for number in range(40):
        (root / f"etc/sudoers.d/evil{number:02}").write_text(f"u{number} ALL=(ALL) ALL\n")
    (root / "etc/sudoers.d/link").symlink_to("/tmp/evil")
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert probe.observe(2.0) == []


def test_undo_keeps_keys_that_were_added_since(root: Path) -> None:
    keys = root / "home/anna/.ssh/authorized_keys"
    _append(keys, STRANGE + "\n")
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    other = KNOWN.replace("anna@example.org", "again")
    _append(keys, other + "\n")
    probe.undo()
    assert keys.read_text() == f"# hers\n{KNOWN}\n{other}\n{STRANGE}\n"


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[[accounts.user]]\nname = "anna"\nreason = "why"\n', "each user once"),
        ('[[accounts.user]]\nname = "toor"\nuid = 0\nreason = "why"\n', "uid 0 for root"),
        ('[[accounts.sudoers]]\npath = "/etc/sudoers.d/x"\nreason = "why"\n', "one of sha256 and rules"),
        ('[[accounts.sudoers]]\npath = "/etc/../x"\nrules = []\nreason = "why"\n', "without '.' and '..'"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(toml: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("accounts", TOML + toml)


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen")
    lines = []
    for kind in ("ed25519", "ecdsa", "rsa"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", tmp_path / kind], check=True)
        lines.append((tmp_path / f"{kind}.pub").read_text().strip())
    lines[1] = f'from="10.0.0.1",command="echo \\"a b\\"" {lines[1]}'
    keys = tmp_path / "authorized_keys"
    keys.write_text("\n".join(lines) + "\n")
    listed = subprocess.run(["ssh-keygen", "-lf", keys], capture_output=True, text=True, check=True)
    found = parse_authorized_keys(keys.read_bytes())
    assert [key.fingerprint for key in found] == [line.split()[1] for line in listed.stdout.splitlines()]
    assert [key.options for key in found] == ["", 'from="10.0.0.1",command="echo \\"a b\\""', ""]


def test_this_machines_accounts_are_those_that_libc_shows() -> None:
    users, bad_users = parse_passwd(Path("/etc/passwd").read_bytes())
    groups, bad_groups = parse_group(Path("/etc/group").read_bytes())
    known = {user.pw_name: (user.pw_uid, user.pw_gid, user.pw_dir, user.pw_shell) for user in pwd.getpwall()}
    assert {user.name: (user.uid, user.gid, user.home, user.shell) for user in users} == known
    assert {group.name: group.gid for group in groups} == {
        group.gr_name: group.gr_gid for group in grp.getgrall()
    }
    assert not bad_users and not bad_groups
    found = _found(Path("/"), "[accounts]\n")
    assert UNSEEN not in found.values(), found


def test_sudoers_as_sudo_reads_them() -> None:
    assert parse_sudoers(SUDOERS.encode()) == ["Defaults env_reset", "%sudo ALL=(ALL:ALL) ALL"]
    assert parse_sudoers(b"a ALL=\\\n# ALL") == ["a ALL= # ALL"]
    assert parse_sudoers(b"a ALL=ALL \\") == ["a ALL=ALL"]
