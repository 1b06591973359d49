"""`make lab`: install the agent's package in a guest as a technician would, and see that what is promised holds there.

    python -m tests.lab [--packages DIR] [--keep]

Prints a table of what was checked, with times and what was seen. Ends at the first row that is not true, with exit code 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.tpm import Tpm
from contract.enrolment import ek_digest
from tests.lab import image
from tests.lab.checks import CHECKS, Site
from tests.lab.guest import Guest
from tests.lab.office import Office
from tests.parts.swtpm import EkAuthority, SoftwareTpm

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / "build/lab"


class Row(NamedTuple):
    """One check."""

    what: str
    true: bool
    took_s: float
    seen: str


def mirror() -> str:
    """Return the archive that this machine's apt takes Debian from."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    sites = [line for line in told.stdout.splitlines() if re.search(r"/debian/?$", line)]
    return sites[0] if sites else told.stdout.split()[0]


def packages_disk(folder: Path, packages: Path) -> Path:
    """Return a disk that holds the packages: the technician's stick."""
    stick, disk = folder / "stick", folder / "stick.img"
    stick.mkdir()
    for each in packages.glob("*.deb"):
        shutil.copy(each, stick)
    subprocess.run(["mke2fs", "-q", "-q", "-t", "ext4", "-d", stick, "-F", disk, "256M"], check=True)
    return disk


def ek_id_of(tpm: SoftwareTpm) -> str:
    """Return the id under which the controller expects this TPM: what a maker's list says of it."""
    tpm.start()
    try:
        client = Tpm(tpm.tcti)
        try:
            return ek_digest(client.endorsement()[0])
        finally:
            client.close()
    finally:
        tpm.stop()


def checked(site: Site, name: str, check: Callable[[Site], str]) -> Row:
    """Carry one check out."""
    print(f"  {name} ...", end="", flush=True)
    began = time.monotonic()
    try:
        row = Row(name, True, 0.0, check(site))
    except (AssertionError, RuntimeError, TimeoutError, OSError, KeyError) as error:
        row = Row(name, False, 0.0, f"{type(error).__name__}: {error}")
    row = row._replace(took_s=time.monotonic() - began)
    print(f" {'true' if row.true else 'NOT TRUE'} ({row.took_s:.0f} s): {row.seen[:400]}", flush=True)
    return row


def main() -> int:
    """Run all checks in one guest, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=TREE / "dist", help="where the packages are")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and disks")
    options = parser.parse_args()
    if not list(options.packages.glob("ringfence-agent_*.deb")):
        print(f"{options.packages}: no ringfence-agent_*.deb there; make packages builds it", file=sys.stderr)
        return 2
    began = time.monotonic()
    disk = image.built(CACHE, mirror())
    print(f"  image ({time.monotonic() - began:.0f} s)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ringfence-guests-"))
    rows: list[Row] = []
    tpm = SoftwareTpm.manufacture(folder / "tpm", EkAuthority(folder / "ca"))
    ek_id = ek_id_of(tpm)
    office = Office(folder / "office")
    guest = Guest(folder / "guest", disk, tpm, more=[packages_disk(folder, options.packages)])
    try:
        for name, check in CHECKS.items():
            rows.append(checked(Site(office, guest, ek_id), name, check))
            if not rows[-1].true:
                break  # the next one expects what this one leaves
    finally:
        guest.close()
        office.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    true = sum(row.true for row in rows)
    print(f"\n{'TRUE':8} {'SECONDS':>8}  WHAT")
    for row in rows:
        print(f"{'yes' if row.true else 'NO':8} {row.took_s:8.0f}  {row.what}")
    print(f"\n{true} of {len(CHECKS)} true, {time.monotonic() - began:.0f} s")
    return 0 if true == len(CHECKS) else 1


if __name__ == "__main__":
    sys.exit(main())
