"""Play against controllers on this machine's loopback:

    python -m tests.simulate --controller https://127.0.0.1:8443 --ca controller-ca.pem --fleet FILE \\
        connect report:60:120 storm wave:0.2 wave:0.05:own lie:replay:0.1 skew:0.1:3600 slow:0.05:8000 reconnect

FILE is of `tests.parts.simulator.save_fleet`, its nodes enrolled. One line for each play; nothing leaves loopback, and all is
over after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.figures import percentile
from tests.parts.simulator import load_fleet
from tests.simulate.swarm import Swarm
from tests.simulate.wire import Connect, Lie, Play, Reconnect, Report, Result, Skew, Slow, Storm, Wave

KINDS = ("quote", "replay", "pcr", "frame")


def parsed(text: str) -> Play:
    """Return the play that a word of the command line means. Raises ValueError."""
    name, *rest = text.split(":")
    match name, rest:
        case "connect", []:
            return Connect()
        case "connect", [at_once]:
            return Connect(int(at_once))
        case "report", [interval_s, seconds]:
            return Report(float(interval_s), float(seconds))
        case "storm", []:
            return Storm()
        case "wave", [share]:
            return Wave(float(share))
        case "wave", [share, "own"]:
            return Wave(float(share), same=False)
        case "lie", [kind, share] if kind in KINDS:
            return Lie(float(share), kind)
        case "skew", [share, seconds]:
            return Skew(float(share), float(seconds))
        case "slow", [share, bytes_per_s]:
            return Slow(float(share), int(bytes_per_s))
        case "reconnect", []:
            return Reconnect()
    raise ValueError(f"{text}: no such play")


def shown(name: str, result: Result) -> str:
    """Return a result as one line."""
    times = result.latencies_ms or [0.0]
    return (
        f"{name}: {result.nodes} nodes in {result.seconds:.1f} s; {len(result.latencies_ms)} times,"
        f" p50 {percentile(times, 50):.1f} ms, p99 {percentile(times, 99):.1f} ms;"
        f" {result.dials} dials; refused {result.codes}; tiers {result.tiers}"
    )


def main() -> int:
    """Play what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--controller", required=True, action="append", help="again for a second one")
    parser.add_argument("--ca", required=True, type=Path)
    parser.add_argument("--fleet", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds, for all of it")
    parser.add_argument("plays", nargs="+", type=parsed, metavar="PLAY")
    options = parser.parse_args()
    with Swarm(
        options.controller,
        options.ca.read_text(),
        load_fleet(options.fleet),
        workers=options.workers,
        limit_s=options.limit,
    ) as swarm:
        for play in options.plays:
            print(shown(type(play).__name__.lower(), swarm.play(play)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
