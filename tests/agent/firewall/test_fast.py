"""Flows that go past the rules: the table goes with every change of judgement, and with it every flow it carries.

What a kernel without flowtables can show is shown with a table of the same name and nothing in it. Where there are flowtables, packets
are the witnesses: `conntrack` says that a flow is offloaded, and that it dies is seen at its far end.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from agent.firewall import fast
from agent.firewall.nft import fence_now, render, render_cut, render_lockdown
from agent.probes import Surroundings
from agent.responses import fence, isolate
from contract.directive import Response
from tests.agent.firewall.lab import BASELINE, FencedNode, Listener, section, until
from tests.parts.inference import Stream
from tests.parts.topology import Topology

AROUND = SimpleNamespace(controller=(), fenced=("192.0.2.7",), grants=())
OFFLOAD = '[offload]\ninterfaces = ["enclave0", "uplink*"]\nreason = "cameras to the recorder"\n'
THROUGH = "".join(
    f'[[forward]]\nfrom = "enclave"\nto = "uplink"\nprotocol = "{protocol}"\nports = [{port}]\nreason = "test"\n'
    for protocol, port in (("tcp", 8080), ("udp", 7100))
)
WHOLE = f"{BASELINE}{OFFLOAD}{THROUGH}"


def test_who_takes_part() -> None:
    wanted = section(WHOLE)
    names = ["lo", "uplink0", "enclave0", "uplink1", "docker0", 'uplink"; x']
    assert fast.devices(wanted, "normal", names) == ("enclave0", "uplink0", "uplink1")
    assert fast.devices(wanted, "maintenance", names) == ("enclave0", "uplink0", "uplink1")
    assert fast.devices(wanted, "isolated", names) == ()
    assert fast.devices(wanted, "normal", ["lo", "enclave0", "docker0"]) == (), "one alone leads nowhere"
    assert fast.devices(section(BASELINE), "normal", names) == ()
    assert len(fast.devices(wanted, "normal", [f"uplink{n}" for n in range(300)])) == 256


def test_f07_every_batch_that_changes_judgement_begins_by_taking_it_away() -> None:
    wanted = section(WHOLE)
    batches = [render(wanted, posture, AROUND) for posture in ("normal", "isolated", "maintenance")]  # type: ignore[arg-type]
    batches += [render_cut(wanted, AROUND), fence_now(AROUND), render_lockdown(AROUND)]  # type: ignore[arg-type]
    for text in batches:
        commands = [line for line in text.splitlines() if not line.startswith("#")]
        assert commands[:2] == ["add table inet ringfence_fast", "delete table inet ringfence_fast"]


def _isolated(node: FencedNode) -> None:
    """By the response, before any pass."""
    node.do(lambda: isolate.Response().apply(node.probe.around, Response(name="isolate", reason="test")))


def _cut_alone(node: FencedNode) -> None:
    """The first of the batches that isolate: an interface that has gone may hold up those that follow."""
    cut = node.netfilter.prepared_cut
    assert cut is not None
    node.do(lambda: node.netfilter.load(cut.core))


def _fenced(node: FencedNode) -> None:
    around = node.probe.around
    node.probe.around = Surroundings(
        host=around.host, netfilter=node.netfilter, controller=around.controller, fenced=("10.10.1.100",)
    )
    request = Response(name="fence", addresses=["10.10.1.100"])
    node.do(lambda: fence.Response().apply(node.probe.around, request))


def _another_baseline(node: FencedNode) -> None:
    text = WHOLE.replace("ports = [7100]", "ports = [7101]").replace(
        'ports = [8080]\nreason = "test"', 'ports = [8081]\nreason = "test"'
    )
    node.settle(text=text)


def _one_set_differs(node: FencedNode) -> None:
    """The rules stand but for one set: only that is loaded."""
    node.namespace.run("nft", "add", "element", "inet", "ringfence", "zone4_enclave", "{ 10.10.9.0/24 }")
    node.repair([drift for drift in node.observe() if "zone4_enclave" in drift.key])


WAYS = [_isolated, _cut_alone, _fenced, _another_baseline, _one_set_differs]


@pytest.mark.parametrize("way", WAYS, ids=lambda each: each.__name__)
def test_f07_a_change_of_judgement_takes_the_table_away(
    node: FencedNode, way: Callable[[FencedNode], None]
) -> None:
    node.settle(text=BASELINE)
    node.namespace.nft("add table inet ringfence_fast\nadd chain inet ringfence_fast stands_in\n")
    way(node)
    assert "stands_in" not in node.namespace.ruleset()


@pytest.mark.parametrize("way", [_another_baseline, _one_set_differs], ids=lambda each: each.__name__)
def test_f07_what_only_differs_is_loaded_in_one_batch_with_its_end(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch, way: Callable[[FencedNode], None]
) -> None:
    node.settle(text=WHOLE)
    batches: list[str] = []
    load = node.netfilter.load
    monkeypatch.setattr(node.netfilter, "load", lambda text: (batches.append(text), load(text)))
    way(node)
    judging = [text for text in batches if "inet ringfence " in text]
    assert judging and all(text.startswith(fast.GONE) or f"\n{fast.GONE}" in text for text in judging)


def test_a_kernel_without_flowtables_is_no_drift_and_a_table_nobody_wants_is(node: FencedNode) -> None:
    node.settle(text=WHOLE)
    assert node.ours() == []
    stands = "table inet ringfence_fast" in node.namespace.ruleset()
    assert stands == node.do(node.netfilter.offloads)
    node.settle(text=BASELINE)
    node.namespace.nft("add table inet ringfence_fast\n")
    assert [drift.key for drift in node.ours()] == ["inet ringfence_fast table ringfence_fast"]
    node.repair(node.observe())
    assert "ringfence_fast" not in node.namespace.ruleset()


# ---- where the kernel has flowtables


@pytest.fixture
def offloading(node: FencedNode) -> FencedNode:
    if not node.do(node.netfilter.offloads):
        pytest.skip("this kernel has no flowtables (CONFIG_NF_FLOW_TABLE)")
    node.settle(text=WHOLE)
    return node


def _offloaded(node: FencedNode, port: int) -> bool:
    listed = node.namespace.run("conntrack", "-L", "-o", "extended").stdout.splitlines()
    return any("[OFFLOAD]" in line and f"dport={port}" in line for line in listed)


class Talk:
    """Datagrams from the client through the node to the outside and back, on one flow."""

    def __init__(self, topology: Topology, node: FencedNode) -> None:
        self.far = Listener(topology.outside.namespace, 7100)
        self.near = topology.sites["fw"].the_client.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.near.settimeout(1)
        self.near.connect((topology.outside.uplink[0], 7100))
        assert self.both_ways()
        until(lambda: self.both_ways() and _offloaded(node, 7100))

    def both_ways(self) -> bool:
        try:
            self.near.send(b"frame")
            data, sender = self.far.socket.recvfrom(100)
            self.far.socket.sendto(data, sender)
            return self.near.recv(100) == b"frame"
        except OSError:
            return False

    def close(self) -> None:
        self.far.close()
        self.near.close()


def test_an_offloaded_flow_is_past_the_rules_and_the_next_one_is_not(
    offloading: FencedNode, topology: Topology
) -> None:
    talk = Talk(topology, offloading)
    # What the kernel forwards by itself does not come by here; whatever does is dropped.
    offloading.namespace.nft(
        "table inet deaf {\nchain f {\ntype filter hook forward priority 5; policy drop;\n}\n}\n"
    )
    assert all(talk.both_ways() for _ in range(5))
    other = topology.sites["fw"].the_client.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.sendto(b"other", (topology.outside.uplink[0], 7100))
    assert talk.far.received() is None
    offloading.namespace.run("nft", "delete", "table", "inet", "deaf")
    other.close()
    talk.close()


@pytest.mark.parametrize(
    "way", [_isolated, _cut_alone, _fenced, _another_baseline], ids=lambda each: each.__name__
)
def test_f07_an_offloaded_flow_dies_where_judgement_changes(
    offloading: FencedNode, topology: Topology, way: Callable[[FencedNode], None]
) -> None:
    talk = Talk(topology, offloading)
    stream = Stream(topology.sites["fw"].the_client.namespace, topology.outside.uplink[0])
    until(lambda: stream.alive() and _offloaded(offloading, 8080))
    way(offloading)
    assert not stream.alive(0.5)
    for _ in range(5):
        talk.near.send(b"after")
        time.sleep(0.02)
    assert talk.far.received() is None
    talk.close()
    stream.close()


def test_a_flow_that_is_still_allowed_goes_on_and_comes_back_into_the_flowtable(
    offloading: FencedNode, topology: Topology
) -> None:
    talk = Talk(topology, offloading)
    offloading.settle(text=WHOLE.replace("9090", "9091") + '[zones.spare]\naddresses = ["192.0.2.0/24"]\n')
    assert talk.both_ways()
    until(lambda: talk.both_ways() and _offloaded(offloading, 7100))
    assert offloading.ours() == []
    talk.close()


def test_f01_a_table_that_others_change_or_delete_is_made_again(offloading: FencedNode) -> None:
    for harm in (
        "delete table inet ringfence_fast",
        "flush chain inet ringfence_fast fast_forward",
        "insert rule inet ringfence_fast fast_forward accept",
    ):
        offloading.namespace.run("nft", *harm.split())
        assert offloading.ours() != [], harm
        offloading.repair(offloading.observe())
        assert offloading.ours() == [], harm


def test_f05_a_storm_that_outruns_the_listing_of_this_table_is_no_failed_repair(node: FencedNode) -> None:
    node.namespace.run("nft", "add table inet ringfence_fast")
    drifts = node.observe()
    assert any("ringfence_fast" in drift.key for drift in drifts)
    node.namespace.run("nft", "add chain inet ringfence_fast one_more")  # what was seen holds no longer
    outrunning = node.netfilter.outrunning
    outrunning.on, outrunning._rest_until = True, time.monotonic() + 3600
    node.repair(drifts)
    outrunning.on = False
    node.repair(node.observe())
    assert node.observe() == []
    assert "ringfence_fast" not in node.namespace.ruleset()
