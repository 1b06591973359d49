"""Coverage-guided fuzzing of every parser: `make fuzz ARGS="[NAME ...] [--inputs N] [--seconds S]"`.

Runs libFuzzer by way of `atheris`, which `make fuzz` puts into build/fuzz. Each harness begins from its committed
corpus and grows a larger one under build/fuzz-corpus, that later runs go on from. An input that raises anything but
Rejected, or takes longer than ten seconds, ends its harness with exit code 1 and is left in build/fuzz-corpus.

    python -m tests.fuzz --seeds         write what the corpora begin from
    python -m tests.fuzz --minimise      put the smallest inputs of the grown corpora that cover the same into the tree
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
GROWN = TREE / "build/fuzz-corpus"
COMMITTED = TREE / "tests/fuzz/corpus"
MAX_INPUT_BYTES = 4096
MAX_FILES = 24
INSTRUMENTED = (
    "contract",
    "agent.grants",
    "controller.cli.inputs",
    "controller.cli.attestshow",
    "controller.repository",
)


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one harness in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from contract.errors import Rejected
        from tests.fuzz.table import HARNESSES
    harness = HARNESSES[name]

    def run(raw: bytes) -> None:
        try:
            harness(raw)
        except Rejected:
            pass

    atheris.Setup([str(_again(name)), *arguments], run)
    atheris.Fuzz()


def _again(name: str) -> Path:
    """Return a program that fuzzes one harness: what libFuzzer runs for each step of a merge."""
    program = GROWN / f"{name}.sh"
    line = shlex.join([sys.executable, "-m", "tests.fuzz", "--one", name])
    path = shlex.quote(os.environ.get("PYTHONPATH", ""))
    program.write_text(f'#!/bin/sh\ncd {shlex.quote(str(TREE))}\nPYTHONPATH={path} exec {line} "$@"\n')
    program.chmod(0o755)
    return program


def child(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this module again for one harness."""
    GROWN.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, *map(str, arguments)]
    paths = f"{TREE}:{TREE / 'build/fuzz'}:{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        command, cwd=TREE, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )


def fuzz(name: str, inputs: int, seconds: int) -> tuple[int, int]:
    """Fuzz one harness; returns the number of inputs and the exit code."""
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    done = child(
        name,
        *(f"-runs={inputs}", f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}"),
        *(
            "-use_value_profile=1",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={grown}/",
        ),
        *(grown, COMMITTED / name),
    )
    found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    count = int(found.group(1)) if found else 0
    covered = re.findall(r"cov: (\d+)", done.stderr)
    print(
        f"{name:<18} {count:>9} inputs {time.monotonic() - begun:>7.0f} s  coverage {covered[-1] if covered else '?'}"
        f"  {'ok' if done.returncode == 0 else 'FAILED'}",
        flush=True,
    )
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-40:]) + done.stdout, flush=True)
    return count, done.returncode


def minimise(name: str) -> None:
    """Replace the committed corpus by the smallest inputs that cover what the grown one does, at most MAX_FILES."""
    merged = GROWN / f"{name}.merged"
    merged.mkdir(parents=True, exist_ok=True)
    child(name, "-merge=1", f"-max_len={MAX_INPUT_BYTES}", merged, COMMITTED / name, GROWN / name)
    kept = {path.name for path in (COMMITTED / name).glob("*")}
    found = sorted(merged.glob("*"), key=lambda path: (path.stat().st_size, path.name))
    step = max(1, len(found) // MAX_FILES)
    for path in found[::step][: max(0, MAX_FILES - len(kept))]:
        if path.name not in kept:
            (COMMITTED / name / path.name).write_bytes(path.read_bytes())


def write_seeds() -> None:
    """Write what the corpora begin from."""
    from tests.fuzz.table import MAX_SEED_BYTES, seeds

    for name, inputs in seeds().items():
        folder = COMMITTED / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(inputs):
            if len(content) > MAX_SEED_BYTES + 1:
                raise ValueError(f"seed {number} of {name} has {len(content)} bytes")
            (folder / f"seed-{number}").write_bytes(content)


def main() -> int:
    """Run as the command line says."""
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
        return 0
    from tests.fuzz.table import HARNESSES

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(HARNESSES))
    parser.add_argument("--inputs", type=int, default=50_000, help="for each harness (default 50000)")
    parser.add_argument("--seconds", type=int, default=300, help="at most, for each harness (default 300)")
    parser.add_argument("--seeds", action="store_true")
    parser.add_argument("--minimise", action="store_true")
    asked = parser.parse_args()
    names = asked.names or list(HARNESSES)
    if unknown := set(names) - set(HARNESSES):
        parser.error(f"no harness is called {', '.join(sorted(unknown))}")
    if asked.seeds:
        write_seeds()
        return 0
    if asked.minimise:
        for name in names:
            minimise(name)
        return 0
    begun = time.monotonic()
    results = [fuzz(name, asked.inputs, asked.seconds) for name in names]
    print(f"{sum(count for count, _ in results)} inputs in {time.monotonic() - begun:.0f} s")
    return 1 if any(code for _, code in results) else 0


if __name__ == "__main__":
    sys.exit(main())
