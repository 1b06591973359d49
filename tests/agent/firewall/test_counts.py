"""Counters of rules: what packets did is what they say, and reading them is no drift; `nft` is the witness."""

from __future__ import annotations

import json
import re
import sys

from agent.firewall.counts import Count, Tally
from contract.messages import MAX_DROPPED_PER_REPORT, Dropped
from contract.wire import encode
from tests.agent.firewall.lab import BASELINE, FencedNode, opens, send_udp
from tests.parts.topology import Topology

_AGAIN = 3
"""Packets that nobody here sent on purpose: a kernel that asks once more, where the machine is busy."""


def packets(node: FencedNode, name: str) -> int:
    """Return a counter as the nft program shows it."""
    shown = node.namespace.run("nft", "list", "counter", "inet", "ringfence", name).stdout
    return int(re.findall(r"packets (\d+)", shown)[0])


def test_each_rule_counts_and_the_command_shows_it(node: FencedNode, topology: Topology) -> None:
    client = topology.sites["fw"].the_client.namespace
    before = packets(node, "in_enclave_tcp"), packets(node, "drop_input")
    assert opens(client, node.host.enclave[0], 8080)
    assert not opens(client, node.host.enclave[0], 9090)
    after = packets(node, "in_enclave_tcp"), packets(node, "drop_input")
    assert after[0] > before[0] and after[1] > before[1]
    shown = node.namespace.run(sys.executable, "-m", "agent.main", "counters", "--json").stdout
    found = {each["name"]: each["packets"] for each in json.loads(shown)}
    assert found["in_enclave_tcp"] == after[0]
    # Who knocked in vain knocks again after a second, on a busy machine in between.
    assert after[1] <= found["drop_input"] <= packets(node, "drop_input")
    assert next(iter(found)).startswith("drop_"), "what was dropped comes first"
    assert node.observe() == []


def test_counters_go_on_when_rules_change_in_part(node: FencedNode, topology: Topology) -> None:
    assert opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 8080)
    before = packets(node, "in_enclave_tcp")
    assert before
    node.settle(text=BASELINE.replace("[53, 123]", "[53]"))
    assert packets(node, "in_enclave_tcp") >= before


def test_without_rules_the_command_fails_and_says_so(node: FencedNode) -> None:
    node.clear()
    done = node.namespace.run(sys.executable, "-m", "agent.main", "counters", check=False)
    assert done.returncode == 3 and "ringfence-agent:" in done.stderr


def test_what_was_dropped_is_summed_over_whole_loads_and_told_once(
    node: FencedNode, topology: Topology
) -> None:
    client = topology.sites["fw"].the_client.namespace

    def knock(times: int) -> int:
        """Return how many packets the kernel's own counter went up by."""
        before = packets(node, "drop_input")
        for _ in range(times):
            send_udp(client, node.host.enclave[0], 9)
        return packets(node, "drop_input") - before

    def told() -> int:
        found = node.do(lambda: node.netfilter.dropped(8))
        return sum(each.packets for each in found if each.name == "drop_input")

    node.do(lambda: node.netfilter.tell_dropped(node.netfilter.dropped(100)))
    sent = knock(3)
    node.do(lambda: node.netfilter.load(node.probe.text()))
    assert packets(node, "drop_input") == 0, "loaded anew: the kernel's begins at nothing"
    sent += knock(5)
    assert 8 <= sent <= told() <= sent + _AGAIN
    node.namespace.nft("delete table inet ringfence")
    node.settle()
    sent += knock(2)
    assert 10 <= sent <= told() <= sent + _AGAIN
    arrived = node.do(lambda: node.netfilter.dropped(8))
    extra = knock(1)
    node.do(lambda: node.netfilter.tell_dropped(arrived))
    assert told() == extra == 1, "what came after the report was written waits for the next"
    node.do(lambda: node.netfilter.tell_dropped(node.netfilter.dropped(8)))
    assert node.do(lambda: node.netfilter.dropped(8)) == [], "a quiet node sends nothing"


def test_a_report_says_the_most_of_what_was_dropped_within_its_bound() -> None:
    tally = Tally()
    tally.add([Count(f"in_z{number}_tcp_over_rate", number, number) for number in range(1, 300)])
    tally.add([Count("in_enclave_tcp", 10**6, 1), Count("drop_input", 2**53, 5)])
    found = tally.dropped(MAX_DROPPED_PER_REPORT)
    assert [each.packets for each in found] == [2**53, *range(299, 292, -1)]
    said = [Dropped(counter=each.name, packets=each.packets, bytes=each.bytes) for each in found]
    assert len(encode(said)) < 600, "bytes of a report"
    tally.tell(found)
    assert [each.packets for each in tally.dropped(2)] == [292, 291], "what did not fit comes next"
