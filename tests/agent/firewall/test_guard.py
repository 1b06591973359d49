"""What stands between the deletion of our rules and their return; packets are the witness, nobody heals."""

from __future__ import annotations

import re

import pytest

from agent.firewall.guard import render_guard
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Listener, opens, send_udp, until
from tests.parts.inference import Stream, infer
from tests.parts.topology import Topology


def tables(node: FencedNode) -> list[str]:
    """Return what the kernel holds, table by table; their order is that of their making."""
    return sorted(each.strip() for each in f"\n{node.namespace.ruleset()}".split("\ntable "))


DEEDS = {
    "deleted": "delete table inet ringfence",
    "flushed": "flush table inet ringfence",
    "asleep": "add table inet ringfence { flags dormant; }",
    "open": "insert rule inet ringfence input accept; insert rule inet ringfence output accept; "
    "insert rule inet ringfence forward accept",
    "half made": "delete chain inet ringfence forward; flush chain inet ringfence input; "
    "add chain inet ringfence input { policy accept; }",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_f01_nothing_new_passes_while_the_rules_are_gone_asleep_or_edited(
    node: FencedNode, topology: Topology, deed: str
) -> None:
    client = topology.sites["fw"].the_client.namespace
    listener = Listener(node.namespace, 7000)
    streams = [Stream(client, address) for address in node.host.enclave]
    node.namespace.run("nft", DEEDS[deed])
    for address in node.host.enclave:
        assert not opens(client, address, 9090)
        send_udp(client, address, 7000)
    assert listener.received() is None
    for address in topology.outside.uplink:
        assert not opens(node.namespace, address, 9090), "out"
        assert not opens(client, address, 9090), "through"
    if deed not in ("half made", "flushed"):  # there our own chains drop everything
        assert all(opens(node.namespace, address, 8080) for address in ("127.0.0.1", "::1"))
        assert all(stream.alive() for stream in streams), "what was let in before goes on without a gap"
    node.repair(node.observe())
    assert node.observe() == []
    assert all(stream.alive(2.0) for stream in streams)
    assert all(infer(client, address) for address in node.host.enclave)
    for each in (*streams, listener):
        each.close()


GUARD_DEEDS = (
    "delete table inet ringfence_guard",
    "flush table inet ringfence_guard",
    "add table inet ringfence_guard { flags dormant; }",
    "insert rule inet ringfence_guard guard_input accept",
    "add chain inet ringfence_guard guard_output { policy accept; }",
    "rename chain inet ringfence_guard guard_input other",
)


@pytest.mark.parametrize("deed", GUARD_DEEDS)
def test_f01_the_guard_itself_is_seen_and_healed_and_the_rules_are_left_alone(
    node: FencedNode, deed: str
) -> None:
    before = tables(node)
    handles = node.namespace.run("nft", "-s", "-a", "list", "table", "inet", "ringfence").stdout
    node.namespace.run("nft", deed)
    drifts = node.observe()
    assert drifts and all(drift.key.startswith("inet ringfence_guard ") for drift in drifts)
    node.repair(drifts)
    assert node.observe() == []
    assert tables(node) == before
    assert node.namespace.run("nft", "-s", "-a", "list", "table", "inet", "ringfence").stdout == handles


def test_f03_replacing_the_rules_leaves_the_guard_untouched(node: FencedNode) -> None:
    guard = node.namespace.run("nft", "-a", "list", "table", "inet", "ringfence_guard").stdout
    for port in (8081, 8082, 8083):
        node.settle(text=BASELINE.replace("8080", str(port)))
    node.settle("isolated")
    node.settle("normal")
    assert node.namespace.run("nft", "-a", "list", "table", "inet", "ringfence_guard").stdout == guard


def test_f11_after_a_flush_the_guard_stands_before_the_rules_are_loaded(node: FencedNode) -> None:
    """The tiny batch goes first: what follows may take a hundred milliseconds."""
    addresses = ", ".join(f'"10.77.{n // 250}.{n % 250 + 1}"' for n in range(20_000))
    text = BASELINE.replace('addresses = ["10.10.1.0/24", "fd10:1::/64"]', f"addresses = [{addresses}]")
    node.settle(text=text)
    loads: list[str] = []
    load = node.netfilter.load

    def noted(batch: str) -> None:
        load(batch)
        loads.append(node.namespace.run("nft", "list", "tables").stdout)

    node.netfilter.load = noted  # type: ignore[method-assign]
    try:
        node.namespace.run("nft", "flush", "ruleset")
        node.repair(node.observe())
    finally:
        del node.netfilter.load  # type: ignore[method-assign]
    assert "ringfence_guard" in loads[0] and "table inet ringfence\n" not in loads[0]
    assert "table inet ringfence\n" in loads[-1]


@pytest.mark.parametrize(
    "table", ["inet ringfence_v0", "ip ringfence", "netdev ringfence_cut", "bridge ringfence_cut"]
)
def test_f01_tables_of_ours_that_nobody_wants_any_more_are_removed(node: FencedNode, table: str) -> None:
    node.namespace.run("nft", f"add table {table}; add chain {table} old")
    drifts = node.observe()
    assert [(drift.key, drift.wanted) for drift in drifts] == [
        (f"{table} table {table.split()[1]}", "absent")
    ]
    node.repair(drifts)
    assert node.observe() == []
    assert f"table {table}" not in node.namespace.run("nft", "list", "tables").stdout.splitlines()


def test_f01_everything_at_once_is_healed_by_event(node: FencedNode, topology: Topology) -> None:
    healing = Healing(node)
    before = tables(node)
    client = topology.sites["fw"].the_client.namespace
    for number, deed in enumerate([*DEEDS.values(), *GUARD_DEEDS, "flush ruleset"], start=1):
        node.namespace.run("nft", deed)
        healing.wait_healed(number)
        until(lambda: tables(node) == before)
        assert not opens(client, node.host.enclave[0], 9090, 0.05)


def test_the_guard_says_nothing_about_addresses_or_ports() -> None:
    assert not re.search(r"[sd]port|addr |[0-9]+\.[0-9]+", render_guard())
