"""Packages for another processor, built in a Debian of that processor under user-mode emulation: `make packages-foreign`.

    python packaging/os/foreign.py [--architecture arm64] [--only NAME]

PyInstaller builds for the processor that it runs on. So the last commit is cloned into a Debian 12 of the other one (made by
mmdebstrap, kept in build/foreign), in which the kernel hands every program to QEMU (binfmt_misc), and `make packages` runs there. The
packages go to dist/ARCHITECTURE. Slow: some ten minutes a program after the first time, which takes as long again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import provenance

TREE = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names and the kernel's, which are QEMU's."""
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_OF_THIS_MACHINE = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")
_BUILD = """
set -e
mount --bind /dev "$ROOT/dev"; mount -t proc proc "$ROOT/proc"; mount -t sysfs sysfs "$ROOT/sys"; mount -t tmpfs tmpfs "$ROOT/tmp"
exec chroot "$ROOT" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin make -C /root/ringfence packages ARGS="$ARGS"
"""


def emulated(machine: str) -> None:
    """See that the kernel hands programs of that processor to QEMU. Raises SystemExit, which says what is missing."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=False)
    entry = _BINFMT / f"qemu-{machine}"
    if not entry.exists():
        subprocess.run(["update-binfmts", "--enable", entry.name], check=False)
    if not entry.exists() or "F" not in entry.read_text().partition("flags:")[2].split("\n")[0]:
        raise SystemExit(
            f"{entry}: programs for {machine} do not run here: apt-get install qemu-user-static binfmt-support"
        )


def debian(root: Path, architecture: str) -> None:
    """Make the Debian, unless it is there. Raises CalledProcessError."""
    if not (root / "usr/bin/make").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "--quiet", f"--arch={architecture}", "--variant=minbase"]
        subprocess.run([*command, "--include=git,make,ca-certificates", SUITE, root], check=True)
    for name in _OF_THIS_MACHINE:
        if (here := Path("/", name)).exists():
            shutil.copy(here, root / name)


def main() -> int:
    """Build; 0 when the packages are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", choices=sorted(MACHINES), default="arm64")
    parser.add_argument("--only", metavar="NAME", help="one program")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: chroot and mounts")
    emulated(MACHINES[options.architecture])
    root = TREE / "build/foreign" / options.architecture
    debian(root, options.architecture)
    clone, out = root / "root/ringfence", TREE / "dist" / options.architecture
    # The environment of an earlier build is kept; what is built is the commit.
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", "--no-checkout", TREE, clone], check=True)
    commit = provenance.git(TREE, "rev-parse", "HEAD")
    for command in (["fetch", "-q", TREE, commit], ["checkout", "-q", "--force", "--detach", commit]):
        subprocess.run(["git", *command], cwd=clone, check=True)
    shutil.rmtree(clone / "dist", ignore_errors=True)
    around = {**os.environ, "ROOT": str(root), "ARGS": f"--only {options.only}" if options.only else ""}
    subprocess.run(["unshare", "--mount", "sh", "-c", _BUILD], env=around, check=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(clone / "dist", out)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path.relative_to(TREE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
