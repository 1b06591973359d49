"""The lab's few rows in the suite: this tree's package in a guest that boots measured. Five minutes alone, ten beside other tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import image
from tests.lab.__main__ import CACHE, mirror
from tests.lab.guest import FIRMWARE

TREE = Path(__file__).resolve().parents[2]
_BUILT = TREE / "build/lab/packages"
_TOLD = TREE / "build/lab/smoke.log"
_NEEDS = ("qemu-system-x86_64", "mcopy", "sfdisk", "mmdebstrap", "make")
_FIRMWARE = FIRMWARE / "OVMF_CODE_4M.secboot.fd"
_SLOW_S = 2400
"""`make lab-smoke` alone on a machine takes less than eight minutes; here the rest of the suite runs beside it."""


def _debian() -> str:
    told = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    return told[1] if told else "unknown"


def test_the_package_of_this_tree_keeps_its_word_in_a_guest_that_boots_measured() -> None:
    missing = [each for each in _NEEDS if shutil.which(each) is None]
    if missing or not _FIRMWARE.exists():
        pytest.skip(f"{' '.join(missing) or _FIRMWARE} is not here; `make test` installs it")
    here = f"{_debian()} {os.uname().machine}"
    if here != f"{image.SUITE} x86_64":
        pytest.skip(f"the guest is {image.SUITE} x86_64: a package that is built on {here} may not run there")
    try:
        image.built(CACHE, mirror())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the archive that apt is configured for gives no guest: {error}")
    wanted = f"--only ringfence-agent --out {_BUILT}"
    _ran(["make", "--no-print-directory", "packages", f"ARGS={wanted}"])
    told = _ran([sys.executable, "-m", "tests.lab", "--smoke", "--packages", str(_BUILT)])
    _TOLD.write_text(told)
    true, due = map(int, re.findall(r"^([0-9]+) of ([0-9]+) true, ", told, re.MULTILINE)[-1])
    assert true == due >= 12, told


def _ran(command: list[str]) -> str:
    # A session of its own: what is left of it when it takes too long, a guest among it, ends with it.
    job = subprocess.Popen(
        ["nice", "-n", "10", *command],
        cwd=TREE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        told, _ = job.communicate(timeout=_SLOW_S)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, 15)
            job.wait()
    assert job.returncode == 0, told[-6000:]
    return told
