"""ARP and neighbour discovery by zone: what a station of another zone says does not enter the table; `ip` is the witness."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.agent.firewall.frames import BROADCAST, OWN, Wire, ethernet
from tests.agent.firewall.lab import BASELINE, FencedNode, opens, section
from tests.agent.firewall.test_advice import CALM, ZONES, warned
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

NARROW = BASELINE.replace(
    'addresses = ["0.0.0.0/0", "::/0"]', 'addresses = ["10.20.0.0/24", "10.20.99.0/24"]'
)
GATEWAY4, GATEWAY6 = "10.20.1.1", "fd20:1::1"
FORGED = OWN.hex(":")


@pytest.fixture(autouse=True)
def forgotten(node: FencedNode) -> Iterator[None]:
    node.namespace.sysctl(net__ipv4__conf__all__arp_accept="1")
    node.namespace.ip("neigh", "flush", "all")
    yield
    node.namespace.sysctl(net__ipv4__conf__all__arp_accept="0")
    node.namespace.ip("neigh", "flush", "all")


def mac(namespace: Namespace, interface: str) -> bytes:
    shown = namespace.run("ip", "-br", "link", "show", interface).stdout
    return bytes.fromhex(shown.split()[2].replace(":", ""))


def arp(operation: int, source: str, to: str) -> bytes:
    ends = OWN + socket.inet_aton(source) + BROADCAST + socket.inet_aton(to)
    return ethernet(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + ends)


def icmp6(source: str, to: str, body: bytes) -> bytes:
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(to).packed
    pseudo = ends + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    return struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + ends + body


def advertisement(source: str, to: str, target: str) -> bytes:
    told = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + ipaddress.IPv6Address(target).packed
    return icmp6(source, to, told + b"\x02\x01" + OWN)


def behind(packet: bytes, kind: int) -> bytes:
    """Return an ICMPv6 packet with a header of options, padding alone, before ICMPv6."""
    length = struct.unpack_from("!H", packet, 4)[0] + 8
    head = packet[:4] + struct.pack("!HB", length, kind) + packet[7:40]
    return head + struct.pack("!BBBB4s", 58, 0, 1, 4, bytes(4)) + packet[40:]


def solicitation(source: str, to: str, target: str) -> bytes:
    told = struct.pack("!BBHI", 135, 0, 0, 0) + ipaddress.IPv6Address(target).packed
    return icmp6(source, to, told + b"\x01\x01" + OWN)


def forge(node: FencedNode, topology: Topology, *, interface: str = "enclave0", kinds: str = "46") -> None:
    """Say in every way that there is that the gateway, and a stranger, are at our MAC address."""
    who = topology.sites["fw"].the_client if interface == "enclave0" else topology.nodes[1]
    own4, own6 = node.host.enclave if interface == "enclave0" else node.host.uplink
    to = mac(node.namespace, interface)
    wire = Wire(who.namespace, interface)
    link_local = "fe80::bad:1"
    for four, six in ((GATEWAY4, GATEWAY6), ("192.0.2.7", "2001:db8::7")):
        frames = []
        if "4" in kinds:
            frames += [arp(2, four, own4), arp(1, four, own4), arp(1, four, four)]
        if "6" in kinds:
            frames += [
                ethernet(0x86DD, advertisement(sender, own6, six), to=to) for sender in (six, link_local)
            ]
            frames.append(ethernet(0x86DD, solicitation(six, own6, own6), to=to))
            frames += [
                ethernet(0x86DD, behind(advertisement(link_local, own6, six), kind), to=to)
                for kind in (0, 60)
            ]
        for frame in frames:
            wire.send(frame)
    wire.close()
    time.sleep(0.1)


def known(node: FencedNode, address: str, interface: str) -> str:
    return node.namespace.run("ip", "neigh", "show", address, "dev", interface).stdout


def expect_unsolicited(node: FencedNode, interface: str) -> None:
    """An advertisement only changes what is there: have the node wait for one."""
    for address in (GATEWAY6, "2001:db8::7"):
        node.namespace.ip(
            "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", interface, "nud", "stale"
        )


def test_f06_a_station_of_another_zone_cannot_speak_for_the_gateway(
    node: FencedNode, topology: Topology
) -> None:
    expect_unsolicited(node, "enclave0")
    node.clear()
    forge(node, topology)
    for address in (GATEWAY4, GATEWAY6, "192.0.2.7", "2001:db8::7"):
        assert FORGED in known(node, address, "enclave0"), "without the fence it works: the witness sees well"
    node.namespace.ip("neigh", "flush", "all")
    expect_unsolicited(node, "enclave0")
    node.settle(text=NARROW)
    forge(node, topology)
    for address in (GATEWAY4, GATEWAY6, "192.0.2.7", "2001:db8::7"):
        assert FORGED not in known(node, address, "enclave0"), address
    assert node.observe() == []


@pytest.mark.parametrize("posture", ["normal", "maintenance"])
def test_f06_those_of_the_zone_and_the_gateway_are_still_found(
    node: FencedNode, topology: Topology, posture: str
) -> None:
    node.settle(posture, text=NARROW)  # type: ignore[arg-type]
    client = topology.sites["fw"].the_client.namespace
    for each in (client, node.namespace, topology.nodes[1].namespace):
        each.ip("neigh", "flush", "all")
    for address in node.host.enclave:
        assert opens(client, address, 8080, 2.0)
    for address in topology.controller.uplink:
        assert opens(node.namespace, address, 8443, 2.0), "the gateway is in no zone; the routes name it"


def test_f06_on_an_interface_of_no_zone_nobody_is_heard(node: FencedNode, topology: Topology) -> None:
    other = Namespace("nozone")
    try:
        node.namespace.ip("link", "add", "odd0", "type", "veth", "peer", "name", "far0", "netns", other.name)
        node.namespace.batch(["addr add 10.77.0.1/24 dev odd0", "link set odd0 up"])
        other.batch(["addr add 10.77.0.2/24 dev far0", "link set far0 up"])
        node.settle(text=NARROW)
        other.run("ping", "-c", "1", "-W", "1", "10.77.0.1", check=False)
        assert "lladdr" not in known(node, "10.77.0.2", "odd0")
        assert "lladdr" not in other.run("ip", "neigh", "show", "10.77.0.1").stdout
        node.clear()

        def found() -> bool:
            other.run("ping", "-c", "1", "-W", "1", "10.77.0.1", check=False)
            return "lladdr" in known(node, "10.77.0.2", "odd0")

        assert any(found() for _ in range(10)), "without the fence it is"
    finally:
        node.namespace.ip("link", "del", "odd0")
        other.remove()


def test_f06_the_table_that_holds_arp_is_healed(node: FencedNode) -> None:
    node.settle(text=NARROW)
    for harm in (
        "delete table arp ringfence",
        "add rule arp ringfence input accept",
        "flush chain arp ringfence input",
        'add element arp ringfence senders { "enclave0" . 192.0.2.0/24 }',
        "add table arp ringfence { flags dormant; }",
        "add table arp ringfence_other",
    ):
        node.namespace.nft(harm)
        assert any(drift.key.startswith("arp ringfence") for drift in node.observe()), harm
        node.repair(node.observe())
        assert node.observe() == [], harm
    node.settle(text=BASELINE.replace('interface = "uplink0"\n', "", 1))
    assert "table arp" not in node.namespace.ruleset()


def test_f06_a_gateway_that_the_routes_name_later_is_heard(node: FencedNode) -> None:
    node.settle(text=NARROW)
    node.namespace.ip("route", "add", "192.0.2.0/24", "via", "10.10.1.200", "dev", "enclave0")
    node.namespace.ip(
        "route", "add", "198.51.100.0/24", "nexthop", "via", "10.20.1.201", "nexthop", "via", "10.20.1.202"
    )
    try:
        node.settle()
        shown = node.namespace.run("nft", "list", "set", "arp", "ringfence", "senders").stdout
        assert all(f'"uplink0" . 10.20.1.{number}' in shown for number in (1, 201, 202)), shown
    finally:
        node.namespace.ip("route", "del", "192.0.2.0/24")
        node.namespace.ip("route", "del", "198.51.100.0/24")


PIN = """
[[neighbours]]
interface = "uplink0"
address = "{address}"
mac = "{mac}"
reason = "gateway"
"""


def test_f06_a_pinned_gateway_is_what_the_baseline_says_whatever_the_link_says(
    node: FencedNode, topology: Topology
) -> None:
    """A station of the same zone may speak for the gateway, as far as ARP goes: a pin is what stops it."""
    assert opens(node.namespace, topology.controller.uplink[0], 8443, 2.0)
    assert opens(node.namespace, topology.controller.uplink[1], 8443, 2.0)
    true = known(node, GATEWAY4, "uplink0").split("lladdr ")[1].split()[0]
    forge(node, topology, interface="uplink0")
    assert FORGED in known(node, GATEWAY4, "uplink0"), "without a pin it works"
    pins = PIN.format(address=GATEWAY4, mac=true) + PIN.format(address=GATEWAY6, mac=true)
    node.settle(text=BASELINE + pins)
    forge(node, topology, interface="uplink0")
    for address in (GATEWAY4, GATEWAY6):
        assert f"lladdr {true} PERMANENT" in known(node, address, "uplink0")
    for address in topology.controller.uplink:
        assert opens(node.namespace, address, 8443, 2.0)
    node.namespace.ip("neigh", "replace", GATEWAY4, "lladdr", FORGED, "dev", "uplink0", "nud", "permanent")
    node.namespace.ip("neigh", "del", GATEWAY6, "dev", "uplink0")
    assert {drift.key for drift in node.observe()} == {
        f"neighbour:uplink0 {address}" for address in (GATEWAY4, GATEWAY6)
    }
    node.repair(node.observe())
    assert node.observe() == []
    assert true in known(node, GATEWAY4, "uplink0") and true in known(node, GATEWAY6, "uplink0")
    node.settle(text=BASELINE)
    assert "PERMANENT" not in known(node, GATEWAY4, "uplink0") + known(node, GATEWAY6, "uplink0")


def test_f06_check_says_when_neighbours_are_not_held_to_zones() -> None:
    assert not any("neighbour discovery" in each for each in warned(ZONES + CALM))
    for named in ('controller = { interface = "uplink0" }\n', 'interfaces = ["uplink0"]\naddresses'):
        text = ZONES.replace(named, "addresses" if "addresses" in named else "")
        assert any("neighbour discovery are heard on every" in each for each in warned(text + CALM))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('address = "10.20.1.0/24"', "one address"),
        ('address = "fe80::1%uplink0"', "zone id"),
        ('mac = "03:00:00:00:00:01"', "not of a group"),
        ('mac = "ff:ff:ff:ff:ff:ff"', "not of a group"),
        ('interface = "*"', "interface"),
    ],
)
def test_f10_a_pin_that_could_mean_more_is_refused(wrong: str, message: str) -> None:
    right = PIN.format(address=GATEWAY4, mac="02:00:00:00:00:01")
    section(BASELINE + right)
    key = wrong.partition(" ")[0]
    lines = [wrong if line.startswith(f"{key} ") else line for line in right.splitlines()]
    with pytest.raises(ValueError, match=message):
        section(BASELINE + "\n".join(lines))
    with pytest.raises(ValueError, match="each address once"):
        section(BASELINE + right + right)


def test_f06_a_gateway_that_changes_is_followed_and_is_no_drift(node: FencedNode) -> None:
    node.settle(text=NARROW)
    node.do(lambda: node.probe.settle(time.time()))
    assert node.observe() == []
    for verb, there in (("add", True), ("del", False)):
        node.namespace.ip("route", verb, "192.0.2.0/24", "via", "10.20.1.203", "dev", "uplink0")
        node.namespace.ip("route", verb, "2001:db8::/64", "via", "fd20:1::203", "dev", "uplink0")
        node.do(lambda: node.probe.settle(time.time()))
        assert node.observe() == []
        shown = node.namespace.ruleset()
        six = any(
            text in shown for text in ("fd20000100000000000000000000020", "fd20:1::203")
        )  # nft 1.0, 1.1
        assert ("10.20.1.203" in shown, six) == (there, there)
