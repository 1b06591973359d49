"""What a node says of itself beside its logs: its operating system, and the packages that its boot is from."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.boot_packages import boot_packages
from agent.osrelease import os_release
from agent.packages import PackageDatabase
from contract import wire
from tests.parts.packagekit import Dpkg, Rpm


def named(root: Path) -> list[tuple[str, str]]:
    return [(change.name, change.after) for change in boot_packages(PackageDatabase(root))]


def test_boot_packages_of_dpkg_come_with_version_and_date_the_latest_first(tmp_path: Path) -> None:
    before = time.time() - 5
    dpkg = Dpkg(tmp_path)
    dpkg.install("linux-image-6.1.0-18-amd64", "6.1.76-1", {"boot/vmlinuz-6.1.0-18-amd64": b"18"})
    dpkg.install("shim-signed", "1.44", {"usr/lib/shim/shimx64.efi.signed": b"shim"})
    dpkg.install("tool", "1.0", {"usr/bin/tool": b"tool"})
    old = dpkg.root / "var/lib/dpkg/info/shim-signed.list"
    os.utime(old, (1e9, 1e9))
    assert named(dpkg.root) == [("linux-image-6.1.0-18-amd64", "6.1.76-1"), ("shim-signed", "1.44")]
    kernel, shim = boot_packages(PackageDatabase(dpkg.root))
    assert before < kernel.at <= time.time()
    assert (shim.at, shim.files, shim.before) == (1e9, {}, "")
    status = dpkg.root / "var/lib/dpkg/status"
    status.write_bytes(status.read_bytes().replace(b"Package: shim-signed", b"Package: shim-\xff"))
    (old.parent / "shim-\udcff.list").touch()
    assert [name for name, _ in named(dpkg.root)] == ["linux-image-6.1.0-18-amd64"]
    assert all(wire.encode(change) for change in boot_packages(PackageDatabase(dpkg.root)))


def test_boot_packages_of_rpm_come_with_version_and_date(tmp_path: Path) -> None:
    rpm = Rpm(tmp_path)
    rpm.install("kernel-core", "5.14.0", {"boot/vmlinuz": b"k"})
    rpm.install("tool", "1.0", {"usr/bin/tool": b"t"})
    assert named(rpm.root) == [("kernel-core", "5.14.0-1")]
    assert boot_packages(PackageDatabase(rpm.root))[0].at > 1e9


def test_a_machine_without_a_package_database_names_none(tmp_path: Path) -> None:
    assert named(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n', "debian 12"),
        ("ID='rhel'\nVERSION_ID='9.4'", "rhel 9.4"),
        ("ID=arch\n", "arch"),
        ("VERSION_ID=12\n", ""),
        ("ID=debian\nVERSION_ID=12\nVERSION_ID=13\n", "debian 13"),
        ("ID=Debian Linux\nVERSION_ID=12\n", ""),
        ('ID="debian\nVERSION_ID=1\x1b[2J\n', ""),
        ("ID_LIKE=debian\n", ""),
        ("", ""),
        ("\xff", ""),
    ],
)
def test_c12_the_operating_system_is_what_os_release_prescribes_or_nothing(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text(content, "latin-1")
    assert os_release(tmp_path) == said
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/os-release")
    assert os_release(tmp_path) == said


def test_what_is_no_file_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/os-release")
    assert os_release(tmp_path) == ""
    assert os_release(tmp_path / "nowhere") == ""
