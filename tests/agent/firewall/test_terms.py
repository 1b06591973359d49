"""Rules on terms: limits for each client, and rules for one user or unit. Asked of packets; `nft` is the witness."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cgroups import CgroupTree
from agent.firewall import limit
from agent.firewall.section import InboundRule, OutboundRule
from agent.probes.firewall import Probe
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Listener, opens, section, until
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

API = 'ports = [8080]\nreason = "inference API"\n'
OUT = '[[outbound]]\nzone = "uplink"\nprotocol = "tcp"\nports = [8080]\nreason = "queue"\n'


def limited(terms: str) -> str:
    assert API in BASELINE
    return BASELINE.replace(API, API + terms)


def client_of(topology: Topology) -> Namespace:
    return topology.sites["fw"].the_client.namespace


def opened(namespace: Namespace, address: str, count: int) -> list[socket.socket]:
    """Return the connections out of `count` tries that came about."""
    held = []
    for _ in range(count):
        made = namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        made.settimeout(0.15)
        try:
            made.connect((address, 8080))
            held.append(made)
        except OSError:
            made.close()
    return held


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_a_client_may_hold_so_many_connections_and_another_client_as_many(
    node: FencedNode, topology: Topology, version: int
) -> None:
    node.settle(text=limited("connections = 3\n"))
    address = node.host.enclave[version]
    held = opened(client_of(topology), address, 6)
    assert len(held) == 3
    others = opened(topology.nodes[1].namespace, address, 6)
    assert len(others) == 3
    assert node.ours() == [], "what packets put into the set is no drift"
    held.pop().close()
    until(lambda: opens(client_of(topology), address, 8080))
    for each in held + others:
        each.close()
    assert "in_enclave_1_over_connections" in node.namespace.ruleset()


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_a_client_may_begin_so_many_connections_in_a_time(
    node: FencedNode, topology: Topology, version: int
) -> None:
    node.settle(text=limited('rate = "1/minute"\nburst = 4\n'))
    address = node.host.enclave[version]
    for namespace in (client_of(topology), topology.nodes[1].namespace):
        held = opened(namespace, address, 8)
        assert 4 <= len(held) <= 5
        for each in held:
            each.close()
    assert node.ours() == []
    listed = node.namespace.run("nft", "list", "counter", "inet", "ringfence", "in_enclave_1_over_rate")
    assert " packets 0 " not in listed.stdout.replace("\n", " ")


def test_clients_of_one_network_count_as_one_where_the_rule_says_so(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text=limited('connections = 3\nclient = "network"\n'))
    held = opened(client_of(topology), node.host.enclave[0], 2)
    held += opened(topology.nodes[1].namespace, node.host.enclave[0], 4)
    assert len(held) == 3
    for each in held:
        each.close()


def test_open_connections_survive_a_change_of_rules_although_they_are_counted_anew(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text=limited('connections = 3\nrate = "1/hour"\nburst = 3\n'))
    held = opened(client_of(topology), node.host.enclave[0], 3)
    assert len(held) == 3
    node.settle(text=limited('connections = 3\nrate = "1/hour"\nburst = 2\n'))
    for each in held:
        each.settimeout(2)
        each.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert each.recv(10)
        each.close()


def test_f05_a_limit_whose_set_is_full_turns_new_clients_away(node: FencedNode, topology: Topology) -> None:
    """A flood of made-up addresses must not be the way past the limit."""
    before, limit.CLIENTS = limit.CLIENTS, 1
    try:
        node.settle(text=limited('rate = "100/second"\nburst = 50\n'))
    finally:
        limit.CLIENTS = before
    address = node.host.enclave[0]
    assert opens(client_of(topology), address, 8080)
    assert not opens(topology.nodes[1].namespace, address, 8080)
    assert opens(client_of(topology), address, 8080), "who is in it goes on"


@pytest.mark.parametrize(
    "rule",
    [
        {"rate": "0/second"},
        {"rate": "5/day"},
        {"rate": "5/second; accept"},
        {"burst": 5},
        {"connections": 0},
        {"protocol": "any", "ports": [], "connections": 5},
    ],
)
def test_f10_a_limit_that_is_none_is_refused(rule: dict[str, object]) -> None:
    whole = {"zone": "z", "protocol": "tcp", "ports": [1], "reason": "r"} | rule
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(whole, InboundRule, strict=True)


@pytest.mark.parametrize(
    "owner",
    [
        {"user": "a b"},
        {"user": '"'},
        {"user": ""},
        {"user": "root", "unit": "a.service"},
        {"unit": "../x.service"},
        {"unit": 'a".service'},
        {"unit": "a"},
        {"unit": "a.service\n"},
    ],
)
def test_f10_an_owner_that_is_none_is_refused(owner: dict[str, object]) -> None:
    whole = {"zone": "z", "protocol": "tcp", "ports": [1], "reason": "r"} | owner
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(whole, OutboundRule, strict=True)


CONNECT = (
    "import socket, sys\ns = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
    "s.settimeout(0.4)\ntry:\n s.connect((sys.argv[1], 8080))\nexcept OSError: sys.exit(7)\n"
)


def connects_as(namespace: Namespace, uid: int, address: str) -> bool:
    """Tell whether a process of this user gets through."""
    done = namespace.run(
        "setpriv", f"--reuid={uid}", "--clear-groups", sys.executable, "-c", CONNECT, address, check=False
    )
    assert done.returncode in (0, 7), done.stderr
    return done.returncode == 0


def test_only_the_named_user_gets_out(node: FencedNode, topology: Topology) -> None:
    node.settle(text=BASELINE + OUT + 'user = "nobody"\n')
    for address in topology.outside.uplink:
        assert connects_as(node.namespace, 65534, address)
        assert not connects_as(node.namespace, 65533, address)
        assert not connects_as(node.namespace, 0, address), "not even root"
    node.settle(text=BASELINE + OUT + 'user = "65533"\n')
    assert connects_as(node.namespace, 65533, topology.outside.uplink[0])
    assert not connects_as(node.namespace, 65534, topology.outside.uplink[0])


def test_two_owners_of_one_port_both_get_out_and_nobody_else(node: FencedNode, topology: Topology) -> None:
    node.settle(text=BASELINE + OUT + 'user = "65533"\n' + OUT + 'user = "65534"\n')
    reached = [
        uid for uid in (65532, 65533, 65534) if connects_as(node.namespace, uid, topology.outside.uplink[0])
    ]
    assert reached == [65533, 65534]


def test_a_user_that_is_not_here_is_told_and_its_rule_lets_nobody_out(
    node: FencedNode, topology: Topology
) -> None:
    node.settle(text=BASELINE)
    node.probe = Probe(section(BASELINE + OUT + 'user = "no-such-user"\n'), node.probe.around)
    node.repair(node.observe())
    (drift,) = node.observe()
    assert (drift.key, drift.found) == ("user no-such-user", "no such user")
    assert not opens(node.namespace, topology.outside.uplink[0], 8080)


@pytest.fixture
def slice_folder() -> Iterator[Path]:
    top = next(
        (
            each
            for each in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
            if (each / "cgroup.controllers").exists()
        ),
        None,
    )
    folder = None if top is None else top / f"rf{os.getpid()}.slice"
    try:
        if folder is not None:
            folder.mkdir()
    except OSError:
        folder = None
    if folder is None:
        pytest.skip("no cgroup version 2 in which groups may be made")
    yield folder
    for each in [*folder.iterdir(), folder]:
        with contextlib.suppress(OSError):
            each.rmdir()


def connects_in(namespace: Namespace, group: Path, address: str) -> bool:
    """Tell whether a process in this control group gets through."""
    program = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n" + CONNECT
    return namespace.run(sys.executable, "-c", program, address, check=False).returncode == 0


def test_only_the_named_unit_gets_out_and_again_after_its_cgroup_was_made_anew(
    node: FencedNode, topology: Topology, slice_folder: Path
) -> None:
    unit, other = slice_folder / "inference.service", slice_folder / "other.service"
    other.mkdir()
    node.settle(text=BASELINE + OUT + 'unit = "inference.service"\n')
    assert not connects_in(node.namespace, other, topology.outside.uplink[0]), "the unit does not run yet"
    unit.mkdir()
    node.settle()
    for address in topology.outside.uplink:
        assert connects_in(node.namespace, unit, address)
        assert not connects_in(node.namespace, other, address)
        assert not opens(node.namespace, address, 8080)
    time.sleep(0.1)
    unit.rmdir()
    (slice_folder / "filler.service").mkdir()
    unit.mkdir()
    assert not connects_in(node.namespace, unit, topology.outside.uplink[0]), "closed until it is looked at"
    node.settle()
    assert connects_in(node.namespace, unit, topology.outside.uplink[0])
    assert not connects_in(node.namespace, slice_folder / "filler.service", topology.outside.uplink[0])


def test_a_unit_that_starts_wakes_the_firewall(
    node: FencedNode, topology: Topology, slice_folder: Path
) -> None:
    unit = slice_folder / "inference.service"
    node.settle(text=BASELINE + OUT + 'unit = "inference.service"\n')
    healing = Healing(node)
    node.netfilter.on_wake = lambda: healing._woken(None)
    try:
        unit.mkdir()
        until(lambda: "inference.service" in node.namespace.ruleset())
        assert connects_in(node.namespace, unit, topology.outside.uplink[0])
    finally:
        node.netfilter.on_wake = lambda: None


def test_a_group_that_a_user_names_like_a_unit_is_not_the_unit(tmp_path: Path) -> None:
    top = tmp_path / "fs" / "cgroup"
    real = top / "system.slice" / "a.service"
    faked = top / "user.slice" / "user-1000.slice" / "user@1000.service" / "app.slice" / "a.service"
    delegated = top / "system.slice" / "b.service" / "x.slice" / "a.service"
    for folder in (real, faked, delegated):
        folder.mkdir(parents=True)
    tree = CgroupTree(tmp_path)
    assert tree.of_unit("a.service") is None, "no hierarchy of version 2"
    (top / "cgroup.controllers").touch()
    found = tree.of_unit("a.service")
    assert found == ("system.slice/a.service", 2, real.stat().st_ino)
    assert tree.of_unit("c.service") is None
    (top / "a.service").mkdir()
    assert tree.of_unit("a.service") is None, "two that claim the name: neither"


def test_answers_reach_the_owner_also_when_the_rules_change_and_the_server_speaks_first(
    node: FencedNode, topology: Topology
) -> None:
    listener = Listener(topology.outside.namespace, 8081, socket.SOCK_STREAM)
    out = OUT.replace("8080", "8081") + 'user = "root"\n'
    node.settle(text=BASELINE + out)
    asking = node.namespace.socket(socket.AF_INET)
    asking.settimeout(2)
    asking.connect((topology.outside.uplink[0], 8081))
    served, _ = listener.socket.accept()
    node.settle(text=BASELINE.replace("[53, 123]", "[53]") + out)
    served.send(b"first")
    assert asking.recv(10) == b"first"
    for each in (served, asking):
        each.close()
    listener.close()


def test_datagrams_of_a_limited_client_count_one_by_one_until_they_are_answered(
    node: FencedNode, topology: Topology
) -> None:
    streams = 'ports = [5353, "6000-6010"]\nreason = "camera streams"\n'
    assert streams in BASELINE
    node.settle(text=BASELINE.replace(streams, streams + 'rate = "1/minute"\nburst = 3\n'))
    listener = Listener(node.namespace, 6000)
    with client_of(topology).socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.settimeout(1)
        sending.connect((node.host.enclave[0], 6000))
        for _ in range(10):
            sending.send(b"x")
        time.sleep(0.1)
        assert 3 <= listener.drain() <= 4
        listener.socket.sendto(b"y", (f"::ffff:{sending.getsockname()[0]}", sending.getsockname()[1]))
        assert sending.recv(10) == b"y"
        for _ in range(10):
            sending.send(b"x")
        time.sleep(0.1)
        assert listener.drain() == 10, "answered: an open connection like any other"
    listener.close()
