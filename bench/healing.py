"""From a foreign change of the firewall to its repair, by a real agent; both instants as the kernel announces them."""

from __future__ import annotations

import time

from bench.figures import Figure, figure, percentile
from tests.flow.lab import Lab
from tests.parts.nftwatch import NftWatch

DEEDS = (
    "flush ruleset",
    "delete table inet ringfence",
    "insert rule inet ringfence input accept",
    "add chain inet ringfence intruder { type filter hook input priority -400; }",
)
ELEMENTS = 10_000
_PAUSE_S = 0.12


def run(*, quick: bool) -> list[Figure]:
    """Do 200 foreign changes (20 when `quick`) of four kinds, one after the other; twice, under a small and a large baseline."""
    return [*_under("", 0, quick), *_under(f" of {ELEMENTS} elements", ELEMENTS, quick)]


def _under(kind: str, elements: int, quick: bool) -> list[Figure]:
    times = 20 if quick else 200
    with Lab({"bench": 1}) as lab:
        lab.bring_up(within_s=90, clients=elements)
        print(f"  {times} foreign changes, baseline{kind or ' of a few elements'}", flush=True)
        took_ms = _healed(lab, times)
    what = f"foreign nft change to repaired{', baseline' + kind if kind else ''}"
    return [
        figure(f"{what}, p50", percentile(took_ms, 50), "ms"),
        figure(f"{what}, p99", percentile(took_ms, 99), "ms", "promise", 50.0),
    ]


def _healed(lab: Lab, times: int) -> list[float]:
    inside = lab.nodes[0].host.namespace
    took_ms = []
    with NftWatch(inside) as watch:
        for number in range(times):
            after = watch.changes[-1].at if watch.changes else 0.0
            inside.nft(DEEDS[number % len(DEEDS)])
            foreign = watch.wait(lambda change: change.process == "nft", after=after)
            healed = watch.wait(
                lambda change: change.process != "nft" and "ringfence" in change.added, after=foreign.at
            )
            took_ms.append((healed.at - foreign.at) * 1000)
            time.sleep(_PAUSE_S)
    return took_ms
