"""Take every guard out, one at a time, and see its test fail: `make guards`.

A test that stays green without the guard it is named after proves nothing. `tests/guards.toml` lists, for each
attack number, which lines to take out of which file and which tests must then fail. Works on a copy of
the tree; the tree itself is not touched.

    python -m tests.guards [NUMBER | FILE ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from msgspec import Struct, convert

TREE = Path(__file__).resolve().parent.parent
COPIED = ("agent", "baselines", "contract", "controller", "tests", "docs", "bench", "packaging")
PYTEST_TESTS_FAILED = 1


class Guard(Struct, forbid_unknown_fields=True):
    """One guard: in `file`, `find` (exactly once) becomes `replace`; then `tests` must fail."""

    number: str
    file: str
    find: str
    replace: str
    tests: list[str]


def guards() -> list[Guard]:
    """Return all guards of `tests/guards.toml`; raises msgspec.ValidationError for a malformed one."""
    return convert(tomllib.loads((TREE / "tests/guards.toml").read_text()), dict[str, list[Guard]])["guard"]


def run_pytest(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests against the copied tree; returns pytest's exit code and its last lines."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    return done.returncode, "\n".join(done.stdout.splitlines()[-8:])


def take_out(tree: Path, guard: Guard) -> str:
    """Return "" when the tests fail without the guard, else what is wrong."""
    path = tree / guard.file
    text = path.read_text()
    if text.count(guard.find) != 1:
        return f"{guard.file}: the guard's text stands there {text.count(guard.find)} times, wanted once"
    path.write_text(text.replace(guard.find, guard.replace))
    try:
        code, tail = run_pytest(tree, guard.tests)
    finally:
        path.write_text(text)
    return "" if code == PYTEST_TESTS_FAILED else f"pytest exited with {code} without the guard:\n{tail}"


def main(named: list[str]) -> int:
    """Run the guards named (all by default); exit code 1 when one of them is not proved."""
    wanted = [guard for guard in guards() if not named or guard.number in named or guard.file in named]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="ringfence-guards-") as name:
        tree = Path(name)
        for folder in COPIED:
            if (TREE / folder).is_dir():
                shutil.copytree(TREE / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in TREE.glob("*.*"):
            if file.is_file():
                shutil.copy(file, tree)
        for guard in wanted:
            begun = time.monotonic()
            wrong = take_out(tree, guard)
            bad += bool(wrong)
            print(
                f"{guard.number}  {'NOT PROVED' if wrong else 'guarded'}  {time.monotonic() - begun:5.1f} s  {guard.file}"
            )
            if wrong:
                print("    " + wrong.replace("\n", "\n    "))
    print(f"{len(wanted) - bad} of {len(wanted)} guards proved")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
