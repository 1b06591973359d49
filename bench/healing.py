"""From a foreign change of the firewall to its repair, by a real agent; both instants as the kernel announces them.

Repaired is when everything is as it was: the last commit of the agent's on its rules, after which the `nft` program lists
the same table as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.figures import Figure, figure, percentile
from tests.flow.lab import Failed, Lab
from tests.parts.nftwatch import Change, NftWatch

ELEMENTS = 10_000
_ENCLAVE, _CLIENTS = "zone4_enclave", "zone4_clients"
_PAUSE_S, _QUIET_S = 0.12, 0.4
Deed = Callable[[str], str]
"""The command, by the set that the baseline is about."""
DEEDS: dict[str, Deed] = {
    "flush of the ruleset": lambda name: "flush ruleset",
    "table deleted": lambda name: "delete table inet ringfence",
    "rule inserted": lambda name: "insert rule inet ringfence input accept",
    "chain added": lambda name: "add chain inet ringfence intruder { type filter hook input priority -400; }",
    "set element added": lambda name: f"add element inet ringfence {name} {{ 203.0.113.9 }}",
    "set emptied": lambda name: f"flush set inet ringfence {name}",
}


def run(*, quick: bool) -> list[Figure]:
    """Do each kind of foreign change 50 times (5 when `quick`), in turns; under a small and a large baseline."""
    return [
        *_under("", 0, _ENCLAVE, quick),
        *_under(f", baseline of {ELEMENTS} elements", ELEMENTS, _CLIENTS, quick),
    ]


def _under(kind: str, elements: int, name: str, quick: bool) -> list[Figure]:
    times = 5 if quick else 50
    with Lab({"bench": 1}) as lab:
        lab.bring_up(within_s=90, clients=elements)
        print(f"  {times} x {len(DEEDS)} foreign changes{kind or ', baseline of a few elements'}", flush=True)
        took_ms = _healed(lab, times, name)
    every = [each for of_one in took_ms.values() for each in of_one]
    figures = [
        figure(f"foreign nft change to repaired{kind}, p50", percentile(every, 50), "ms"),
        figure(f"foreign nft change to repaired{kind}, p99", percentile(every, 99), "ms", "promise", 50.0),
    ]
    for what, of_one in took_ms.items():
        figures.append(figure(f"  {what}{kind}, p50", percentile(of_one, 50), "ms"))
        figures.append(figure(f"  {what}{kind}, p99", percentile(of_one, 99), "ms", "promise", 50.0))
    return figures


def _healed(lab: Lab, times: int, name: str) -> dict[str, list[float]]:
    node = lab.nodes[0]
    wanted = node.table()
    took_ms: dict[str, list[float]] = {what: [] for what in DEEDS}
    with NftWatch(node.host.namespace) as watch:
        for _ in range(times):
            for what, deed in DEEDS.items():
                after = watch.changes[-1].at if watch.changes else 0.0
                node.host.namespace.nft(deed(name))
                foreign = watch.wait(lambda change: change.process == "nft", after=after)
                healed = _last(watch, foreign.at)
                if node.table() != wanted:
                    raise Failed(f"not as it was after: {what}")
                took_ms[what].append((healed.at - foreign.at) * 1000)
                time.sleep(_PAUSE_S)
    return took_ms


def _last(watch: NftWatch, after: float) -> Change:
    """Return the agent's last commit on its rules since `after`, when it has made none for a while."""

    def is_ours(change: Change) -> bool:
        return change.process != "nft" and "ringfence" in change.touched

    last = watch.wait(is_ours, after=after)
    while True:
        try:
            last = watch.wait(is_ours, after=last.at, within_s=_QUIET_S)
        except TimeoutError:
            return last
