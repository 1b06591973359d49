"""`make lab`: install the agent's package in a guest as a technician would, and see that what is promised holds there.

    python -m tests.lab [--packages DIR] [--smoke] [--rows REGEX] [--rest MINUTES] [--record DIR] [--keep]

Prints a table of what was checked, with times and what was seen. A guest's first row that is not true is its last, and the exit
code 1. With --smoke only what needs a booted machine and little time: installed, enrolled, USB, a reboot, the sandbox. Else there are three
guests beside each other, each with a TPM and a controller of its own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.tpm import Tpm
from contract.enrolment import ek_digest
from tests.lab import atrest, checks, image, otherboots, reboots, repairs, secureboot, strangers, upgrades
from tests.lab.checks import CHECKS, Check, Site
from tests.lab.guest import Guest
from tests.lab.office import Office
from tests.parts.swtpm import EkAuthority, SoftwareTpm

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / "build/lab"
GUESTS = tuple(
    [module.__name__ for module in modules]
    for modules in ((checks, strangers, secureboot), (atrest, upgrades), (reboots, otherboots, repairs))
)
"""What each guest goes through, one after the other, after the rows on which all stand; shared out so that they end at about the same time.
Nothing may come after `secureboot`."""
REST_MIN = 10.0


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
    ordered = [each for names in GUESTS for name in names for each in CHECKS if each.module == name]
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


@dataclass
class Course:
    """One guest, and what it goes through."""

    site: Site
    checks: list[Check]
    rows: list[Row] = field(default_factory=list)

    def go(self) -> None:
        """Carry out the checks, up to the first that is not true: the next one expects what it leaves."""
        for check in self.checks:
            self.rows.append(checked(self.site, check))
            if not self.rows[-1].true:
                return

    def close(self) -> None:
        """Switch the guest and its controller off."""
        self.site.guest.close()
        self.site.office.close()


def courses(wanted: list[Check], *, smoke: bool) -> list[list[Check]]:
    """Return what each guest goes through; a smoke run has one."""
    if smoke:
        return [wanted]
    found = [[each for each in wanted if each.always or each.module in names] for names in GUESTS]
    least = sum(each.always for each in wanted)
    return [rows for rows in found if len(rows) > least] or found[:1]


def prepared(folder: Path, disk: Path, stick: Path, checks: list[Check], *, rest_s: float) -> Course:
    """Make a guest with a TPM of its own, and a controller for it. `stick` holds the packages, and they lie beside it."""
    tpm = SoftwareTpm.manufacture(folder / "tpm", EkAuthority(folder / "ca"))
    ek_id = ek_id_of(tpm)
    office = Office(folder / "office")
    guest = Guest(folder / "guest", disk, tpm, more=[stick])
    return Course(Site(office, guest, ek_id, stick.parent, rest_s), checks)


def checked(site: Site, check: Check) -> Row:
    """Carry one check out."""
    print(f"  {time.strftime('%H:%M:%S')} {check.what} ...", flush=True)
    began = time.monotonic()
    try:
        row = Row(check.what, True, 0.0, check.run(site))
    except (AssertionError, RuntimeError, TimeoutError, OSError, KeyError, ValueError) as error:
        row = Row(check.what, False, 0.0, f"{type(error).__name__}: {error}")
    row = row._replace(took_s=time.monotonic() - began)
    word = "true" if row.true else "NOT TRUE"
    print(f"  {word} ({row.took_s:.0f} s) {row.what}: {row.seen[: 400 if row.true else 4000]}", flush=True)
    return row


def main() -> int:
    """Run all checks, one after the other in each guest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=TREE / "dist", help="where the packages are")
    parser.add_argument("--smoke", action="store_true", help="the few rows that `make test` goes through")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only these, and those that all stand on")
    parser.add_argument(
        "--rest", type=float, metavar="MINUTES", default=REST_MIN, help="%(default)g where not given"
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
    began = time.monotonic()
    disk = image.built(CACHE, mirror())
    print(f"  image ({time.monotonic() - began:.0f} s)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ringfence-guests-"))
    under_way: list[Course] = []
    stick = upgrades.stick(folder, options.packages)
    try:
        # Threads that end with the program: who interrupts it does not wait for the end of the rest.
        threads: list[threading.Thread] = []
        for number, course in enumerate(courses(wanted, smoke=options.smoke)):
            own = folder / str(number)
            under_way.append(prepared(own, disk, stick, course, rest_s=options.rest * 60))
            threads.append(threading.Thread(target=under_way[-1].go, daemon=True))
            threads[-1].start()  # while the next is prepared
        for thread in threads:
            thread.join()
        if options.record is not None:
            for number, each in enumerate(under_way, 1):
                each.site.office.record(options.record / f"guest-{number}")
    finally:
        for each in under_way:
            each.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"  kept: {folder}", flush=True)
    rows = [row for each in under_way for row in each.rows]
    due = sum(len(each.checks) for each in under_way)
    true = sum(row.true for row in rows)
    print(f"\n{'TRUE':8} {'SECONDS':>8}  WHAT")
    for row in rows:
        print(f"{'yes' if row.true else 'NO':8} {row.took_s:8.0f}  {row.what}")
    print(f"\n{true} of {due} true, {time.monotonic() - began:.0f} s")
    return 0 if true == due else 1


if __name__ == "__main__":
    sys.exit(main())
