"""One look in a verdict map: what of the rules a packet meets, and that packets are judged as one by one they would be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.firewall.dispatch import Way, dispatched
from agent.firewall.nft import rules
from agent.firewall.section import InboundRule, Section, Zone
from tests.agent.firewall.lab import FencedNode, opens
from tests.parts.topology import Topology

NOBODY = SimpleNamespace(controller=(), fenced=(), grants=())


def way(direction: str, *interfaces: tuple[str, ...], match: str = "", verdict: str) -> Way:
    return Way(direction=direction, interfaces=interfaces, match=match, verdict=verdict)


def chain(section: Section, name: str) -> tuple[str, ...]:
    """The rules of one chain."""
    table = rules(section, "normal", NOBODY).tables[0]  # type: ignore[arg-type]
    return next(each.rules for each in table.chains if each.name == name)


def zoned(count: int) -> Section:
    """So many zones, each with an interface of its own."""
    zones = {
        f"z{n}": Zone(interfaces=[f"port{n}"], addresses=[f"10.{n}.0.0/16"]) for n in range(1, count + 1)
    }
    rule = [InboundRule(zone=name, protocol="tcp", ports=[8080], reason="inference") for name in zones]
    return Section(zones=zones, inbound=rule)


def test_zones_of_other_interfaces_cost_a_packet_nothing() -> None:
    one, many = chain(zoned(1), "input"), chain(zoned(200), "input")
    assert len(one) == len(many)
    assert len(chain(zoned(200), "input_at_200")) == 1


def test_interfaces_and_directions_are_one_key_and_equal_ends_one_chain() -> None:
    first = [
        way("original", ("a", "b"), match="ip saddr @x ", verdict="jump in_x"),
        way("original", ("a",), verdict="jump in_y"),
        way("reply", ("b",), match="ip saddr @x ", verdict="jump in_x"),
    ]
    found, chains = dispatched("input", ("iifname",), first)
    assert found == [
        'ct direction . iifname vmap { original . "a" : jump input_at_1, original . "b" : jump input_at_2,'
        ' reply . "b" : jump input_at_2 }'
    ]
    assert [each.rules for each in chains] == [
        ("ip saddr @x jump in_x", "jump in_y"),
        ("ip saddr @x jump in_x",),
    ]


def test_what_no_interface_decides_is_asked_after_it_and_in_order() -> None:
    ways = [
        way("original", (), match="ip saddr @x ", verdict="jump in_x"),
        way("original", ("a",), verdict="jump in_y"),
        way("reply", (), verdict="jump in_z"),
    ]
    found, _ = dispatched("input", ("iifname",), ways)
    assert found[1:] == ["ct direction original ip saddr @x jump in_x", "ct direction reply jump in_z"]


def test_both_ends_of_what_passes_are_in_the_key_where_both_are_named() -> None:
    ways = [
        way("original", ("a",), ("b", "c"), verdict="jump fwd"),
        way("original", (), ("b",), match="ip saddr @x ", verdict="jump fwd"),
    ]
    found, _ = dispatched("forward", ("iifname", "oifname"), ways)
    assert found == [
        'ct direction . iifname . oifname vmap { original . "a" . "b" : jump forward_at_1,'
        ' original . "a" . "c" : jump forward_at_1 }',
        'ct direction original oifname { "b" } ip saddr @x jump fwd',
    ]


_TWO = """
[controller]
interface = "uplink0"

[zones.near]
interfaces = ["enclave0"]
addresses = ["10.0.0.0/8", "fd00::/8"]

[zones.far]
interfaces = ["uplink0"]
addresses = ["10.0.0.0/8", "fd00::/8"]

[[inbound]]
zone = "near"
protocol = "tcp"
ports = [8080]
reason = "only from inside"

[[inbound]]
zone = "far"
protocol = "tcp"
ports = [9090]
reason = "only from outside"
"""


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_f06_the_same_addresses_on_two_interfaces_are_two_zones(
    node: FencedNode, topology: Topology, version: int
) -> None:
    node.settle(text=_TWO)
    inside, outside = topology.sites["fw"].the_client.namespace, topology.outside.namespace
    for port, near, far in ((8080, True, False), (9090, False, True)):
        assert opens(inside, node.host.enclave[version], port) is near
        assert opens(outside, node.host.uplink[version], port) is far
