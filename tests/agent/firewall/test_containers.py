"""Containers behind the fence: netavark, CNI plugins and dockerd write their own rules, packets are the witnesses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Listener, opens, section, send_udp, until
from tests.parts.containers import DOCKER, Cni, Docker, Network, Podman
from tests.parts.debs import unpacked
from tests.parts.inference import Stream
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

EGRESS = '[[containers.egress]]\nzone = "uplink"\nprotocol = "tcp"\nports = [8080]\nreason = "test"\n'
PUBLISHED = '[[containers.published]]\nzone = "enclave"\nprotocol = "tcp"\nports = [8088]\nreason = "test"\n'
DNS = '[[containers.node]]\nprotocol = "udp"\nports = [53]\nreason = "names"\n'


@pytest.fixture(params=[Podman, Cni], ids=["podman", "cni"])
def network(request: pytest.FixtureRequest, node: FencedNode, tmp_path: Path) -> Iterator[Network]:
    made = request.param(node.namespace, tmp_path)
    container = Namespace("container")
    try:
        joined = made.join(container)
        joined.serve(80, 81, 8080)
        for port in (80, 81):
            until(lambda p=port: opens(container, joined.addresses[0], p), 10)  # type: ignore[misc]
        yield joined
    finally:
        container.remove()
        made.close()


def client_of(topology: Topology) -> Namespace:
    return topology.sites["fw"].the_client.namespace


def test_f13_a_published_port_passes_only_where_the_baseline_names_it_in_both_families(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    client = client_of(topology)
    node.settle(text=BASELINE + network.section())
    for address in node.host.enclave:
        assert not opens(client, address, 8088), "published by the manager, not named"
    node.settle(text=BASELINE + network.section(PUBLISHED))
    assert node.observe() == [], "the manager's own tables are no drift"
    for version in (0, 1):
        assert opens(client, node.host.enclave[version], 8088)
        assert not opens(client, node.host.enclave[version], 8089), "published, not named"
        assert not opens(topology.outside.namespace, node.host.uplink[version], 8088), "from another zone"


def test_f13_without_the_section_no_container_passes(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE)
    for version in (0, 1):
        assert not opens(client_of(topology), node.host.enclave[version], 8088)
        assert not opens(network.namespace, topology.outside.uplink[version], 8080)
        assert not opens(network.namespace, network.gateways[version], 8080), "the node itself"
    # By iptables' table or, as netavark on Debian 13, in one of its own.
    foreign = ("foreign:ip nat", "foreign:inet netavark")
    assert any(drift.key.startswith(foreign) for drift in node.observe())


def test_f13_a_named_port_leads_to_no_other_port_than_the_named_one(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    right = PUBLISHED.replace("reason", "container_port = 80\nreason")
    node.settle(text=BASELINE + network.section(right))
    assert opens(client_of(topology), node.host.enclave[0], 8088)
    node.settle(text=BASELINE + network.section(right.replace("= 80\n", "= 81\n")))
    assert not opens(client_of(topology), node.host.enclave[0], 8088)


def test_f13_a_container_is_not_reached_at_its_own_address(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    """The curious client has a route through the node; the port is the one that is named."""
    text = PUBLISHED.replace("[8088]", '[80, "8080-8099"]')
    node.settle(text=BASELINE + network.section(text))
    for address in network.addresses:
        assert not opens(client_of(topology), address, 80)


def test_f13_egress_of_containers_passes_only_where_named(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section())
    for address in topology.outside.uplink:
        assert not opens(network.namespace, address, 8080)
    node.settle(text=BASELINE + network.section(EGRESS))
    for address in topology.outside.uplink:
        assert opens(network.namespace, address, 8080)
        assert not opens(network.namespace, address, 9090), "another port"
    for version in (0, 1):
        assert not opens(network.namespace, client_address(topology)[version], 8080), "another zone"
        assert not opens(network.namespace, topology.controller.uplink[version], 8443), (
            "only the node's agent"
        )


def client_address(topology: Topology) -> tuple[str, str]:
    return topology.sites["fw"].the_client.enclave


def test_f13_a_made_up_source_address_does_not_leave(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section(EGRESS.replace('"tcp"', '"udp"')))
    node.namespace.sysctl(net__ipv4__conf__all__rp_filter="0")
    listener = Listener(topology.outside.namespace, 8080)
    try:
        send_udp(network.namespace, topology.outside.uplink[0], 8080)
        assert listener.received() is not None
        network.namespace.ip("addr", "add", "198.51.100.7/32", "dev", "lo")
        with network.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind(("198.51.100.7", 0))
            sending.sendto(b"x", (topology.outside.uplink[0], 8080))
        assert listener.received() is None
    finally:
        listener.close()


def test_f13_the_node_is_closed_to_containers_but_for_what_is_named(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section(DNS))
    for version in (0, 1):
        named, other = Listener(node.namespace, 53), Listener(node.namespace, 5353)
        send_udp(network.namespace, network.gateways[version], 53)
        send_udp(network.namespace, network.gateways[version], 5353)
        send_udp(network.namespace, node.host.enclave[version], 5353)
        assert named.received() is not None
        assert other.received() is None, "a zone's rule is not for containers"
        named.close(), other.close()
        assert not opens(network.namespace, network.gateways[version], 8080)
        assert not opens(network.namespace, node.host.enclave[version], 8080)


def test_f13_the_node_reaches_containers_only_where_named_also_by_a_published_port(
    node: FencedNode, network: Network
) -> None:
    node.settle(text=BASELINE + network.section())
    assert not opens(node.namespace, network.addresses[0], 80)
    assert not opens(node.namespace, node.host.enclave[0], 8088)
    named = '[[containers.from_node]]\nprotocol = "tcp"\nports = [80]\nreason = "health"\n'
    node.settle(text=BASELINE + network.section(named))
    assert opens(node.namespace, node.host.enclave[0], 8088), "DNAT of the node's own, by its real port"
    for address in network.addresses:
        assert opens(node.namespace, address, 80)
        assert not opens(node.namespace, address, 81)


def test_f07_an_open_flow_of_a_container_ends_with_isolation(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section(PUBLISHED + EGRESS))
    streams = [
        Stream(client_of(topology), node.host.enclave[0], port=8088),
        Stream(network.namespace, topology.outside.uplink[1], port=8080),
    ]
    assert all(stream.alive() for stream in streams)
    node.settle("isolated")
    assert not any(stream.alive(1.0) for stream in streams)
    for around in (
        "inet ringfence_cut",
        "inet ringfence_guard",
        "netdev ringfence_cut",
        "bridge ringfence_cut",
    ):
        node.namespace.run("nft", f"delete table {around}")
    assert not opens(network.namespace, topology.outside.uplink[0], 8080), (
        "also by the rules between cut and guard"
    )
    for stream in streams:
        stream.close()


def test_f13_a_flow_that_the_new_baseline_does_not_name_ends(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section(PUBLISHED + EGRESS))
    kept = Stream(client_of(topology), node.host.enclave[1], port=8088)
    ended = Stream(network.namespace, topology.outside.uplink[0], port=8080)
    assert kept.alive()
    assert ended.alive()
    node.settle(text=BASELINE + network.section(PUBLISHED))
    assert kept.alive(), "judged again by what it asked for, after DNAT"
    assert not ended.alive(1.0)
    kept.close(), ended.close()


@pytest.mark.parametrize(
    "rule",
    [
        "PREROUTING -p tcp --dport 9999 -j DNAT --to-destination 10.20.99.2:8080",
        "PREROUTING -p tcp --dport 9999 -j DNAT --to-destination 10.20.99.2-10.20.99.9",
        "PREROUTING -p tcp --dport 9999 -j REDIRECT --to-ports 8080",
        "POSTROUTING -p tcp --dport 9999 -j SNAT --to-source 10.20.1.99",
    ],
)
def test_f11_other_rewriting_in_a_managers_table_is_drift_with_its_culprit(
    node: FencedNode, topology: Topology, network: Network, rule: str
) -> None:
    node.settle(text=BASELINE + network.section(PUBLISHED))
    assert node.observe() == []
    node.namespace.run("iptables", "-t", "nat", "-I", *rule.split())
    chain = rule.partition(" ")[0]
    (drift,) = node.observe()
    assert drift.key == f"foreign:ip nat {chain}"
    assert "rewrites" in drift.found
    node.settle(text='foreign = "remove"\n' + BASELINE + network.section(PUBLISHED))
    node.repair(node.observe())
    assert opens(client_of(topology), node.host.enclave[0], 8088), "a manager's table is never deleted"
    assert not opens(client_of(topology), node.host.enclave[0], 9999)


def test_f11_the_managers_connection_mark_is_no_way_in(
    node: FencedNode, topology: Topology, network: Network
) -> None:
    node.settle(text=BASELINE + network.section())
    node.namespace.run(
        "iptables", "-t", "mangle", "-I", "PREROUTING", "-j", "CONNMARK", "--set-mark", "0xffff0000"
    )
    assert {drift.key for drift in node.observe()} == {"foreign:ip mangle PREROUTING"}
    assert not opens(client_of(topology), node.host.enclave[0], 8088)


def test_f13_two_containers_of_one_bridge_meet_only_where_named(node: FencedNode, tmp_path: Path) -> None:
    made = Podman(node.namespace, tmp_path)
    first, second = Namespace("first"), Namespace("second")
    try:
        asked = made.join(first)
        made.join(second, address="3", letter="b", ports=False)
        asked.serve(80, 81)
        until(lambda: opens(first, asked.addresses[0], 81), 10)
        node.settle(text=BASELINE + asked.section())
        for address in asked.addresses:
            assert not opens(second, address, 80)
        named = '[[containers.between]]\nprotocol = "tcp"\nports = [80]\nreason = "test"\n'
        node.settle(text=BASELINE + asked.section(named))
        for address in asked.addresses:
            assert opens(second, address, 80)
            assert not opens(second, address, 81)
        assert opens(second, node.host.enclave[0], 8088), "by the published port, judged by the real one"
        assert not opens(second, node.host.enclave[0], 8089)
    finally:
        first.remove(), second.remove()
        made.close()


def test_f11_containers_that_come_and_go_are_neither_drift_nor_contest(
    node: FencedNode, topology: Topology, tmp_path: Path
) -> None:
    made = Podman(node.namespace, tmp_path)
    container = Namespace("container")
    try:
        joined = made.join(container)
        node.settle(text=BASELINE + joined.section(PUBLISHED))
        healing = Healing(node)
        for _ in range(5):
            made.leave(container)
            made.join(container)
        joined.serve(80)
        until(lambda: opens(client_of(topology), node.host.enclave[0], 8088), 10)
        until(healing._wakes.empty)
        assert node.observe() == []
        assert healing.drifts == []
        assert healing.notices == []
    finally:
        container.remove()
        made.close()


def test_f13_an_interface_that_sends_past_the_rules_from_another_namespace_is_told(
    node: FencedNode, topology: Topology
) -> None:
    """The packet is the witness that it passes; the drift, that somebody hears of it."""
    container = Namespace("container")
    other = Namespace("unrelated")
    try:
        other.ip("link", "add", "br7", "type", "bridge")
        other.ip("link", "add", "mv7", "link", "br7", "type", "macvlan", "mode", "bridge")
        node.settle(text=BASELINE)
        node.namespace.ip("link", "add", "mv0", "link", "uplink0", "type", "macvlan", "mode", "bridge")
        node.namespace.ip("link", "set", "mv0", "netns", container.name)
        container.ip("addr", "add", "10.20.1.77/24", "dev", "mv0")
        container.ip("link", "set", "mv0", "up")
        container.ip("route", "add", "default", "via", "10.20.1.1")
        until(lambda: opens(container, topology.outside.uplink[0], 8080), 5)
        node.settle_text(BASELINE)
        (drift,) = node.observe()
        assert drift.key == f"netns:/run/netns/{container.name} mv0"
        assert (drift.wanted, drift.found) == ("absent", "macvlan of uplink0")
        parents = '[containers]\nmanager = "cni"\ninterfaces = ["cni0"]\naddresses = ["10.22.0.0/16"]\n'
        node.settle_text(BASELINE + parents + 'parents = ["uplink0"]\nreason = "test"\n')
        assert not any(drift.key.startswith("netns:") for drift in node.observe())
    finally:
        container.remove(), other.remove()


def test_f13_a_bridge_whose_packets_are_not_shown_to_the_rules_is_told(
    node: FencedNode, network: Network
) -> None:
    node.settle(text=BASELINE + network.section())
    assert node.observe() == []
    node.namespace.sysctl(**{"net__bridge__bridge-nf-call-ip6tables": "0"})
    try:
        node.settle_text(BASELINE + network.section(DNS))
        found = [(drift.key, drift.found) for drift in node.observe() if drift.key.startswith("net.")]
        assert found == [("net.bridge.bridge-nf-call-ip6tables", "0")]
    finally:
        node.namespace.sysctl(**{"net__bridge__bridge-nf-call-ip6tables": "1"})


@pytest.fixture
def docker(node: FencedNode) -> Iterator[Docker]:
    try:
        programs = unpacked(*DOCKER)
    except RuntimeError as error:
        pytest.skip(f"docker cannot be had: {error}")
    made = Docker(node.namespace, programs)
    yield made
    made.close()


def test_f11_a_docker_daemon_lives_behind_the_fence_and_its_restart_changes_nothing(
    node: FencedNode, topology: Topology, docker: Docker
) -> None:
    text = (
        '[containers]\nmanager = "docker"\ninterfaces = ["docker0", "br-*"]\n'
        'addresses = ["172.17.0.0/16", "fd17::/64"]\nreason = "test"\n' + PUBLISHED + EGRESS
    )
    client = client_of(topology)
    node.settle(text=BASELINE + text)
    healing = Healing(node)
    try:
        docker.start()
        docker.run()
        for address in node.host.enclave:
            until(lambda a=address: opens(client, a, 8088), 10)  # type: ignore[misc]
            assert not opens(client, address, 8089), "published by docker, not named"
        for address in topology.outside.uplink:
            assert docker.opens(address, 8080)
            assert not docker.opens(address, 9090)
        docker.restart_container()
        until(lambda: opens(client, node.host.enclave[0], 8088), 10)
        docker.stop()
        docker.start()
        assert not opens(client, node.host.enclave[0], 8089)
        assert node.observe() == []
        assert healing.drifts == [], "nothing of ours was touched"
    finally:
        healing.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('interfaces = ["*"]', "interfaces"),
        ('interfaces = ["e*"]', "interfaces"),
        ('interfaces = ["br*x"]', "interfaces"),
        ('interfaces = ["en*"]', "network of containers"),
        ('interfaces = ["up*"]', "way to the controller|network of containers"),
        ('interfaces = ["docker0\\" accept #"]', "interfaces"),
        ('addresses = ["0.0.0.0/0"]', "not everything"),
        ('addresses = ["172.17.0.1/16"]', "host bits"),
        ("addresses = []", "addresses"),
        ('manager = "kubernetes"', "manager"),
        ('reason = ""', "reason"),
    ],
)
def test_f10_a_section_of_containers_that_could_mean_more_is_refused(wrong: str, message: str) -> None:
    right = {
        "manager": 'manager = "docker"',
        "interfaces": 'interfaces = ["docker0"]',
        "addresses": 'addresses = ["172.17.0.0/16"]',
        "reason": 'reason = "test"',
    }
    section(BASELINE + "[containers]\n" + "\n".join(right.values()))
    right[wrong.partition(" ")[0]] = wrong
    with pytest.raises(ValueError, match=message):
        section(BASELINE + "[containers]\n" + "\n".join(right.values()))
