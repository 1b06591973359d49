"""Real packages in a root of their own: built, installed and upgraded by dpkg and rpm themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def _run(*argv: object, cwd: Path | None = None) -> None:
    done = subprocess.run([*map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def write_status(root: Path, *packages: tuple[str, str, str]) -> None:
    """Put dpkg's word on name, version and state of every package into a root, in one step as dpkg does."""
    text = "".join(
        f"Package: {name}\nStatus: install ok {state}\nArchitecture: all\nVersion: {version}\n\n"
        for name, version, state in packages
    )
    folder = root / "var/lib/dpkg"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status-new").write_text(text)
    (folder / "status-new").rename(folder / "status")


class Dpkg:
    """A Debian root."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("dpkg-deb") is None:
            pytest.skip("no dpkg")
        self.root = folder / "root"
        self._build = folder / "build"
        for name in ("info", "updates", "triggers"):
            (self.root / "var/lib/dpkg" / name).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        (self.root / "usr/bin").mkdir(parents=True)
        (self.root / "bin").symlink_to("usr/bin")

    def install(self, name: str, version: str, files: Mapping[str, bytes], conffile: str = "") -> None:
        """Build a package of these files (path without the first slash) and install it, or upgrade to it."""
        tree = self._build / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        (tree / "DEBIAN/control").write_text(control)
        if conffile:
            (tree / "DEBIAN/conffiles").write_text(f"/{conffile}\n")
        sums = subprocess.run(
            ["md5sum", *(path for path in files if path != conffile)],
            cwd=tree,
            capture_output=True,
            check=True,
        )
        (tree / "DEBIAN/md5sums").write_bytes(sums.stdout)
        deb = self._build / f"{name}-{version}.deb"
        _run("dpkg-deb", "--root-owner-group", "--build", tree, deb)
        _run("dpkg", f"--root={self.root}", "--force-all", "--log=/dev/null", "--install", deb)


class Rpm:
    """A root with an rpm database."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("rpmbuild") is None:
            pytest.skip("no rpm")
        self.root = folder / "root"
        self._build = folder / "build"
        (self.root / "var/lib/rpm").mkdir(parents=True)
        _run("rpm", "--dbpath", self.root / "var/lib/rpm", "--initdb")

    def install(self, name: str, version: str, files: Mapping[str, bytes]) -> None:
        """Build a package of these files and install it, or upgrade to it."""
        tree = self._build / f"{name}-{version}"
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        spec = self._build / f"{name}-{version}.spec"
        listed = "\n".join(f"/{path}" for path in files)
        spec.write_text(
            f"Name: {name}\nVersion: {version}\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n"
            f"%description\nx\n%install\ncp -a {tree}/. %{{buildroot}}/\n%files\n{listed}\n"
        )
        _run(
            "rpmbuild",
            "-bb",
            "--define",
            f"_topdir {self._build}",
            "--define",
            "__os_install_post %{nil}",
            spec,
        )
        (rpm,) = self._build.glob(f"RPMS/noarch/{name}-{version}-1.noarch.rpm")
        _run("rpm", "--root", self.root, "--dbpath", "/var/lib/rpm", "--nodeps", "-U", rpm)
