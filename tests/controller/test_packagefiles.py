"""What a package file will put on a node, against what dpkg and rpm have put into a root from the same file."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent.learning.ima import learn
from agent.packages import PackageDatabase
from agent.probes.ima import Section
from contract.baseline import parse_baseline
from contract.errors import Rejected
from contract.imapolicy import Package
from controller.cli import run
from controller.cli.packagefiles import files_of
from tests.agent.probes.case import HEAD, section_of
from tests.parts.packagekit import Dpkg, Rpm

FILES = {
    "usr/bin/press": b"#!/bin/sh\n",
    "bin/old": b"old\n",
    "usr/lib/press/a name with blanks": b"x" * 3_000_000,
    "usr/share/press/gr\u00fc\u00df": b"",
    "etc/press.conf": b"a = 1\n",
}


def entries(package: Package) -> dict[str, str]:
    return {path.decode("utf-8", "surrogateescape"): sha256.hex() for path, sha256 in package.entries()}


def deb(folder: Path, *, multi: str = "", scripts: tuple[str, ...] = ()) -> Path:
    """A package with a link, a second name of one file, and maintainer scripts."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: press\nVersion: 1:2.0-1\nArchitecture: amd64\n{multi}Maintainer: x <x@example.org>\nDescription: x\n"
    )
    for name in scripts:
        (tree / "DEBIAN" / name).write_text(f"#!/bin/sh\n# {name}\n")
        (tree / "DEBIAN" / name).chmod(0o755)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/press").write_bytes(b"one\n")
    (tree / "usr/bin/press-2").hardlink_to(tree / "usr/bin/press")
    (tree / "usr/bin/press-3").symlink_to("press")
    made = folder / "press.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    return made


def test_a_debs_files_are_those_that_dpkg_installs(tmp_path: Path) -> None:
    made = Dpkg(tmp_path)
    made.install("press", "1.0-1", FILES, conffile="etc/press.conf")
    [installed] = learn(PackageDatabase(made.root)).packages
    told = files_of(tmp_path / "build/press-1.0-1.deb")
    assert (told.name, told.version) == ("press", "1.0-1")
    assert entries(told) == entries(installed)
    assert entries(told)["/usr/bin/old"] == hashlib.sha256(b"old\n").hexdigest(), "where the kernel finds it"


def test_an_rpms_files_are_those_that_rpm_installs(tmp_path: Path) -> None:
    made = Rpm(tmp_path)
    files = {path: content for path, content in FILES.items() if path.isascii() and " " not in path}
    made.install("press", "1.0", files)
    [installed] = learn(PackageDatabase(made.root)).packages
    [path] = (tmp_path / "build").rglob("press-*.rpm")
    told = files_of(path)
    assert (told.name, told.version) == ("press", "1.0-1")
    wanted = {where.replace("/bin/old", "/usr/bin/old", 1) if where.startswith("/bin") else where: sha256
              for where, sha256 in entries(installed).items()}  # fmt: skip
    assert entries(told) == wanted


def test_links_second_names_and_maintainer_scripts(tmp_path: Path) -> None:
    one = hashlib.sha256(b"one\n").hexdigest()
    assert entries(files_of(deb(tmp_path / "a"))) == {"/usr/bin/press": one, "/usr/bin/press-2": one}
    for multi, stem in (("", "press"), ("Multi-Arch: same\n", "press:amd64")):
        told = entries(files_of(deb(tmp_path / stem, multi=multi, scripts=("preinst", "postrm"))))
        script = hashlib.sha256(b"#!/bin/sh\n# postrm\n").hexdigest()
        assert told[f"/var/lib/dpkg/info/{stem}.postrm"] == script
        assert "/var/lib/dpkg/tmp.ci/preinst" in told and len(told) == 6


def test_what_it_writes_is_taken_by_the_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Dpkg(tmp_path)
    made.install("press", "1.0-1", FILES)
    made.install("drill", "2:0.1~rc1+b1", {"usr/bin/drill": b"d"})
    debs = [str(path) for path in sorted((tmp_path / "build").glob("*.deb"))]
    assert run(["reference", "package", *debs]) == 0
    written = capsys.readouterr().out
    section = section_of("ima", f"[ima]\n{written}")
    assert isinstance(section, Section)
    assert [(each.name, each.version) for each in section.package] == [
        ("drill", "2:0.1~rc1+b1"),
        ("press", "1.0-1"),
    ]
    assert [msgspec.to_builtins(each) for each in section.package] == [
        msgspec.to_builtins(files_of(Path(path))) for path in debs
    ]
    assert parse_baseline((HEAD + "[ima]\n" + written).encode()).head.name == "case"


@pytest.mark.parametrize("cut", [0, 5, 100, -40])
def test_a_damaged_deb_is_named_and_nothing_is_written(tmp_path: Path, cut: int) -> None:
    whole = deb(tmp_path).read_bytes()
    path = tmp_path / "half.deb"
    path.write_bytes(whole[:cut])
    with pytest.raises(Rejected, match=r"^package\.unreadable: .*half\.deb: "):
        files_of(path)


def test_a_damaged_rpm_is_named(tmp_path: Path) -> None:
    Rpm(tmp_path).install("press", "1.0", {"usr/bin/press": b"x"})
    [path] = (tmp_path / "build").rglob("press-*.rpm")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Rejected, match=r"^package\.unreadable: .*press-1\.0-1.*: "):
        files_of(path)


def test_without_the_program_that_reads_it_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = deb(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Rejected, match=r"needs dpkg-deb \(package dpkg\), which is not installed here"):
        files_of(path)


def test_another_file_is_refused_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a package\n")
    assert run(["reference", "package", str(path)]) == 1
    assert "neither a deb nor an rpm" in capsys.readouterr().err
