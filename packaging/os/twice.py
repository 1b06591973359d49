"""Are the packages reproducible? Builds two clean clones of the last commit, in unlike folders and surroundings, and compares the bytes.

    python packaging/os/twice.py [--only NAME] [--environment FOLDER] [--keep]

Each clone makes its own Python environment from the pinned lists; `--environment` lends both an environment that is there (quicker, and
shows less). The second clone is built with another umask, time zone, language, home and folder length.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import provenance

TREE = Path(__file__).resolve().parents[2]
_TOOLS = "packaging/setup/packages.txt"


def build(clone: Path, commit: str, options: argparse.Namespace, around: dict[str, str], umask: int) -> Path:
    """Clone one commit and build it; returns the folder of the packages. Raises CalledProcessError."""
    before = os.umask(umask)
    try:
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", "--no-checkout", TREE, clone], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", commit], cwd=clone, check=True)
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **around,
        }
        if options.environment:
            (clone / ".venv").symlink_to(options.environment.resolve())
        else:
            subprocess.run(["packaging/setup/python-environment"], cwd=clone, env=environment, check=True)
        tools = [
            "install",
            "-qq",
            "--require-hashes",
            "--no-deps",
            "--target",
            "build/package-tools",
            "-r",
            _TOOLS,
        ]
        subprocess.run([clone / ".venv/bin/pip", *tools], cwd=clone, env=environment, check=True)
        command: list[str | Path] = [clone / ".venv/bin/python", "packaging/os/build.py"]
        command += ["--only", options.only] if options.only else []
        environment["PYTHONPATH"] = "build/package-tools"
        subprocess.run(command, cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        os.umask(before)
    return clone / "dist"


def main() -> int:
    """Build twice; 0 when every file is the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only")
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--keep", action="store_true", help="Leave the clones, to look at what differs.")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="ringfence-twice-"))
    try:
        home = work / "home"
        home.mkdir()
        commit = provenance.git(TREE, "rev-parse", "HEAD")
        first = build(work / "a", commit, options, {}, 0o022)
        unlike = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(home), "USER": "somebody"}
        second = build(work / "another-folder" / "with-a-longer-name", commit, options, unlike, 0o077)
        names = sorted({path.name for folder in (first, second) for path in folder.iterdir()})
        _, unequal, missing = filecmp.cmpfiles(first, second, names, shallow=False)
        for name in names:
            word = "DIFFERS" if name in unequal else "MISSING" if name in missing else "same"
            at = first / name
            digest = hashlib.sha256(at.read_bytes()).hexdigest() if at.exists() else "-" * 64
            print(f"{word:8}{digest}  {name}")
        return 1 if unequal or missing or not names else 0
    finally:
        if options.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
