"""Rpms for the trials in clean roots (`roots_upgrade.py`): an rpm of ours under another version, and what it depends on."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

_SCRIPTS = {"pre": "PREIN", "post": "POSTIN", "preun": "PREUN", "postun": "POSTUN"}
_HEAD = """
Name: {name}
Version: {version}
Release: {release}
Summary: For a trial
License: none
AutoReqProv: no
{more}
%description
For a trial.
"""


def rebuilt(
    rpm: Path, version: str, work: Path, change: Callable[[Path], object] = lambda folder: None
) -> Path:
    """Return the rpm under another version and release, as a later release would bring it; `change` is given its unpacked files."""
    folder = Path(tempfile.mkdtemp(dir=work))
    unpacked = subprocess.run(["rpm2archive", "-"], input=rpm.read_bytes(), check=True, capture_output=True)
    subprocess.run(["tar", "-xz", "-C", folder], input=unpacked.stdout, check=True)
    change(folder)
    needed = "\n".join(f"Requires: {each}" for each in _needs(rpm))
    number, _, release = version.rpartition("-")
    head = _HEAD.format(name=asked(rpm, "%{NAME}"), version=number, release=release, more=needed)
    spec = [head, f"%install\ncp -a {folder}/. %{{buildroot}}"]
    for section, tag in _SCRIPTS.items():
        if (script := asked(rpm, f"%{{{tag}}}")) != "(none)":
            spec.append(f"%{section}\n" + script.replace("%", "%%"))
    spec.append("%files\n%defattr(-,root,root,-)")
    for line in asked(rpm, "[%{FILEMODES:perms} %{FILENAMES}\n]").splitlines():
        mode, _, path = line.partition(" ")
        spec.append(f'{"%dir " if mode.startswith("d") else ""}"{path}"')
    made = _built("\n".join([*spec, ""]), work)
    shutil.rmtree(folder)
    return made


def provided(rpm: Path, work: Path) -> Path:
    """Return an rpm with no file that provides what this one needs: a Debian has it all, and its rpm database does not know."""
    more = "\n".join(f"Provides: {each}" for each in _needs(rpm))
    return _built(
        _HEAD.format(name="what-debian-has", version="1", release="1", more=more) + "%files\n", work
    )


def _needs(rpm: Path) -> list[str]:
    told = asked(rpm, "[%{REQUIRENAME}\n]").splitlines()
    return sorted({each for each in told if each and not each.startswith("rpmlib(")})


def asked(rpm: Path, form: str) -> str:
    """Return what rpm says of a package, in a form of `rpm --qf`. Raises CalledProcessError."""
    command = ["rpm", "-qp", "--nosignature", "--qf", form, rpm]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _built(spec: str, work: Path) -> Path:
    top = Path(tempfile.mkdtemp(dir=work))
    (top / "it.spec").write_text(spec)
    # No debug package, no stripping, no changed shebang lines: the files are those of the package.
    quiet = [
        "debug_package %{nil}",
        "__os_install_post %{nil}",
        "_build_id_links none",
        "_binary_payload w1.gzdio",
    ]
    defined = [word for each in (f"_topdir {top}", *quiet) for word in ("--define", each)]
    subprocess.run(
        ["rpmbuild", "--quiet", *defined, "-bb", top / "it.spec"], check=True, stdout=subprocess.DEVNULL
    )
    return next((top / "RPMS").rglob("*.rpm"))
