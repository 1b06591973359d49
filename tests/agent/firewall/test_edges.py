"""Paths around the inet table: interfaces of every kind that come later, MAC addresses, IPv6 with more in its way; packets are the witness."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

import pytest

from agent.firewall.guard import render_guard
from tests.agent.firewall.frames import Wire, ethernet, udp4, udp6
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Listener, opens, send_udp, until
from tests.agent.firewall.test_neighbours import mac
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

KINDS = ("veth", "bridge", "macvlan", "ipvlan", "vlan")
LATER = """
[zones.later]
interfaces = ["later0"]
[[inbound]]
zone = "later"
protocol = "tcp"
ports = [9090]
reason = "test"
"""


@pytest.fixture
def far() -> Iterator[Namespace]:
    made = Namespace("far")
    yield made
    made.remove()


def add(node: FencedNode, far: Namespace, kind: str, name: str, net: int) -> None:
    """Make an interface of the node that leads to `far`, whatever it takes; 10.77.NET.1 here, .2 there."""
    inside, port, there = node.namespace, f"port{net}", f"far{net}"
    tried = far.run("ip", "link", "add", "try0", "type", kind, check=False).stderr
    far.run("ip", "link", "del", "try0", check=False)
    if "Unknown device type" in tried:
        pytest.skip(f"this kernel has no {kind}")
    if kind == "veth":
        port = name
    inside.ip("link", "add", port, "type", "veth", "peer", "name", there, "netns", far.name)
    inside.ip("link", "set", port, "up")
    far.ip("link", "set", there, "up")
    end = there
    if kind == "bridge":
        inside.ip("link", "add", name, "type", "bridge", "forward_delay", "0")
        inside.ip("link", "set", port, "master", name)
    elif kind in ("macvlan", "ipvlan"):
        mode = ("mode", "bridge") if kind == "macvlan" else ("mode", "l2")
        inside.ip("link", "add", name, "link", port, "type", kind, *mode)
    elif kind == "vlan":
        inside.ip("link", "add", name, "link", port, "type", "vlan", "id", "7")
        far.ip("link", "add", f"{there}.7", "link", there, "type", "vlan", "id", "7")
        end = f"{there}.7"
        far.ip("link", "set", end, "up")
    for namespace, where, host in ((inside, name, 1), (far, end, 2)):
        namespace.ip("link", "set", where, "up")
        namespace.ip("addr", "add", f"10.77.{net}.{host}/24", "dev", where)
        namespace.ip("addr", "add", f"fd77:{net}::{host}/64", "dev", where, "nodad")


def remove(node: FencedNode) -> None:
    for name in ("other0", "later0", "port1", "port2"):
        node.namespace.run("ip", "link", "del", name, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_f09_whatever_kind_of_interface_comes_later_is_judged_by_its_name(
    node: FencedNode, far: Namespace, kind: str
) -> None:
    node.settle(text=BASELINE + LATER)
    try:
        add(node, far, kind, "other0", 1)
        add(node, far, kind, "later0", 2)
        for address in ("10.77.1.1", "fd77:1::1"):
            assert not opens(far, address, 9090), "no zone names it"
        for address in ("10.77.2.1", "fd77:2::1"):
            until(lambda a=address: opens(far, a, 9090))  # type: ignore[misc]
            assert not opens(far, address, 8080)
        assert node.observe() == []
    finally:
        remove(node)


@pytest.mark.parametrize("kind", KINDS)
def test_f09_whatever_kind_comes_during_isolation_carries_nothing(
    node: FencedNode, far: Namespace, kind: str
) -> None:
    mark = b"from an interface that came later"
    node.settle("isolated", text=BASELINE + LATER)
    healing = Healing(node)
    try:
        add(node, far, kind, "later0", 2)
        carrier = "later0" if kind == "veth" else "port2"
        until(lambda: {"later0", carrier} <= node.do(node.netfilter.cut_devices))
        witness = Wire(far, "far2")
        for name in {carrier, "later0"}:
            wire = Wire(node.namespace, name, bypass=True)
            wire.send(ethernet(0x88B5, mark))
            wire.send(ethernet(0x0800, udp4("10.77.2.1", "10.77.2.2", 9, mark), tag=9))
            wire.close()
        assert not witness.sees(mark)
        assert not opens(far, "10.77.2.1", 9090)
        just_there = {"netdev ringfence_cut interfaces"}
        assert {drift.key for drift in healing.drifts} <= just_there, "our own following is nobody's doing"
        witness.close()
    finally:
        healing.close()
        remove(node)


def machines(node: FencedNode, right: bytes) -> str:
    return BASELINE.replace(
        'addresses = ["10.10.1.0/24", "fd10:1::/64"]',
        f'addresses = ["10.10.1.0/24", "fd10:1::/64"]\nmacs = ["{right.hex(":")}"]',
    )


@pytest.mark.parametrize("family", [4, 6])
def test_f09_a_zone_of_mac_addresses_lets_in_the_right_one_and_no_other(
    node: FencedNode, topology: Topology, family: int
) -> None:
    client = topology.sites["fw"].the_client
    address = node.host.enclave[0 if family == 4 else 1]
    node.settle(text=machines(node, mac(client.namespace, "enclave0")))
    assert opens(client.namespace, address, 8080, 2.0)
    hearing = Listener(node.namespace, 6001)
    send_udp(client.namespace, address, 6001, b"right")
    assert hearing.received() == b"right"
    node.settle(text=machines(node, bytes.fromhex("020000000099")))
    assert not opens(client.namespace, address, 8080)
    send_udp(client.namespace, address, 6001, b"wrong")
    assert hearing.received() is None
    node.settle(text=machines(node, mac(client.namespace, "enclave0")))
    # The right address by IP, from another station: a frame with a MAC address of its own.
    wire = Wire(topology.nodes[1].namespace, "enclave0")
    to = mac(node.namespace, "enclave0")
    own = client.enclave[0 if family == 4 else 1]
    if family == 4:
        wire.send(ethernet(0x0800, udp4(own, address, 6001, b"forged"), to=to))
    else:
        wire.send(ethernet(0x86DD, checked6(own, address, 6001, b"forged"), to=to))
    assert hearing.received() is None
    node.settle()
    hearing.close(), wire.close()


def checked6(source: str, to: str, port: int, data: bytes, before: tuple[int, bytes] = (17, b"")) -> bytes:
    """Return an IPv6 packet with a good checksum; `before`: kind of the first header after its own, and all before UDP's."""
    kind, headers = before
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(to).packed
    head = struct.pack("!HHH", 4242, port, 8 + len(data))
    summed = ends + struct.pack("!II", 8 + len(data), 17) + head + b"\0\0" + data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = head + struct.pack("!H", ~total & 0xFFFF or 0xFFFF) + data
    return struct.pack("!IHBB", 0x60000000, len(headers) + len(udp), kind, 64) + ends + headers + udp


PADDED = struct.pack("!BBBB4s", 17, 0, 1, 4, bytes(4))
"""An option header of 8 bytes that holds padding alone; UDP follows."""
HEADERS = {
    "none": (17, b""),
    "hop by hop": (0, PADDED),
    "destination options": (60, PADDED),
    "several": (0, bytes([60]) + PADDED[1:] + PADDED),
    "one fragment": (44, struct.pack("!BBHI", 17, 0, 0, 7)),
}


@pytest.mark.parametrize("way", list(HEADERS))
def test_f06_headers_before_udp_do_not_hide_its_port(node: FencedNode, topology: Topology, way: str) -> None:
    client = topology.sites["fw"].the_client
    wire, to = Wire(client.namespace, "enclave0"), mac(node.namespace, "enclave0")
    hearing = {port: Listener(node.namespace, port) for port in (5353, 5354)}
    for port, arrives in ((5353, True), (5354, False)):
        packet = checked6(client.enclave[1], node.host.enclave[1], port, b"six", HEADERS[way])
        wire.send(ethernet(0x86DD, packet, to=to))
        assert (hearing[port].received() == b"six") == arrives
    for each in (wire, *hearing.values()):
        each.close()


def test_f06_tagged_frames_are_nobody_elses_way_in(node: FencedNode, topology: Topology) -> None:
    """Without a VLAN interface a tag leads nowhere; priority tags (VLAN 0) mean the interface itself, and its rules."""
    client = topology.sites["fw"].the_client
    wire, to = Wire(client.namespace, "enclave0"), mac(node.namespace, "enclave0")
    hearing = {port: Listener(node.namespace, port) for port in (5353, 5354)}
    for tag in (0, 7, 4095):
        for port in (5353, 5354):
            for frame in (
                ethernet(0x0800, udp4(client.enclave[0], node.host.enclave[0], port, b"t"), to=to, tag=tag),
                ethernet(0x86DD, udp6(client.enclave[1], node.host.enclave[1], port, b"t"), to=to, tag=tag),
            ):
                wire.send(frame)
    assert hearing[5354].received() is None
    for each in (wire, *hearing.values()):
        each.close()


def test_f06_a_card_that_takes_the_name_of_the_loopback_opens_nothing(
    node: FencedNode, topology: Topology
) -> None:
    inside, client = node.namespace, topology.sites["fw"].the_client.namespace
    own = node.host.enclave
    inside.batch(
        [
            "link set lo down",
            "link set lo name back0",
            "link set enclave0 down",
            "link set enclave0 name lo",
            "link set lo up",
            "link set back0 up",
            f"addr replace {own[1]}/64 dev lo nodad",
        ]
    )
    try:
        node.repair(node.observe())
        inside.nft(node.do(node.probe.text))  # by a process that knows interfaces by no older name
        inside.nft(render_guard())
        for address in own:
            assert not opens(client, address, 9090), "the rules mean the loopback itself"
        assert any("back0" in drift.found for drift in node.ours()), "and its other name is told"
    finally:
        inside.batch(
            [
                "link set lo down",
                "link set lo name enclave0",
                "link set back0 down",
                "link set back0 name lo",
                "link set lo up",
                "link set enclave0 up",
                f"addr replace {own[1]}/64 dev enclave0 nodad",
            ]
        )
        until(lambda: client.run("ping", "-c1", "-W1", own[1], check=False).returncode == 0, 20)
