"""The machine side under a storm of rule changes, in a process of its own: what the agent costs is what the process costs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from agent.firewall.events import Events
from tests.agent.rig import Rig, baseline, in_own_namespace, nft

STORM = """
import nftables, sys, time
context = nftables.Nftables()
end = time.monotonic() + float(sys.argv[1])
count = 0
while time.monotonic() < end:
    context.cmd("add table inet ringfence; insert rule inet ringfence " + ("input" if count % 2 else "output") + " accept")
    count += 1
print(count)
"""


def weather(folder: Path, seconds: float) -> dict[str, object]:
    """Hold a node through `seconds` of storm, on a busy machine up to six times as many; return what it cost and how it ended."""
    rig = Rig(folder)
    rig.start()
    rig.adopt(baseline(1, 8080), 1, 1)
    events = Events(rig.loop.firewall_changed)
    burnt, begun, lasted, changes = time.process_time(), time.monotonic(), 0.0, 0
    while lasted < seconds or (rig.loop.stance.posture != "isolated" and lasted < 6 * seconds):
        storm = subprocess.run([sys.executable, "-c", STORM, "5"], capture_output=True, text=True, check=True)
        changes, lasted = changes + int(storm.stdout), time.monotonic() - begun
    burnt = time.process_time() - burnt
    rig.loop.wake("firewall")
    calm = time.monotonic()
    while "insert" in nft("list", "ruleset") or rig.loop.stance.posture != "isolated":
        if time.monotonic() - calm > 10:
            break
        time.sleep(0.05)
    rig.call(lambda: None)
    told = {
        "changes_per_s": changes / lasted,
        "processors": burnt / lasted,
        "posture": rig.loop.stance.posture,
        "kinds": sorted(rig.kinds()),
        "tables": nft("list", "tables"),
        "threads": sorted(each.name for each in threading.enumerate()),
    }
    events.close()
    rig.stop()
    return told


def main() -> None:
    """`python -m tests.agent.firewall.stormrun FOLDER SECONDS`: print the answer as JSON."""
    print(json.dumps(in_own_namespace(lambda: weather(Path(sys.argv[1]), float(sys.argv[2])))))


if __name__ == "__main__":
    main()
