"""Both programs together, killed, stopped and asked for too much; the kernel and packets are the witnesses."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agent.notify import ANSWERED, NOT_ANSWERED
from tests.flow.lab import Failed, Lab, Node, wait_until
from tests.flow.traffic import Outside
from tests.parts import inference
from tests.parts.nftwatch import NftWatch


def shut(lab: Lab, node: Node) -> bool:
    """Say whether a port that nobody opened is out of reach, with and without IPv6."""
    client = lab.client(node.site).namespace
    with Outside(lab) as outside:
        return not any(outside.reaches(client, address, 2222) for address in node.host.enclave)


def agents_events(lab: Lab, node: Node) -> list[dict[str, Any]]:
    """Return what the controller has stored of the node's own events."""
    return [event for event in lab.events(node=node.name) if event["source"] == "agent"]


def in_order_and_once(events: list[dict[str, Any]]) -> bool:
    """Say whether the node's events are all different and stored in the order of their numbers."""
    numbers = [event["seq"] for event in events]
    return numbers == sorted(set(numbers))


def test_a01_an_agent_killed_at_any_instant_of_applying_a_baseline_opens_nothing(lab: Lab) -> None:
    node, version = lab.node("west-1"), 1
    dice = random.Random(7)
    for _ in range(4):
        version += 1
        lab.sign("west", version, 2, extra_port=9000 + version)
        lab.push()
        lab.assign("west", "west", version)
        time.sleep(dice.uniform(0.0, 0.6))
        node.stop_agent(signal.SIGKILL)
        assert "policy drop" in node.table()
        assert shut(lab, node)
        node.start_agent()
        lab.wait_in_force([node], "west", version)
        assert str(9000 + version) in node.table()
        assert shut(lab, node)
    assert in_order_and_once(agents_events(lab, node))


def test_a01_an_agent_killed_while_isolating_stays_isolated(lab: Lab) -> None:
    node = lab.node("west-1")
    client = lab.client("west").namespace

    def answers() -> bool:
        return inference.infer(client, node.host.enclave[0], timeout_s=0.3)

    for pause_s in (0.0, 0.02, 0.1):
        lab.api("POST", f"/nodes/{node.name}/isolate", {"reason": "test"})
        time.sleep(pause_s)
        node.stop_agent(signal.SIGKILL)
        node.start_agent()
        wait_until("isolated", lambda: bool(node.table("ringfence_cut")))
        assert not answers()
        lab.api("POST", f"/nodes/{node.name}/release", {"reason": "test"})
        wait_until("released", answers)


def test_a05_a_stopped_agent_is_unreachable_within_two_intervals_and_never_healthy(lab: Lab) -> None:
    node = lab.node("east-2")
    node.stop_agent()
    began = time.monotonic()
    standing = wait_until(
        "seen to be away",
        lambda: (found := lab.summaries()[node.name]["standing"]) == "unreachable" and found,
        within_s=14,
    )
    assert standing == "unreachable"
    assert time.monotonic() - began < 2 * 4.0 + 4.0
    assert shut(lab, node)
    node.start_agent()
    lab.wait_in_force([node], "east", 1)


def test_a06_what_happens_while_the_controller_is_away_is_told_afterwards_in_order(lab: Lab) -> None:
    node = lab.node("east-1")
    before = len(agents_events(lab, node))
    lab.stop_controller()
    with NftWatch(node.host.namespace) as watch:
        for _ in range(5):
            after = watch.changes[-1].at if watch.changes else 0.0
            node.host.namespace.nft("delete table inet ringfence")
            gone = watch.wait(lambda change: change.process == "nft", after=after)
            watch.wait(lambda change: "ringfence" in change.added, after=gone.at)
            time.sleep(0.1)
    lab.start_controller()

    def healed() -> bool:
        events = agents_events(lab, node)[before:]
        return sum(event["kind"] == "firewall.healed" for event in events) >= 5

    wait_until("five events are told", healed)
    assert in_order_and_once(agents_events(lab, node))
    lab.wait_in_force(lab.site("east"), "east", 1)


def test_systemd_is_told_whether_the_controller_answers(lab: Lab, tmp_path: Path) -> None:
    """An upgrade of the agent stays only if it does: see packaging/os/agent/upgrade."""
    node = lab.node("east-2")
    node.stop_agent()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        node.start_agent(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert supervisor.recv(500).decode() == f"READY=1\n{NOT_ANSWERED}"
        while (said := supervisor.recv(500).decode()) != ANSWERED:
            assert said == NOT_ANSWERED  # a dial that came to nothing
        lab.stop_controller()
        assert supervisor.recv(500).decode() == NOT_ANSWERED
        lab.start_controller()
        while supervisor.recv(500).decode() != ANSWERED:
            pass
    node.stop_agent()
    node.start_agent()
    lab.wait_in_force([node], "east", 1)


def test_c04_a_controller_killed_at_any_instant_loses_nothing_and_opens_nothing(lab: Lab) -> None:
    dice = random.Random(11)
    lab.api("POST", "/sites/east/isolate", {"reason": "before the kill"})
    wait_until("isolated", lambda: all(node.table("ringfence_cut") for node in lab.site("east")))
    for turn in range(3):
        events, holds = lab.events(), lab.api("GET", "/holds")["items"]
        acted = f"kill {turn}"
        lab.api("POST", "/nodes/west-1/isolate", {"reason": acted})
        time.sleep(dice.uniform(0.0, 0.15))
        lab.stop_controller(signal.SIGKILL)
        assert all(node.table("ringfence_cut") for node in lab.site("east"))
        lab.start_controller()
        now = lab.events()
        assert now[: len(events)] == events
        kept = lab.api("GET", "/holds")["items"]
        assert [hold for hold in holds if hold not in kept] == []
        assert any(hold["reason"] == acted for hold in kept), "an act that was answered is gone"
        wait_until("isolated", lambda: bool(lab.node("west-1").table("ringfence_cut")))
        assert all(node.table("ringfence_cut") for node in lab.site("east"))
        lab.api("POST", "/nodes/west-1/release", {"reason": acted})
    lab.api("POST", "/sites/east/release", {"reason": "after the kill"})
    lab.wait_in_force(lab.site("east"), "east", 1)
    wait_until("released", lambda: not any(node.table("ringfence_cut") for node in lab.nodes))
    assert all(in_order_and_once(agents_events(lab, node)) for node in lab.nodes)


@pytest.mark.parametrize("act", ["isolate", "release"])
def test_c16_an_empty_target_never_means_all(lab: Lab, act: str) -> None:
    holds = lab.api("GET", "/holds")["items"]
    for path in (
        f"/sites//{act}",
        f"/nodes//{act}",
        f"/sites/{act}",
        f"/nodes/{act}",
        f"/sites/*/{act}",
        f"/nodes/%20/{act}",
    ):
        with pytest.raises(Failed, match=r": 4\d\d "):
            lab.api("POST", path, {"reason": "everything"})
    for argv in ([], ["--site", ""], ["--node", ""], ["--site", "east", "--node", "east-1"]):
        refused = lab.ringfence(act, *argv, "--reason", "everything", check=False)
        assert "Traceback" not in refused and refused.strip()
    assert lab.api("GET", "/holds")["items"] == holds
    assert not any(node.table("ringfence_cut") for node in lab.nodes)


def test_f08_a_baseline_that_cuts_the_controller_off_is_taken_back(lab: Lab) -> None:
    lab.sign("east", 2, 1, way="uplink9")
    lab.push()

    def foretold() -> dict[str, Any] | None:
        told = lab.ringfence("plan", "east", "--version", "2", "--selector", "site=east", "--json")
        impact: dict[str, Any] = json.loads(told)["impact"]
        return impact if impact["known"] == 2 else None

    impact = wait_until("both nodes tell what they have open", foretold, within_s=60)
    assert impact is not None
    assert impact["lose_controller"] == ["east-1", "east-2"]
    last = lab.events()[-1]["id"]
    lab.assign("east", "east", 2)

    def back() -> bool:
        told = lab.events(last, site="east")
        return {event["node"] for event in told if event["kind"] == "baseline.reverted"} == {
            "east-1",
            "east-2",
        }

    wait_until("both nodes took it back", back, within_s=40)
    for node in lab.site("east"):
        assert "uplink9" not in node.table() and "policy drop" in node.table()
        assert shut(lab, node)
        assert inference.infer(lab.client("east").namespace, node.host.enclave[1])
