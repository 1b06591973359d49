"""A process that holds the firewall of the namespace it is in, names and all, until somebody kills it.

`python -m tests.agent.firewall.resolving SECTION_FILE LIFETIME_S CONTROLLER_ADDRESS`. Prints one JSON line for each pass
that found or did something. `LIFETIME_S` may be less than what a baseline may say, since a test cannot wait so long.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from pathlib import Path

import msgspec

from agent.host import Host
from agent.netfilter import Netfilter
from agent.probes import ControllerEndpoint, Surroundings
from agent.probes.firewall import Probe
from tests.agent.firewall.lab import section


def main() -> None:
    """Hold it for ever."""
    parsed, lifetime_s = section(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    zones = {
        name: msgspec.structs.replace(zone, names_lifetime_s=lifetime_s) if zone.names else zone
        for name, zone in parsed.zones.items()
    }
    netfilter = Netfilter()
    controller = (ControllerEndpoint(sys.argv[3], 8443),)
    probe = Probe(
        msgspec.structs.replace(parsed, zones=zones),
        Surroundings(host=Host(), netfilter=netfilter, controller=controller),
    )
    wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
    netfilter.on_wake = lambda: wakes.put(None)
    while True:
        now = time.time()
        probe.settle(now)
        found = left = probe.observe(now)
        if found:
            probe.repair(found, now)
            left = probe.observe(now)
        line = {
            "found": [[drift.key, drift.found, drift.wanted] for drift in found],
            "left": [drift.key for drift in left],
            "told": [notice.summary for notice in probe.notices(now)],
        }
        print(json.dumps(line), flush=True)
        try:
            wakes.get(timeout=0.2)
        except queue.Empty:
            continue


if __name__ == "__main__":
    main()
