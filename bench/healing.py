"""From a foreign change of the firewall to its repair, by a real agent, from the kernel's announcement of it.

Repaired is when everything is as it was: the agent's last commit, after which the `nft` program lists the same table as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread

from bench.figures import Figure, figure, percentile
from tests.flow.lab import Failed, Lab
from tests.parts.nftwatch import Change, NftWatch

ELEMENTS = 10_000
_ENCLAVE, _CLIENTS = "zone4_enclave", "zone4_clients"
_PAUSE_S, _QUIET_S, _ASK_S, _LONGEST_S = 0.12, 0.4, 0.0003, 10.0
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
                doing = Thread(target=node.host.namespace.nft, args=(deed(name),))
                doing.start()
                foreign = watch.wait(lambda change: change.process == "nft", after=after)
                healed_at = _last(watch, foreign)
                doing.join()
                if node.table() != wanted:
                    raise Failed(f"not as it was after: {what}")
                took_ms[what].append((healed_at - foreign.at) * 1000)
                time.sleep(_PAUSE_S)
    return took_ms


def _last(watch: NftWatch, foreign: Change) -> float:
    """Return when the last commit since a foreign one was made, when there was none for a while; only the agent makes any.

    By the generation's number, asked for again and again: a witness that listens has the kernel announce each of 10,000 elements.
    """
    with watch.deaf():
        number, at = foreign.generation, foreign.at
        while time.time() - at < (_QUIET_S if number != foreign.generation else _LONGEST_S):
            time.sleep(_ASK_S)
            found = watch.generation()
            if found != number:
                number, at = found, time.time()
    if number == foreign.generation:
        raise Failed("the agent has repaired nothing")
    return at
