"""Too many changes: an event socket that overflows, and a thousand changes a second."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.firewall.events import Culprit, Events
from agent.firewall.outrun import Outrun
from tests.agent.firewall.lab import FencedNode, Healing, opens, until
from tests.agent.firewall.stormrun import STORM
from tests.parts.topology import Topology

TREE = Path(__file__).resolve().parents[3]


def test_f05_announcements_that_did_not_fit_wake_a_full_look(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the listener is held up, more commits come than its buffer holds (8 MiB, some 60,000 announcements)."""
    monkeypatch.setattr("agent.firewall.events._POLL_S", 3600.0)  # not the second way to notice it
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
    until(lambda: "ringfence_guard" in node.namespace.ruleset(), 30)
    until(lambda: node.observe() == [], 30)
    assert healing.drifts
    assert not opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 9090, 0.1)


def test_f05_a_thousand_changes_a_second_neither_open_nor_burn_the_node(tmp_path: Path) -> None:
    """The whole loop under a storm: it ends closed, isolated as contested, and the agent has not eaten the processor."""

    ran = subprocess.run(
        [sys.executable, "-m", "tests.agent.firewall.stormrun", tmp_path, "10"],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["changes_per_s"] > 500, "it was a storm"
    assert told["processors"] < 0.8, told
    assert told["posture"] == "isolated"
    assert "firewall.contest" in told["kinds"]
    assert "ringfence_cut" in told["tables"]


def test_f05_no_storm_holds_up_who_asks_for_the_counters(node: FencedNode) -> None:
    """Reports and reloads ask for them: what outruns the listing must not keep the answer back until it is over."""
    events = node.namespace.inside(lambda: Events(node.netfilter.note))
    storm = node.namespace.start(sys.executable, "-c", STORM, "60")
    try:
        until(lambda: node.netfilter.noted() != [], 30)
        for _ in range(5):
            node.do(lambda: node.netfilter.dropped(8))
        assert storm.poll() is None, "the answers came while it stormed"
    finally:
        storm.kill()
        events.close()
        until(lambda: _rested(node), 60)  # or whoever comes next is told that it storms


def _rested(node: FencedNode) -> bool:
    """Ask for a listing, as whoever comes next does, and tell whether one is tried again."""
    with contextlib.suppress(Outrun):
        node.do(node.netfilter.own)
    return not node.netfilter.outrunning.on
