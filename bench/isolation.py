"""From "compromised" to every node of a 50-node site isolated in the kernel, with 50 real agents.

They share the cores with each other, their TPMs and the controller: what fifty machines would do at the same time is done one after
the other here, so the figures are an upper bound.
"""

from __future__ import annotations

import time

from bench.figures import Figure, figure, percentile
from tests.flow.lab import Lab, event_log, wait_until
from tests.parts.nftwatch import Change, NftWatch

NODES, FEW = 50, 10


def run(*, quick: bool) -> list[Figure]:
    """Isolate by order several times, then once by evidence (the breaker allows one site in ten minutes)."""
    count = FEW if quick else NODES
    with Lab({"bench": count}) as lab:
        lab.bring_up(within_s=30 + 12 * count)
        print(f"  {count} agents are up", flush=True)
        ordered_ms = [_ordered(lab) for _ in range(3 if quick else 20)]
        judged_ms = _judged(lab)
    return [
        figure(
            f"order to isolate -> {count} nodes isolated in the kernel, p50", percentile(ordered_ms, 50), "ms"
        ),
        figure(
            f"order to isolate -> {count} nodes isolated in the kernel, p99",
            percentile(ordered_ms, 99),
            "ms",
            "promise",
            1000.0,
        ),
        figure(
            f"evidence of compromise judged -> {count} nodes isolated in the kernel",
            judged_ms,
            "ms",
            "promise",
            1000.0,
        ),
    ]


def _cut(change: Change) -> bool:
    return "ringfence_cut" in change.added


def _ordered(lab: Lab) -> float:
    watches = [NftWatch(node.host.namespace) for node in lab.nodes]
    try:
        asked = time.time()
        lab.api("POST", "/sites/bench/isolate", {"reason": "bench"})
        last = max(watch.wait(_cut, after=asked).at for watch in watches)
    finally:
        for watch in watches:
            watch.close()
    lab.api("POST", "/sites/bench/release", {"reason": "bench"})
    lab.wait_in_force(lab.nodes, "bench", 1)
    return (last - asked) * 1000


def _judged(lab: Lab) -> float:
    watches = [NftWatch(node.host.namespace) for node in lab.nodes]
    try:
        lab.nodes[-1].power_cycle(event_log("cmdline-changed"))
        incident = wait_until(
            "an incident for the changed boot",
            lambda: next((each for each in lab.incidents(site="bench") if each["kind"] == "untrusted"), None),
            within_s=60,
        )
        opened = float(incident["opened_at"])
        return (max(watch.wait(_cut, after=opened).at for watch in watches) - opened) * 1000
    finally:
        for watch in watches:
            watch.close()
