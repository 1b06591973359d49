"""What passes and what does not, asked of packets; the `nft` and `conntrack` programs are the witnesses."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from agent.firewall.events import Events
from agent.probes import Surroundings
from agent.responses import fence, isolate
from contract.directive import Response
from tests.agent.firewall.lab import BASELINE, FencedNode, Listener, opens, send_udp, until
from tests.parts.inference import Stream, infer
from tests.parts.topology import Topology


def client_of(topology: Topology):  # type: ignore[no-untyped-def]
    return topology.sites["fw"].the_client.namespace


def test_what_the_baseline_names_passes_in_both_families(node: FencedNode, topology: Topology) -> None:
    for address in node.host.enclave:
        assert infer(client_of(topology), address)
        client_of(topology).run("ping", "-c1", "-W1", address)
    for address in topology.controller.uplink:
        assert opens(node.namespace, address, 8443)


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_f06_what_the_baseline_does_not_name_dies_in_both_families(
    node: FencedNode, topology: Topology, version: int
) -> None:
    client = client_of(topology)
    assert not opens(client, node.host.enclave[version], 9090), "another port of the enclave"
    assert not opens(topology.outside.namespace, node.host.uplink[version], 8080), (
        "the right port, from outside"
    )
    assert not opens(topology.controller.namespace, node.host.uplink[version], 8080), (
        "the controller, inwards"
    )
    assert not opens(node.namespace, topology.outside.uplink[version], 8080), "egress"
    assert not opens(node.namespace, topology.outside.uplink[version], 8443), "another host's controller port"
    assert not opens(node.namespace, topology.controller.uplink[version], 8080), (
        "another port of the controller"
    )
    assert not opens(client, topology.outside.uplink[version], 8080), "through the node"
    assert client.run("ping", "-c1", "-W1", topology.outside.uplink[version], check=False).returncode != 0
    listener = Listener(node.namespace, 7000)
    send_udp(client, node.host.enclave[version], 7000)
    assert listener.received() is None, "UDP to a port that is not named"
    listener.close()


def test_udp_in_a_named_range_passes_and_its_answers_too(node: FencedNode, topology: Topology) -> None:
    listener = Listener(node.namespace, 6005)
    with client_of(topology).socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        asking.sendto(b"frame", (node.host.enclave[0], 6005))
        data, sender = listener.socket.recvfrom(100)
        listener.socket.sendto(data, sender)
        assert asking.recv(100) == b"frame"
    listener.close()


def test_forwarding_passes_only_where_named_and_answers_come_back(
    node: FencedNode, topology: Topology
) -> None:
    client = client_of(topology)
    rule = '[[forward]]\nfrom = "enclave"\nto = "uplink"\nprotocol = "tcp"\nports = [8080]\nreason = "test"\n'
    node.settle(text=BASELINE + rule)
    for address in topology.outside.uplink:
        assert opens(client, address, 8080)
        assert not opens(client, address, 9090)


def test_f08_a_baseline_without_any_rule_keeps_the_way_to_the_controller(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text="")
    for version in (0, 1):
        assert opens(node.namespace, topology.controller.uplink[version], 8443)
        assert not opens(node.namespace, topology.controller.uplink[version], 8080)
        assert not opens(client_of(topology), node.host.enclave[version], 8080)


def test_f08_the_controller_is_kept_in_every_posture_and_fencing_it_does_nothing(
    node: FencedNode, topology: Topology
) -> None:
    for posture in ("normal", "isolated", "maintenance"):
        node.settle(posture, fenced=topology.controller.uplink)  # type: ignore[arg-type]
        for address in topology.controller.uplink:
            assert opens(node.namespace, address, 8443), posture


def test_a_wrong_interface_for_the_controller_closes_the_way_also_for_open_connections(
    node: FencedNode, topology: Topology
) -> None:
    stream = Stream(node.namespace, topology.controller.uplink[0], port=8443)
    assert stream.alive()
    node.settle(text=BASELINE.replace("uplink0", "uplink9"))
    assert not opens(node.namespace, topology.controller.uplink[0], 8443)
    assert not stream.alive(1.0)
    stream.close()
    node.settle(text=BASELINE)
    assert opens(node.namespace, topology.controller.uplink[0], 8443)


def test_a_flow_that_both_baselines_allow_goes_on_when_the_baseline_changes(
    node: FencedNode, topology: Topology
) -> None:
    """The server sends and the client only listens: the answers must pass on their own under the new rules."""
    stream = Stream(client_of(topology), node.host.enclave[1])
    for text in (BASELINE + "# changed\n", BASELINE.replace("[53, 123]", "[53]"), BASELINE):
        node.settle(text=text)
        assert stream.alive()
    stream.close()


def test_a_flow_that_the_new_baseline_does_not_name_ends_with_the_old(
    node: FencedNode, topology: Topology
) -> None:
    stream = Stream(client_of(topology), node.host.enclave[0])
    assert stream.alive()
    node.settle(text=BASELINE.replace("[8080]", "[8081]"))
    assert not stream.alive(1.0)
    stream.close()


TAMPERINGS = {
    "gone": "delete table inet ringfence; delete table inet ringfence_guard",
    "open": "insert rule inet ringfence input accept; insert rule inet ringfence output accept; "
    "delete table inet ringfence_guard",
    "as if by a rule": "insert rule inet ringfence input goto allow; insert rule inet ringfence output goto allow; "
    "delete table inet ringfence_guard",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_f04_a_flow_opened_while_the_rules_were_tampered_with_dies_with_their_return(
    node: FencedNode, topology: Topology, tampering: str
) -> None:
    """With the table gone the kernel tracks nothing and the flow returns as new; with it open, as established."""
    client = client_of(topology)
    allowed = Stream(client, node.host.enclave[0])
    node.namespace.run("nft", TAMPERINGS[tampering])
    inward = Stream(client, node.host.enclave[0], port=9090)
    outward = Stream(node.namespace, topology.outside.uplink[0], port=9090)
    assert inward.alive() and outward.alive() and allowed.alive()
    node.repair(node.observe())
    node.namespace.run("nft", "delete table inet ringfence_guard")  # by the rules alone
    assert not inward.alive(1.0)
    assert not outward.alive(1.0)
    assert allowed.alive()
    for stream in (allowed, inward, outward):
        stream.close()


def test_f04_a_flow_let_in_by_rules_that_were_gone_before_the_next_look_dies_too(
    node: FencedNode, topology: Topology
) -> None:
    """No difference is left to be repaired: that others have committed to our tables is enough."""
    allowed = Stream(client_of(topology), node.host.enclave[0])
    events = node.namespace.inside(lambda: Events(lambda culprit: culprit and node.netfilter.note(culprit)))
    try:
        node.namespace.nft("insert rule inet ringfence input goto allow")
        crept = Stream(client_of(topology), node.host.enclave[0], port=9090)
        assert crept.alive()
        node.namespace.nft("delete rule inet ringfence input handle " + _first_rule(node))
        until(lambda: len(node.netfilter._noted) >= 2)
    finally:
        events.close()
    assert node.ours() == []
    assert crept.alive()
    node.do(lambda: node.probe.settle(time.time()))
    assert not crept.alive(1.0)
    assert allowed.alive()
    for stream in (allowed, crept):
        stream.close()


def _first_rule(node: FencedNode) -> str:
    shown = node.namespace.run("nft", "-a", "list", "chain", "inet", "ringfence", "input").stdout
    return next(line for line in shown.splitlines() if "goto allow" in line).rpartition(" ")[2]


def test_f07_isolation_ends_open_tcp_and_udp_flows_and_keeps_the_controller(
    node: FencedNode, topology: Topology
) -> None:
    client = client_of(topology)
    to_controller = Stream(node.namespace, topology.controller.uplink[0], port=8443)
    streams = [Stream(client, address) for address in node.host.enclave]
    listener = Listener(node.namespace, 6000)
    talking = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    talking.connect((node.host.enclave[0], 6000))
    talking.send(b"one")
    assert listener.received() == b"one"
    assert all(stream.alive() for stream in streams)

    node.settle("isolated")

    assert not any(stream.alive(0.5) for stream in streams)
    talking.send(b"two")
    assert listener.received() is None
    assert to_controller.alive()
    assert opens(node.namespace, topology.controller.uplink[1], 8443)
    entries = node.namespace.run("conntrack", "-L", "-o", "extended").stdout.splitlines()
    assert [line for line in entries if "10.10.1.100" in line or "dport=6000" in line] == []
    established = node.namespace.run("ss", "-Htn", "state", "established").stdout
    assert node.host.enclave[0] not in established and f"{topology.controller.uplink[0]}:8443" in established
    assert "inet ringfence_cut" in node.namespace.ruleset()
    for each in (to_controller, *streams, listener, talking):
        each.close()


def test_f07_the_expected_connection_of_a_helper_is_not_let_in(node: FencedNode, topology: Topology) -> None:
    """The TFTP helper expects an answer from a port of the server's choice: RELATED, and named by no rule."""
    client = client_of(topology)
    node.settle(text=BASELINE.replace("[5353,", "[69, 5353,"))
    node.namespace.nft(
        """
        table ip foreign {
            ct helper tftp { type "tftp" protocol udp; }
            chain pre { type filter hook prerouting priority -150;
                udp dport 69 ct helper set "tftp"
            }
        }
        """
    )
    server = Listener(node.namespace, 69)
    asking = Listener(client, 0)
    port = asking.socket.getsockname()[1]
    asking.socket.sendto(b"\0\1file\0octet\0", (f"::ffff:{node.host.enclave[0]}", 69))
    assert server.received() is not None
    expected = node.namespace.run("conntrack", "-L", "expect").stdout
    assert f"dport={port}" in expected, "the helper is at work"
    send_udp(node.namespace, "10.10.1.100", port, source_port=5555)
    assert asking.received() is None
    server.close()
    asking.close()


def test_f07_isolation_by_the_response_is_at_once_and_survives_the_pass_that_follows(
    node: FencedNode, topology: Topology
) -> None:
    stream = Stream(client_of(topology), node.host.enclave[0])
    response = isolate.Response()
    request = Response(name="isolate", reason="evidence broken")
    assert response.wanted(request).posture == "isolated"
    begun = time.monotonic()
    told = node.do(lambda: response.apply(node.probe.around, request))
    took_s = time.monotonic() - begun
    assert [each.kind for each in told] == ["isolate.applied"]
    assert took_s < 5
    assert not stream.alive(0.5)
    assert not opens(client_of(topology), node.host.enclave[1], 8080)
    node.settle("isolated")
    assert not stream.alive(0.3)
    stream.close()


def test_isolation_keeps_what_the_signed_posture_names(node: FencedNode, topology: Topology) -> None:
    extra = (
        '[[isolated.inbound]]\nzone = "enclave"\nprotocol = "tcp"\nports = [9090]\nreason = "safety stop"\n'
    )
    node.settle("isolated", text=BASELINE + extra)
    for address in node.host.enclave:
        assert opens(client_of(topology), address, 9090)
        assert not opens(client_of(topology), address, 8080)
    node.settle("normal")
    for address in node.host.enclave:
        assert not opens(client_of(topology), address, 9090)
        assert opens(client_of(topology), address, 8080)


def test_a_fenced_neighbour_is_cut_off_in_the_middle_of_a_flow(node: FencedNode, topology: Topology) -> None:
    neighbour = topology.nodes[1]
    streams = [Stream(neighbour.namespace, address) for address in node.host.enclave]
    request = Response(name="fence", addresses=[neighbour.enclave[0], neighbour.enclave[1], "10.10.1.13"])
    wanted = fence.Response().wanted(request)
    node.probe.around = Surroundings(
        host=node.probe.around.host,
        netfilter=node.netfilter,
        controller=node.probe.around.controller,
        fenced=wanted.fenced,
    )
    assert [each.kind for each in node.do(lambda: fence.Response().apply(node.probe.around, request))] == [
        "fence.applied"
    ]
    assert not any(stream.alive(0.5) for stream in streams)
    assert node.ours() == [], "what the response added is what the rules want"
    assert infer(client_of(topology), node.host.enclave[0]), "the others go on"
    assert "10.10.1.13" in node.namespace.ruleset(), "adjoining addresses are not merged away"
    node.settle("normal")
    assert all(infer(neighbour.namespace, address) for address in node.host.enclave)
    for stream in streams:
        stream.close()


def test_f03_no_packet_passes_a_flood_while_rules_are_replaced(node: FencedNode, topology: Topology) -> None:
    client = client_of(topology)
    listener = Listener(node.namespace, 7001)
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.connect((node.host.enclave[0], 7001))
            while not stop.is_set():
                for _ in range(64):
                    try:
                        sending.send(b"x")
                    except ConnectionRefusedError:
                        pass
                sent += 64

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        texts = [node.probe.text()]
        node.settle("maintenance")
        texts.append(node.probe.text())
        for number in range(60):
            node.do(lambda n=number: node.netfilter.load(texts[n % 2]))  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert sent > 2000
    assert listener.drain() == 0
    listener.close()


def test_f03_redirection_by_a_foreign_table_does_not_open_a_port(
    node: FencedNode, topology: Topology
) -> None:
    """A NAT rule from 8080, which is allowed, to 9090, which is not; and the other way round."""
    client = client_of(topology)
    node.namespace.nft(
        "table ip foreign {\nchain pre {\ntype nat hook prerouting priority -100;\n"
        "tcp dport 9091 redirect to :8080\ntcp dport 8080 redirect to :9090\n}\n}\n"
    )
    assert not opens(client, node.host.enclave[0], 9091)
    assert not opens(client, node.host.enclave[0], 8080)
    until(lambda: any(d.key == "foreign:ip foreign pre" for d in node.observe()))


def test_f09_an_interface_that_appears_later_is_fenced_from_its_first_packet(
    node: FencedNode, topology: Topology
) -> None:
    """Rules name interfaces by name: one that no zone names is closed, one that a zone names is served at once."""
    later = '[zones.later]\ninterfaces = ["later0"]\n[[inbound]]\nzone = "later"\nprotocol = "tcp"\nports = [9090]\n'
    # Without a way to the controller by name everybody's ARP is heard: the rules alone are asked here.
    base = BASELINE.replace('[controller]\ninterface = "uplink0"\n', "")
    node.settle(text=base + later + 'reason = "test"\n')
    client = client_of(topology)
    for number, name in enumerate(("other0", "later0"), start=1):
        node.namespace.batch([f"link add {name} type veth peer name {name} netns {client.name}"])
        for namespace, host in ((node.namespace, 1), (client, 2)):
            namespace.batch([f"link set {name} up", f"addr add 10.77.{number}.{host}/24 dev {name}"])
    try:
        assert not opens(client, "10.77.1.1", 9090)
        assert opens(client, "10.77.2.1", 9090)
        assert not opens(client, "10.77.2.1", 8080)
        assert node.observe() == []
    finally:
        node.namespace.batch(["link del other0", "link del later0"])
