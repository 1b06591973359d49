"""Isolation below IP: what packet sockets, bridges, MACVLANs and containers send, seen on the wire by somebody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.agent.firewall.frames import BROADCAST, Wire, arp, ethernet, udp4, udp6
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Listener, opens, send_udp, until
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

MARK = b"this must not leave"
CLIENT4, CLIENT6 = "10.10.1.100", "fd10:1::100"


def frames(node: FencedNode) -> dict[str, bytes]:
    own4, own6 = node.host.enclave
    packet = udp4(own4, CLIENT4, 9999, MARK)
    return {
        "ipv4": ethernet(0x0800, packet),
        "ipv6": ethernet(0x86DD, udp6(own6, CLIENT6, 9999, MARK)),
        "tagged": ethernet(0x0800, packet, tag=7),
        "arp request": ethernet(0x0806, arp(1, own4, CLIENT4, MARK)),
        "unknown kind": ethernet(0x88B5, MARK * 3),
        "controller's port of another": ethernet(0x0800, udp4(own4, CLIENT4, 8443, MARK, 8443)),
    }


KINDS = ("ipv4", "ipv6", "tagged", "arp request", "unknown kind", "controller's port of another")


@pytest.fixture
def extra() -> Iterator[list[Namespace]]:
    made: list[Namespace] = []
    yield made
    for each in made:
        each.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bypass", [False, True], ids=["queue", "bypass"])
def test_f06_a_packet_socket_sends_nothing_in_isolation(
    node: FencedNode, topology: Topology, kind: str, bypass: bool
) -> None:
    frame = frames(node)[kind]
    witness = Wire(topology.sites["fw"].the_client.namespace, "enclave0")
    wire = Wire(node.namespace, "enclave0", bypass=bypass)
    wire.send(frame)
    assert witness.sees(MARK), "without isolation it leaves: the witness sees well"
    node.settle("isolated")
    for _ in range(5):
        wire.send(frame)
    assert not witness.sees(MARK)
    node.settle("normal")
    wire.send(frame)
    assert witness.sees(MARK), "and again after release"
    for each in (witness, wire):
        each.close()


def test_f06_raw_sockets_send_nothing_in_isolation(node: FencedNode, topology: Topology) -> None:
    witness = Wire(topology.sites["fw"].the_client.namespace, "enclave0")
    node.settle("isolated")

    def send() -> None:
        for family, protocol, to in (
            (socket.AF_INET, socket.IPPROTO_ICMP, CLIENT4),
            (socket.AF_INET, socket.IPPROTO_RAW, CLIENT4),
            (socket.AF_INET6, socket.IPPROTO_ICMPV6, CLIENT6),
            (socket.AF_INET, 253, CLIENT4),
        ):
            with socket.socket(family, socket.SOCK_RAW, protocol) as made:
                data = udp4(node.host.enclave[0], CLIENT4, 1, MARK) if protocol == 255 else MARK * 2
                try:
                    made.sendto(data, (to, 0))
                except OSError:
                    continue

    node.namespace.inside(send)
    assert not witness.sees(MARK)
    witness.close()


def test_f06_what_arrives_for_others_than_the_controller_dies_before_anything_looks(
    node: FencedNode, topology: Topology
) -> None:
    """A socket for one kind of frame is behind the ingress hook; only one for all kinds is before it."""
    client = topology.sites["fw"].the_client.namespace

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        made.bind(("enclave0", 0x88B5))
        return made

    hearing = node.namespace.inside(make)
    sending = Wire(client, "enclave0")
    hearing.settimeout(0.3)
    sending.send(ethernet(0x88B5, MARK))
    assert MARK in hearing.recv(2048)
    node.settle("isolated")
    sending.send(ethernet(0x88B5, MARK))
    with pytest.raises(TimeoutError):
        hearing.recv(2048)
    hearing.close()
    sending.close()


def test_f06_arp_is_for_the_way_to_the_controller_only_and_that_works(
    node: FencedNode, topology: Topology
) -> None:
    """With every neighbour forgotten the node finds its gateway again, and asks for nobody else."""
    node.settle("isolated")
    enclave = Wire(topology.sites["fw"].the_client.namespace, "enclave0")
    for family in ("-4", "-6"):
        node.namespace.ip(family, "neigh", "flush", "all")
    for address in topology.controller.uplink:
        assert opens(node.namespace, address, 8443, 3.0)
    for address in (CLIENT4, CLIENT6):
        send_udp(node.namespace, address, 5353)
    assert not enclave.sees(socket.inet_aton(CLIENT4), 0.5)
    asked = Wire(topology.nodes[1].namespace, "uplink0")
    wire = Wire(node.namespace, "uplink0")
    wire.send(ethernet(0x0806, arp(1, node.host.uplink[0], topology.nodes[1].uplink[0])))
    assert not asked.sees(socket.inet_aton(topology.nodes[1].uplink[0]))
    wire.send(ethernet(0x0806, arp(1, node.host.uplink[0], "10.20.1.1")))
    assert asked.sees(socket.inet_aton("10.20.1.1"))
    for each in (enclave, asked, wire):
        each.close()


def test_f07_a_lease_can_be_renewed_on_the_way_to_the_controller_and_nowhere_else(
    node: FencedNode, topology: Topology
) -> None:
    node.settle("isolated")
    discover = ethernet(0x0800, udp4("0.0.0.0", "255.255.255.255", 67, MARK, 68), BROADCAST)
    for interface, witness, seen in (
        ("uplink0", topology.nodes[1], True),
        ("enclave0", topology.sites["fw"].the_client, False),
    ):
        wire, hearing = Wire(node.namespace, interface), Wire(witness.namespace, interface)
        wire.send(discover)
        assert hearing.sees(MARK) == seen
        wire.close()
        hearing.close()


def test_f09_an_interface_that_appears_during_isolation_is_cut_as_well(
    node: FencedNode, extra: list[Namespace]
) -> None:
    node.settle("isolated")
    healing = Healing(node)
    other = Namespace("later")
    extra.append(other)
    node.namespace.ip("link", "add", "late0", "type", "veth", "peer", "name", "near0", "netns", other.name)
    until(lambda: "late0" in node.namespace.ruleset())
    node.namespace.ip("link", "set", "late0", "up")
    other.ip("link", "set", "near0", "up")
    wire, witness = Wire(node.namespace, "late0", bypass=True), Wire(other, "near0")
    wire.send(ethernet(0x88B5, MARK))
    assert not witness.sees(MARK)
    assert healing.drifts == [], "our own following is nobody's doing"
    node.namespace.ip("link", "del", "late0")
    assert node.observe() == []
    wire.close()
    witness.close()


def test_f02_an_interface_taken_out_of_the_cut_is_put_back(node: FencedNode) -> None:
    node.settle("isolated")
    text = node.namespace.run("nft", "list", "table", "netdev", "ringfence_cut").stdout
    node.namespace.nft("delete table netdev ringfence_cut\n" + text.replace("enclave0, ", "", 1))
    assert [drift.key for drift in node.observe()] == ["netdev ringfence_cut interfaces"]
    node.repair(node.observe())
    assert node.observe() == []


def test_f06_guests_on_a_bridge_of_the_node_reach_nobody(node: FencedNode, extra: list[Namespace]) -> None:
    guests = [Namespace("guest1"), Namespace("guest2")]
    extra += guests
    node.namespace.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
    node.namespace.ip("link", "set", "br0", "up")
    # Without br_netfilter what goes from port to port is none of the inet tables' business.
    node.namespace.sysctl(**{"net__bridge__bridge-nf-call-iptables": "0"})
    for number, guest in enumerate(guests, start=1):
        tap = f"tap{number}"
        node.namespace.ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", guest.name)
        node.namespace.ip("link", "set", tap, "master", "br0", "up")
        guest.ip("addr", "add", f"10.66.0.{number}/24", "dev", "eth0")
        guest.ip("link", "set", "eth0", "up")
    hearing = Listener(guests[1], 5000, family=socket.AF_INET)

    def arrives() -> bool:
        send_udp(guests[0], "10.66.0.2", 5000)
        return hearing.received() is not None

    until(arrives)
    try:
        node.settle("isolated")
        hearing.drain()  # what came late while it was open
        assert not arrives()
        node.settle("normal")
        until(arrives)
    finally:
        node.namespace.sysctl(**{"net__bridge__bridge-nf-call-iptables": "1"})
        node.namespace.ip("link", "del", "br0")
        for number in (1, 2):
            node.namespace.ip("link", "del", f"tap{number}")
        hearing.close()


@pytest.mark.parametrize("kind", ["macvlan", "veth"])
def test_f13_a_container_is_cut_off_with_its_node(
    node: FencedNode, topology: Topology, extra: list[Namespace], kind: str
) -> None:
    """By MACVLAN on the node's own interface; by veth, where the node would pass packets on."""
    inside = Namespace("container")
    extra.append(inside)
    client = topology.sites["fw"].the_client.namespace
    if kind == "macvlan":
        node.namespace.ip("link", "add", "mv0", "link", "enclave0", "type", "macvlan", "mode", "bridge")
        node.namespace.ip("link", "set", "mv0", "netns", inside.name)
        inside.batch(["addr add 10.10.1.77/24 dev mv0", "link set mv0 up"])
    else:
        inside_link = ["type", "veth", "peer", "name", "eth0", "netns", inside.name]
        node.namespace.ip("link", "add", "vc0", *inside_link)
        node.namespace.batch(["addr add 10.66.1.1/24 dev vc0", "link set vc0 up"])
        inside.batch(
            ["addr add 10.66.1.2/24 dev eth0", "link set eth0 up", "route add default via 10.66.1.1"]
        )
        node.settle(
            text=BASELINE
            + """
[zones.containers]
interfaces = ["vc0"]
[[forward]]
from = "containers"
to = "enclave"
protocol = "udp"
ports = [5000]
reason = "camera"
"""
        )
    hearing = Listener(client, 5000)

    def arrives() -> bool:
        send_udp(inside, CLIENT4, 5000)
        return hearing.received() is not None

    until(arrives)
    node.settle("isolated")
    assert not arrives()
    if kind == "veth":
        wire, near = Wire(node.namespace, "vc0"), Wire(inside, "eth0")
        wire.send(ethernet(0x88B5, MARK))
        assert not near.sees(MARK), "nor does the node talk to it"
        wire.close()
        near.close()
        node.namespace.ip("link", "del", "vc0")
    hearing.close()


def test_f03_a_foreign_redirection_of_the_controllers_address_leaves_nothing_in_isolation(
    node: FencedNode, topology: Topology
) -> None:
    """Output sees the controller's address, the interface sees where it really goes."""
    outside = topology.outside.uplink[0]
    node.settle("isolated")
    node.namespace.nft(
        f"table ip foreign {{\nchain out {{ type nat hook output priority -100;\n"
        f"ip daddr {topology.controller.uplink[0]} tcp dport 8443 dnat to {outside}:9090\n}}\n}}"
    )
    witness = Wire(topology.outside.namespace, "uplink0")
    assert not opens(node.namespace, topology.controller.uplink[0], 8443)
    ends = socket.inet_aton(node.host.uplink[0]) + socket.inet_aton(
        outside
    )  # others may ask for `outside` by ARP
    assert not witness.sees(ends, 0.1)
    witness.close()


def test_isolation_keeps_a_neighbour_that_the_signed_posture_names_and_finds_it_again(
    node: FencedNode, topology: Topology
) -> None:
    extra_rule = """
[zones.safety]
addresses = ["10.10.1.100/32", "fd10:1::100/128"]
[[isolated.outbound]]
zone = "safety"
protocol = "tcp"
ports = [8080]
reason = "safety controller"
"""
    client = topology.sites["fw"].the_client.namespace
    hearing = [Listener(client, 8080, socket.SOCK_STREAM, family) for family in (socket.AF_INET,)]
    six = Listener(client, 8081, socket.SOCK_STREAM)
    node.settle("isolated", text=BASELINE + extra_rule.replace("[8080]", "[8080, 8081]"))
    for family in ("-4", "-6"):
        node.namespace.ip(family, "neigh", "flush", "all")
    assert opens(node.namespace, CLIENT4, 8080, 3.0)
    assert opens(node.namespace, CLIENT6, 8081, 3.0)
    assert not opens(node.namespace, CLIENT4, 22)
    for each in (*hearing, six):
        each.close()
