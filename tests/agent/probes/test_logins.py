"""Ways to log in besides accounts and keys: made roots with a dpkg database, and sshd itself as witness where it is."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Surroundings
from agent.sshdconfig import key_files, other_ways, parse_sshd_config
from tests.agent.probes.case import probe_of
from tests.parts.packagekit import Dpkg

MODULES = "usr/lib/x86_64-linux-gnu/security"
CONFIG = "Include /etc/ssh/sshd_config.d/*.conf\n#AuthorizedKeysCommand none\nUsePAM yes\nX11Forwarding yes\n"
TOML = "[accounts]\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root in which a package has brought PAM, a login script, a rule of polkit and sshd."""
    dpkg = Dpkg(tmp_path)
    files = {
        f"{MODULES}/pam_unix.so": b"\x7fELF unix",
        "etc/profile.d/language.sh": b"export LANG=C\n",
        "usr/share/polkit-1/rules.d/50-default.rules": b"polkit.addAdminRule(...)\n",
        "etc/ssh/sshd_config": CONFIG.encode(),
    }
    dpkg.install("base", "1", files)
    (dpkg.root / "lib").symlink_to("usr/lib")
    (dpkg.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (dpkg.root / "etc/group").write_text("root:x:0:\n")
    (dpkg.root / "etc/ssh/sshd_config.d").mkdir()
    return dpkg.root


def _found(root: Path, more: str = "") -> dict[str, str]:
    probe = probe_of("accounts", TOML + more, Surroundings(host=Host(root=root)))
    return {drift.key: drift.found for drift in probe.observe(1.0)}


def test_what_packages_brought_is_no_drift(root: Path) -> None:
    assert _found(root) == {}
    assert len(_found(root, 'packaged = "report"\n')) == 3


@pytest.mark.parametrize(
    "path",
    [
        f"{MODULES}/pam_unix.so",
        f"{MODULES}/pam_evil.so",
        "usr/lib64/security/pam_evil.so",
        "etc/profile.d/evil.sh",
        "etc/profile.d/language.sh",
        "etc/polkit-1/rules.d/10-evil.rules",
        "usr/share/polkit-1/rules.d/10-evil.rules",
        "etc/polkit-1/localauthority/50-local.d/evil.pkla",
    ],
)
def test_d10_what_no_package_brought_is_told_until_it_is_listed(root: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"\x7fELF evil")
    sha256 = hashlib.sha256(b"\x7fELF evil").hexdigest()
    assert _found(root) == {f"/{path}": f"sha256 {sha256}"}
    entry = f'[[accounts.file]]\npath = "/{path}"\nsha256 = "{sha256}"\nreason = "ours"\n'
    assert _found(root, entry) == {}
    (root / path).write_bytes(b"\x7fELF other")
    assert list(_found(root, entry)) == [f"/{path} sha256"]
    (root / path).unlink()
    assert _found(root, entry)[f"/{path}"] == "not there"


def test_d10_a_link_in_place_of_a_module_is_told(root: Path) -> None:
    (root / MODULES / "pam_evil.so").symlink_to("/tmp/evil.so")
    assert _found(root) == {f"/{MODULES}/pam_evil.so": "link to /tmp/evil.so"}


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("AuthorizedKeysFile /etc/keys/%u .ssh/authorized_keys", "sshd keys /etc/keys/%u"),
        ("authorizedkeysfile=/tmp/%u", "sshd keys /tmp/%u"),
        ("Match User anna\n  AuthorizedKeysFile /tmp/keys", "sshd keys /tmp/keys"),
        ("AuthorizedKeysCommand /tmp/evil", "sshd AuthorizedKeysCommand /tmp/evil"),
        ("TrustedUserCAKeys /etc/ssh/ca", "sshd TrustedUserCAKeys /etc/ssh/ca"),
        ("PermitEmptyPasswords yes", "sshd PermitEmptyPasswords yes"),
        ("HostbasedAuthentication yes", "sshd HostbasedAuthentication yes"),
        ("UsePAM no # comment", "sshd UsePAM no # comment"),
    ],
)
@pytest.mark.parametrize("file", ["sshd_config", "sshd_config.d/10-evil.conf"])
def test_d10_keys_that_sshd_takes_from_elsewhere_are_told(root: Path, line: str, key: str, file: str) -> None:
    path = root / "etc/ssh" / file
    path.write_text((path.read_text() if path.exists() else "") + line + "\n")
    assert list(_found(root)) == [key]
    last = line.splitlines()[-1].strip()
    keys = key.removeprefix("sshd keys ")
    allowed = f'sshd = ["{last}"]\n'
    if keys != key:
        allowed = f'authorized_keys = [".ssh/authorized_keys", ".ssh/authorized_keys2", "{keys}"]\n'
    assert _found(root, allowed) == {}


def test_keys_in_home_count_where_sshd_does_not_say_otherwise(root: Path) -> None:
    elsewhere = 'authorized_keys = ["/etc/keys/%u"]\n'
    assert list(_found(root, elsewhere)) == [
        "sshd keys .ssh/authorized_keys",
        "sshd keys .ssh/authorized_keys2",
    ]
    (root / "etc/ssh/sshd_config").write_text("AuthorizedKeysFile /etc/keys/%u\n")
    assert _found(root, elsewhere) == {}
    (root / "etc/ssh/sshd_config").write_text("Match User anna\nAuthorizedKeysFile none\n")
    assert len(_found(root, elsewhere)) == 2  # it holds for her alone
    (root / "etc/ssh/sshd_config").unlink()
    assert _found(root, elsewhere) == {}  # no sshd


def test_a_configuration_that_cannot_be_followed_is_told(root: Path) -> None:
    (root / "etc/ssh/sshd_config").write_text("Include /etc/*/evil.conf\n")
    assert _found(root) == {"/etc/ssh/sshd_config": "?"}
    (root / "etc/ssh/sshd_config").unlink()
    (root / "etc/ssh/sshd_config").symlink_to("/tmp/sshd_config")
    assert _found(root) == {"/etc/ssh/sshd_config": "?"}


def test_includes_in_a_circle_end(root: Path) -> None:
    (root / "etc/ssh/sshd_config").write_text("Include sshd_config\nInclude sshd_config.d/*\n")
    (root / "etc/ssh/sshd_config.d/a").write_text("Include /etc/ssh/sshd_config\nPermitEmptyPasswords yes\n")
    assert list(_found(root)) == ["sshd PermitEmptyPasswords yes"]


@pytest.mark.skipif(shutil.which("sshd") is None, reason="no sshd here")
def test_lines_mean_what_sshd_says_they_mean(tmp_path: Path) -> None:
    """`sshd -T` as witness: quotes, `=`, capitals, blanks."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    for line, wanted in (
        ('AuthorizedKeysFile "/a b" .ssh/c', ["/a b", ".ssh/c"]),
        ("authorizedKEYSfile=/x/%u", ["/x/%u"]),
        ("  AuthorizedKeysFile \t = %h/.ssh/y", [".ssh/y"]),
    ):
        config = tmp_path / "config"
        config.write_text(line + "\n")
        argv = [shutil.which("sshd") or "", "-T", "-f", str(config), "-h", str(key)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        shown = next(each for each in said.splitlines() if each.startswith("authorizedkeysfile "))
        found = [pattern for _, pattern in key_files(parse_sshd_config(config.read_bytes()))]
        assert found == wanted
        assert shown.removeprefix("authorizedkeysfile ").replace("%h/", "") == " ".join(wanted)


def test_garbage_is_no_setting_and_no_crash() -> None:
    raw = b'\xff\xfe\0 \nMatch\nAuthorizedKeysCommand\n"quoted" x\n' + b"A" * 100_000
    settings = parse_sshd_config(raw)
    assert [each.keyword for each in settings if each.keyword != "a" * 100_000] == []
    assert list(other_ways(settings)) == []
