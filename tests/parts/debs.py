"""Programs of Debian packages, unpacked beside the tree and never installed: no daemon is started, nothing of the machine changes.

For programs that take hold of a machine as soon as they are installed (dockerd, firewalld). apt says what this machine lacks of them
and fetches that, once; what it has already is used as it is. The files are kept in `build/`, which `make clean` removes.
Refuses to use half of them: the folder is put in place whole, by one process at a time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
_APT = ["apt-get", "-qq", "-y", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]


class Unpacked:
    """Packages with what they depend on, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def env(self) -> dict[str, str]:
        """Return the variables with which programs find each other, their libraries and their modules in there."""
        libraries = ":".join(sorted(str(path) for path in self.root.glob("usr/lib/*-linux-gnu*")))
        typelibs = ":".join(sorted(str(path) for path in self.root.glob("usr/lib/*/girepository-1.0")))
        ours = ":".join(str(self.root / each) for each in ("usr/bin", "usr/sbin", "bin", "sbin"))
        return {
            "PATH": f"{ours}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "LD_LIBRARY_PATH": libraries,
            "GI_TYPELIB_PATH": typelibs,
            "PYTHONPATH": str(self.root / "usr/lib/python3/dist-packages"),
        }

    def has(self, *programs: str) -> bool:
        """Tell whether the programs can be run."""
        return all(shutil.which(name, path=self.env()["PATH"]) for name in programs)


def unpacked(*packages: str) -> Unpacked:
    """Return the packages; fetches them where they are not there yet. Raises RuntimeError with apt's words."""
    build = TREE / "build"
    build.mkdir(exist_ok=True)
    kept = build / f"unpacked-{'-'.join(packages)}"
    with (build / "unpacked.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=build) as name:
                fresh = Path(name, "root")
                fresh.mkdir()
                for package in _fetched(packages, Path(name, "fetched")):
                    subprocess.run(["dpkg-deb", "--extract", package, fresh], check=True)
                fresh.rename(kept)
    return Unpacked(kept)


def _fetched(packages: tuple[str, ...], into: Path) -> list[Path]:
    (into / "partial").mkdir(parents=True)
    fetch = [
        *_APT,
        "-o",
        f"Dir::Cache::archives={into}",
        "--no-install-recommends",
        "--download-only",
        "install",
    ]
    done = subprocess.run([*fetch, *packages], capture_output=True, text=True, check=False)
    if done.returncode:  # lists of packages that are old, or not there at all
        subprocess.run([*_APT, "update"], capture_output=True, check=False)
        done = subprocess.run([*fetch, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"apt-get: {done.stderr.strip()[-2000:]}")
    return sorted(into.glob("*.deb"))
