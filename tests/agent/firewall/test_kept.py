"""What must never be cut is not cut: open connections that the signed isolated posture names, with packets as witness."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator

import pytest

from agent.firewall.kept import Flow, Kept
from agent.firewall.model import model
from agent.probes import ControllerEndpoint, Surroundings
from agent.responses import isolate
from contract.directive import Response
from tests.agent.firewall.lab import BASELINE, FencedNode, section
from tests.parts.inference import Stream
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

STOP, METER, FRAMES, OTHER = 9090, 7007, 6005, 6006
SAFETY = "10.10.1.12"
"""The second node of the lab plays the safety controller."""

RULES = f"""
[zones.safety]
interfaces = ["enclave0"]
addresses = ["{SAFETY}", "fd10:1::12"]
[[inbound]]
zone = "enclave"
protocol = "tcp"
ports = [9090]
reason = "test"
[[outbound]]
zone = "enclave"
protocol = "any"
reason = "test"
[[isolated.outbound]]
zone = "safety"
protocol = "tcp"
ports = [{STOP}]
reason = "the line must be stopped"
[[isolated.outbound]]
zone = "safety"
protocol = "udp"
ports = [{METER}]
reason = "the line must be stopped"
[[isolated.inbound]]
zone = "safety"
protocol = "tcp"
ports = [9090]
reason = "the line asks"
[[isolated.inbound]]
zone = "safety"
protocol = "udp"
ports = [{FRAMES}]
reason = "the line asks"
"""


class Talk:
    """A datagram there and one back, over a connected socket at the asking end."""

    def __init__(self, asking: Namespace, answering: Namespace, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = answering.socket(family, socket.SOCK_DGRAM)
        self._server.bind((address, port))
        self._client = asking.socket(family, socket.SOCK_DGRAM)
        self._client.connect((address, port))
        self._count = 0

    def alive(self, within_s: float = 0.3) -> bool:
        """Tell whether a datagram and its answer arrive, each within the time."""
        self._count += 1
        for end in (self._server, self._client):
            end.settimeout(within_s)
        said = b"%d" % self._count
        try:
            self._client.send(said)
            heard, sender = self._server.recvfrom(100)
            self._server.sendto(heard, sender)
            return self._client.recv(100) == said
        except OSError:  # also what the kernel says of a socket that was destroyed
            return False

    def close(self) -> None:
        self._server.close()
        self._client.close()


@pytest.fixture
def flows(node: FencedNode, topology: Topology) -> Iterator[tuple[list[Stream | Talk], list[Stream | Talk]]]:
    """Open what is kept and what is not, in both directions, both families, TCP and UDP."""
    here, there = node.host, topology.nodes[1]
    client = topology.sites["fw"].the_client.namespace
    node.settle(text=BASELINE + RULES)
    kept: list[Stream | Talk] = []
    cut: list[Stream | Talk] = []
    for own, other in zip(here.enclave, there.enclave, strict=True):
        kept += [
            Stream(here.namespace, other, port=STOP),
            Stream(there.namespace, own, port=9090),
            Talk(here.namespace, there.namespace, other, METER),
            Talk(there.namespace, here.namespace, own, FRAMES),
        ]
        cut += [
            Stream(here.namespace, other, port=8080),
            Stream(there.namespace, own, port=8080),
            Stream(client, own, port=9090),
            Talk(here.namespace, there.namespace, other, OTHER),
            Talk(client, here.namespace, own, OTHER),
        ]
    yield kept, cut
    for flow in (*kept, *cut):
        flow.close()


def by_response(node: FencedNode) -> None:
    told = node.do(
        lambda: isolate.Response().apply(node.probe.around, Response(name="isolate", reason="test"))
    )
    assert [each.kind for each in told] == ["isolate.applied"]


def by_posture(node: FencedNode) -> None:
    node.settle("isolated")


@pytest.mark.parametrize("isolate_by", [by_response, by_posture])
def test_f07_open_flows_to_what_is_never_cut_live_on_and_all_others_die(
    node: FencedNode,
    topology: Topology,
    flows: tuple[list[Stream | Talk], list[Stream | Talk]],
    isolate_by: Callable[[FencedNode], None],
) -> None:
    kept, cut = flows
    assert all(flow.alive(2.0) for flow in (*kept, *cut))
    isolate_by(node)
    entries = node.namespace.run("conntrack", "-L").stdout
    entries += node.namespace.run("conntrack", "-L", "-f", "ipv6").stdout
    sockets = node.namespace.run("ss", "-Htun", "state", "established").stdout
    assert [flow.alive(2.0) for flow in kept] == [True] * 8
    assert not any(flow.alive() for flow in cut)
    node.settle("isolated")  # the pass that follows
    assert [flow.alive(2.0) for flow in kept] == [True] * 8
    assert not any(flow.alive() for flow in cut)
    for port in (STOP, METER, FRAMES):
        assert entries.count(f" dport={port} ") >= 2, "both families"
    for gone in (f"dport={OTHER} ", "dport=8080 ", topology.sites["fw"].the_client.enclave[0]):
        assert gone not in entries
    for address in (SAFETY, "[fd10:1::12]"):
        assert f"{address}:{STOP} " in sockets and f"{address}:{METER} " in sockets
        assert f"{address}:8080 " not in sockets and f"{address}:{OTHER} " not in sockets


YARD = f"""
[zones.yard]
interfaces = ["yard0"]
addresses = ["0.0.0.0/0"]
[[inbound]]
zone = "yard"
protocol = "udp"
ports = [{FRAMES}]
reason = "test"
"""


def test_f09_what_is_never_cut_is_so_on_its_own_interface_alone(node: FencedNode, topology: Topology) -> None:
    """Somebody in the yard has given itself the safety controller's address. Who isolates loads the cut first: it must do alone."""
    client = topology.sites["fw"].the_client.namespace
    hardware = "02:00:00:00:77:01"
    node.namespace.batch([f"link add yard0 address {hardware} type veth peer name yard0 netns {client.name}"])
    try:
        node.namespace.batch(["addr add 10.77.1.1/24 dev yard0", "link set yard0 up"])
        node.namespace.sysctl(net__ipv4__conf__all__rp_filter="0", net__ipv4__conf__yard0__rp_filter="0")
        client.batch(
            [
                f"addr add {SAFETY}/32 dev yard0",
                "link set yard0 up",
                "route add 10.77.1.1/32 dev yard0",
                f"neigh add 10.77.1.1 lladdr {hardware} dev yard0",
            ]
        )
        node.settle(text=BASELINE + RULES + YARD)
        frames, forger = (each.socket(kind=socket.SOCK_DGRAM) for each in (node.namespace, client))
        with frames, forger:
            frames.bind(("0.0.0.0", FRAMES))
            frames.settimeout(0.3)
            forger.bind((SAFETY, 0))

            def arrives() -> bool:
                forger.sendto(b"frame", ("10.77.1.1", FRAMES))
                try:
                    return frames.recvfrom(100)[1][0] == SAFETY
                except TimeoutError:
                    return False

            assert arrives(), "the rules let the yard in"
            by_response(node)
            assert not arrives()
    finally:
        node.namespace.batch(["link del yard0"])


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def kept_by(text: str, names: dict[str, list[str]] | None = None) -> Callable[..., bool]:
    """Return what tells whether a flow to an address is spared; everything is reached by enclave0."""
    around = Surroundings(host=None, controller=(ControllerEndpoint("192.0.2.10", 8443),))  # type: ignore[arg-type]
    kept = Kept(model(section(text), "isolated", around))

    def spared(protocol: int, address: str, remote: int, local: int, begun: str = "unknown") -> bool:
        return kept.spares(Flow(protocol, local, packed(address), remote, begun), lambda _: "enclave0")  # type: ignore[arg-type]

    return spared


TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP


def test_f07_a_flow_is_spared_by_zone_direction_protocol_and_port_and_by_nothing_less() -> None:
    spared = kept_by(BASELINE + RULES)
    assert spared(TCP, SAFETY, STOP, 40000) and spared(UDP, SAFETY, METER, 40000)
    assert spared(TCP, SAFETY, 40000, 9090, "there") and spared(UDP, SAFETY, 40000, FRAMES)
    assert spared(TCP, "192.0.2.10", 8443, 40000, "here"), "the controller"
    assert not spared(TCP, "192.0.2.10", 8443, 40000, "there"), "which asks for nothing"
    assert not spared(UDP, "192.0.2.10", 8443, 40000) and not spared(TCP, "192.0.2.11", 8443, 40000)
    assert not spared(UDP, SAFETY, STOP, 40000) and not spared(TCP, SAFETY, METER, 40000)
    assert not spared(TCP, "10.10.1.13", STOP, 40000) and not spared(TCP, "fd10:1::13", STOP, 40000)
    assert not spared(UDP, SAFETY, METER, 40000, "there"), "their own port proves nothing"
    assert not spared(UDP, SAFETY, 40000, FRAMES, "here")
    assert not spared(ICMP, SAFETY, 0, 0)


def test_f07_prefixes_ranges_pings_and_interfaces_are_kept_as_the_rules_have_them() -> None:
    spared = kept_by(
        """
        [zones.cell]
        addresses = ["10.10.2.0/24", "10.10.4.0/23", "fd10:2::/64"]
        [zones.bus]
        interfaces = ["bus0"]
        [zones.line]
        interfaces = ["enclave0"]
        [[isolated.outbound]]
        zone = "cell"
        protocol = "udp"
        ports = ["7000-7009"]
        reason = "test"
        [[isolated.outbound]]
        zone = "cell"
        protocol = "icmp"
        reason = "test"
        [[isolated.inbound]]
        zone = "bus"
        protocol = "any"
        reason = "test"
        [[isolated.outbound]]
        zone = "line"
        protocol = "tcp"
        ports = [102]
        reason = "test"
        """
    )
    for inside in ("10.10.2.0", "10.10.2.255", "10.10.5.255", "fd10:2::ffff"):
        assert spared(UDP, inside, 7009, 1) and spared(ICMP, inside, 0, 0)
    for outside in ("10.10.1.255", "10.10.3.0", "10.10.6.0", "fd10:3::"):
        assert not spared(UDP, outside, 7009, 1) and not spared(ICMP, outside, 0, 0)
    assert not spared(UDP, "10.10.2.1", 7010, 1)
    assert spared(TCP, "198.51.100.1", 102, 1), "by its interface alone"
    assert not spared(TCP, "198.51.100.1", 80, 1), "what bus0 alone may ask for, and it is another interface"
