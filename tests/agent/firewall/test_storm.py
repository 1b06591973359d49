"""Too many changes: an event socket that overflows, and a thousand changes a second."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.firewall.events import Culprit, Events
from tests.agent.firewall.lab import FencedNode, Healing, opens, until
from tests.agent.rig import Rig, baseline, in_own_namespace, nft
from tests.parts.topology import Topology

_STORM = """
import nftables, sys, time
context = nftables.Nftables()
end = time.monotonic() + float(sys.argv[1])
count = 0
while time.monotonic() < end:
    context.cmd("add table inet ringfence; insert rule inet ringfence " + ("input" if count % 2 else "output") + " accept")
    count += 1
print(count)
"""


def test_f05_announcements_that_did_not_fit_wake_a_full_look(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the listener is held up, more commits come than its buffer holds (8 MiB, some 60,000 announcements)."""
    monkeypatch.setattr("agent.firewall.events._POLL_S", 60.0)  # not the second way to notice it
    heard: list[Culprit | None] = []
    held = threading.Event()

    def hear(culprit: Culprit | None) -> None:
        heard.append(culprit)
        held.wait(60)

    events = node.namespace.inside(lambda: Events(hear))
    try:
        node.namespace.run("nft", "add table ip other; add set ip other s { type ipv4_addr; }")
        until(lambda: bool(heard))
        for part in range(4):
            addresses = ", ".join(f"10.{part}.{n // 250}.{n % 250}" for n in range(40_000))
            node.namespace.nft(f"add element ip other s {{ {addresses} }}")
        node.namespace.run("nft", "delete table inet ringfence")
        held.set()
        until(lambda: None in heard, 20)
    finally:
        held.set()
        events.close()


def test_f05_after_a_storm_that_overflows_everything_is_as_wanted(
    node: FencedNode, topology: Topology
) -> None:
    healing = Healing(node)
    for part in range(4):
        addresses = ", ".join(f"10.{part}.{n // 250}.{n % 250}" for n in range(40_000))
        node.namespace.nft(
            f"add table ip other\nadd set ip other s {{ type ipv4_addr; }}\nadd element ip other s {{ {addresses} }}"
        )
    node.namespace.run("nft", "flush ruleset")
    until(lambda: "ringfence_guard" in node.namespace.ruleset(), 10)
    until(lambda: node.observe() == [], 10)
    assert healing.drifts
    assert not opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 9090, 0.1)


def test_f05_a_thousand_changes_a_second_neither_open_nor_burn_the_node(tmp_path: Path) -> None:
    """The whole loop under a storm: it ends closed, isolated as contested, and the agent has not eaten the processor."""

    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        events = Events(rig.loop.firewall_changed)
        seconds = 6.0
        before = time.process_time()
        begun = time.monotonic()
        storm = subprocess.run(
            [sys.executable, "-c", _STORM, str(seconds)], capture_output=True, text=True, check=True
        )
        burnt = (time.process_time() - before) / (time.monotonic() - begun)
        assert int(storm.stdout) / seconds > 500, "it was a storm"
        assert burnt < 0.6, f"{burnt:.2f} of a processor"
        rig.loop.wake("firewall")
        deadline = time.monotonic() + 2
        while "insert" in nft("list", "ruleset") or rig.loop.stance.posture != "isolated":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rig.call(lambda: None)
        assert "firewall.contest" in rig.kinds()
        assert "ringfence_cut" in nft("list", "tables")
        events.close()
        rig.stop()

    in_own_namespace(job)
