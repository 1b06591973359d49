"""`make bench`: measure, print a table, write bench/results.json. `ARGS=--quick` for a short run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import (
    atrest,
    attestation,
    cutting,
    datapath,
    devices,
    files,
    fleet,
    flood,
    healing,
    isolation,
    scale,
)
from bench.figures import Figure

RESULTS = Path(__file__).with_name("results.json")
BENCHES: dict[str, Callable[..., list[Figure]]] = {
    "atrest": atrest.run,
    "attestation": attestation.run,
    "cutting": cutting.run,
    "datapath": datapath.run,
    "devices": devices.run,
    "files": files.run,
    "fleet": fleet.run,
    "flood": flood.run,
    "healing": healing.run,
    "isolation": isolation.run,
    "scale": scale.run,
}


def shown(figures: list[Figure]) -> str:
    """Return the figures as a table."""
    rows = [("figure", "value", "unit", "reference", "value", "ratio")]
    for each in figures:
        reference = "" if each.reference_value is None else f"{each.reference_value:,.4g}"
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        rows.append((each.name, f"{each.value:,.4g}", each.unit, each.reference, reference, ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    """Run the benches named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short: figures of the right order, no more")
    parser.add_argument("--profile", action="store_true", help="only: where the controller's time goes")
    parser.add_argument(
        "only", nargs="*", choices=[[], *BENCHES], help="run only these; results.json is not written"
    )
    options = parser.parse_args()
    if options.profile:
        print(fleet.profile(quick=options.quick))
        return 0
    figures: list[Figure] = []
    for name in options.only or BENCHES:
        print(f"{name} ...", flush=True)
        figures += BENCHES[name](quick=options.quick)
    print("\n" + shown(figures))
    if not options.only:
        RESULTS.write_text(json.dumps(msgspec.to_builtins(figures), indent=1) + "\n")
        print(f"\nwritten to {RESULTS.parent.name}/{RESULTS.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
