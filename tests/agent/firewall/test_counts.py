"""Counters of rules: what packets did is what they say, and reading them is no drift; `nft` is the witness."""

from __future__ import annotations

import json
import re
import sys

from tests.agent.firewall.lab import BASELINE, FencedNode, opens
from tests.parts.topology import Topology


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
    assert (found["in_enclave_tcp"], found["drop_input"]) == (after[0], packets(node, "drop_input"))
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
