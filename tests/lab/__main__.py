"""`make lab`: install the agent's package in a guest as a technician would, and see that what is promised holds there.

    python -m tests.lab [--packages DIR] [--smoke] [--rows REGEX] [--rest MINUTES] [--record DIR] [--keep]

Prints a table of what was checked, with times and what was seen. Ends at the first row that is not true, with exit code 1.
With --smoke no boot is changed, no package either, and the agent rests for half a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from agent.tpm import Tpm
from contract.enrolment import ek_digest
from tests.lab import atrest, checks, image, reboots, secureboot, strangers, upgrades
from tests.lab.checks import CHECKS, Check, Site
from tests.lab.guest import Guest
from tests.lab.office import Office
from tests.parts.swtpm import EkAuthority, SoftwareTpm

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / "build/lab"
ORDER = (checks, upgrades, reboots, strangers, atrest, secureboot)
"""What the guest goes through, one after the other."""
REST_MIN, SMOKE_REST_MIN = 10.0, 0.5


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


def chosen(rows: str, *, smoke: bool) -> list[Check]:
    """Return the checks to be made, in their order. `rows`: a pattern for what they say; empty for all."""
    ordered = [each for module in ORDER for each in CHECKS if each.module == module.__name__]
    return [
        each
        for each in ordered
        if each.always or ((each.smoke or not smoke) and re.search(rows, each.what, re.IGNORECASE))
    ]


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


def checked(site: Site, check: Check) -> Row:
    """Carry one check out."""
    print(f"  {check.what} ...", end="", flush=True)
    began = time.monotonic()
    try:
        row = Row(check.what, True, 0.0, check.run(site))
    except (AssertionError, RuntimeError, TimeoutError, OSError, KeyError, ValueError) as error:
        row = Row(check.what, False, 0.0, f"{type(error).__name__}: {error}")
    row = row._replace(took_s=time.monotonic() - began)
    print(
        f" {'true' if row.true else 'NOT TRUE'} ({row.took_s:.0f} s): {row.seen[: 400 if row.true else 4000]}",
        flush=True,
    )
    return row


def main() -> int:
    """Run all checks in one guest, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=TREE / "dist", help="where the packages are")
    parser.add_argument(
        "--smoke", action="store_true", help="the rows that change neither boot nor package, and a short rest"
    )
    parser.add_argument("--rows", default="", metavar="REGEX", help="only these, and those that all stand on")
    parser.add_argument(
        "--rest", type=float, metavar="MINUTES", help=f"{REST_MIN:g}; --smoke: {SMOKE_REST_MIN:g}"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="a new folder for the evidence of each boot and of each changed verdict",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and disks")
    options = parser.parse_args()
    if not list(options.packages.glob("ringfence-agent_*.deb")):
        print(f"{options.packages}: no ringfence-agent_*.deb there; make packages builds it", file=sys.stderr)
        return 2
    if options.record is not None and options.record.exists():
        print(f"{options.record}: is there already", file=sys.stderr)
        return 2
    wanted = chosen(options.rows, smoke=options.smoke)
    rest_min = options.rest if options.rest is not None else SMOKE_REST_MIN if options.smoke else REST_MIN
    began = time.monotonic()
    disk = image.built(CACHE, mirror())
    print(f"  image ({time.monotonic() - began:.0f} s)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ringfence-guests-"))
    rows: list[Row] = []
    tpm = SoftwareTpm.manufacture(folder / "tpm", EkAuthority(folder / "ca"))
    ek_id = ek_id_of(tpm)
    stick = upgrades.stick(folder, options.packages)
    office = Office(folder / "office")
    guest = Guest(folder / "guest", disk, tpm, more=[stick])
    site = Site(office, guest, ek_id, rest_min * 60)
    try:
        for check in wanted:
            rows.append(checked(site, check))
            if not rows[-1].true:
                break  # the next one expects what this one leaves
        if options.record is not None:
            office.record(options.record)
    finally:
        guest.close()
        office.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"  kept: {folder}", flush=True)
    true = sum(row.true for row in rows)
    print(f"\n{'TRUE':8} {'SECONDS':>8}  WHAT")
    for row in rows:
        print(f"{'yes' if row.true else 'NO':8} {row.took_s:8.0f}  {row.what}")
    print(f"\n{true} of {len(wanted)} true, {time.monotonic() - began:.0f} s")
    return 0 if true == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
