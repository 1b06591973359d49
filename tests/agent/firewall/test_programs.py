"""XDP programs, tc filters and foreign netdev chains: told with a cure, and taken out in isolation. `tc` and packets are witnesses."""

from __future__ import annotations

import ctypes
import platform
import socket
import struct
from collections.abc import Iterator

import pytest

from agent.firewall import bypass, namespaces, netlink
from tests.agent.firewall.frames import Wire, ethernet
from tests.agent.firewall.lab import BASELINE, FencedNode, opens
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

CALL = {"x86_64": 321, "aarch64": 280}
PASS_ALL = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)
"""r0 = XDP_PASS; exit."""
KNOWN = '\n[[programs]]\ninterface = "{interface}"\nhook = "{hook}"\nreason = "test"\n'


def xdp(namespace: Namespace, interface: str) -> int:
    """Attach a program that passes everything, as `ip link set ... xdpgeneric` would; return a descriptor of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    code, licence = ctypes.create_string_buffer(PASS_ALL), ctypes.create_string_buffer(b"GPL")
    asked = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)) + bytes(96)
    handle = libc.syscall(CALL[platform.machine()], 5, ctypes.create_string_buffer(asked), len(asked))
    if handle < 0:
        pytest.skip("no program can be loaded here")

    def attach() -> None:
        talk = netlink.Talk(0)
        inside = netlink.attribute(1, struct.pack("=i", handle)) + netlink.attribute(3, struct.pack("=I", 2))
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(interface), 0, 0)
        talk.tell(19, body + netlink.attribute(43 | 0x8000, inside))
        talk.close()

    namespace.inside(attach)
    return handle


def filters(node: FencedNode) -> str:
    shown = [
        node.namespace.run("tc", "filter", "show", "dev", "enclave0", way).stdout
        for way in ("ingress", "egress")
    ]
    return "".join(shown)


def redirect(node: FencedNode, way: str) -> None:
    node.namespace.run("tc", "qdisc", "replace", "dev", "enclave0", "clsact")
    node.namespace.run(
        *("tc", "filter", "add", "dev", "enclave0", way, "u32", "match", "u32", "0", "0"),
        *("action", "mirred", "egress", "redirect", "dev", "uplink0"),
    )


@pytest.fixture(autouse=True)
def bare(node: FencedNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bypass, "PROGRAMS_EVERY_S", 0.0)
    yield
    node.namespace.run("tc", "qdisc", "del", "dev", "enclave0", "clsact", check=False)
    node.namespace.run("tc", "qdisc", "del", "dev", "enclave0", "root", check=False)
    node.namespace.ip("link", "set", "enclave0", "xdpgeneric", "off")


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_f06_a_tc_filter_is_told_and_in_isolation_taken_out(
    node: FencedNode, topology: Topology, way: str
) -> None:
    """What a filter at the ingress redirects has passed no hook of ours when it leaves."""
    redirect(node, way)
    node.repair(node.observe())
    (drift,) = node.observe()
    assert (drift.key, drift.wanted) == (f"program:enclave0 tc {way}", "absent")
    assert "u32" in drift.found and "tc qdisc del dev enclave0 clsact" in drift.found
    assert "mirred" in filters(node), "not ours to take out while nothing is wrong"
    node.settle("isolated")
    assert "mirred" not in filters(node)
    node.settle("normal")
    assert opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 8080)


def test_f06_what_a_filter_would_carry_past_the_rules_leaves_nothing_in_isolation(
    node: FencedNode, topology: Topology
) -> None:
    mark = b"redirected by somebody else"
    witness = Wire(topology.nodes[1].namespace, "uplink0")
    sender = Wire(topology.sites["fw"].the_client.namespace, "enclave0")
    redirect(node, "ingress")
    frame = ethernet(0x88B5, mark)
    sender.send(frame)
    assert witness.sees(mark), "without isolation it passes"
    node.settle("isolated")
    sender.send(frame)
    assert not witness.sees(mark)
    for each in (witness, sender):
        each.close()


def test_f06_a_filter_of_a_queueing_discipline_is_seen(node: FencedNode) -> None:
    node.namespace.run("tc", "qdisc", "add", "dev", "enclave0", "root", "handle", "7:", "htb")
    assert node.observe() == [], "shaping alone is nobody's way past"
    node.namespace.run(
        *("tc", "filter", "add", "dev", "enclave0", "parent", "7:", "u32", "match", "u32", "0", "0"),
        *("action", "mirred", "egress", "redirect", "dev", "uplink0"),
    )
    (drift,) = node.observe()
    assert drift.key == "program:enclave0 tc 7:"
    assert "tc filter del dev enclave0 parent 7:" in drift.found
    node.settle("isolated")
    assert "mirred" not in node.namespace.run("tc", "filter", "show", "dev", "enclave0").stdout


def test_f06_filters_of_a_shared_block_and_of_another_chain_are_seen(node: FencedNode) -> None:
    catch_all = ("u32", "match", "u32", "0", "0", "flowid", "1:1")
    node.namespace.run("tc", "qdisc", "add", "dev", "enclave0", "ingress_block", "7", "clsact")
    node.namespace.run("tc", "filter", "add", "block", "7", *catch_all)
    node.namespace.run("tc", "qdisc", "add", "dev", "uplink0", "ingress")
    node.namespace.run("tc", "filter", "add", "dev", "uplink0", "ingress", "chain", "5", *catch_all)
    found = {drift.key: drift.found for drift in node.observe()}
    assert set(found) == {"program:enclave0 tc ingress", "program:uplink0 tc ingress"}
    for interface, discipline in (("enclave0", "clsact"), ("uplink0", "ingress")):
        cure = f"tc qdisc del dev {interface} {discipline}"
        assert cure in found[f"program:{interface} tc ingress"]
    node.settle("isolated")
    node.settle("normal")
    node.namespace.run("tc", "qdisc", "add", "dev", "uplink0", "ingress")
    node.namespace.run(*["tc", "qdisc", "del", "dev", "uplink0", "ingress"])


def test_f06_an_xdp_program_is_told_and_in_isolation_taken_out(node: FencedNode) -> None:
    xdp(node.namespace, "enclave0")
    (drift,) = node.observe()
    assert drift.key == "program:enclave0 xdp"
    assert "ip link set enclave0 xdp off" in drift.found
    node.repair([drift])
    assert "xdp" in node.namespace.run("ip", "link", "show", "enclave0").stdout
    node.settle("isolated")
    assert "xdp" not in node.namespace.run("ip", "link", "show", "enclave0").stdout


def test_f06_what_the_baseline_names_stays(node: FencedNode) -> None:
    xdp(node.namespace, "enclave0")
    redirect(node, "egress")
    both = KNOWN.format(interface="enc*", hook="tc") + KNOWN.format(interface="enclave0", hook="xdp")
    node.settle("isolated", text=BASELINE + both)
    assert "mirred" in filters(node)
    assert "xdp" in node.namespace.run("ip", "link", "show", "enclave0").stdout
    node.settle_text(BASELINE + KNOWN.format(interface="uplink0", hook="tc"))


STRAY = """table netdev stray {
    chain in {
        type filter hook ingress device enclave0 priority -500;
        ether type 0x88b5 fwd to "uplink0"
    }
}
"""


def test_f06_a_foreign_chain_that_sends_frames_elsewhere_is_taken_out_and_in_isolation_with_its_table(
    node: FencedNode, topology: Topology
) -> None:
    mark = b"forwarded below the rules"
    witness = Wire(topology.nodes[1].namespace, "uplink0")
    sender = Wire(topology.sites["fw"].the_client.namespace, "enclave0")
    mere = "table ip mere {\nchain c {\ntype filter hook input priority 5;\ntcp dport 1 drop\n}\n}"
    node.namespace.nft(STRAY + mere)
    sender.send(ethernet(0x88B5, mark))
    assert witness.sees(mark), "nothing else stops it"
    assert {drift.key for drift in node.observe()} == {"foreign:netdev stray in", "foreign:ip mere c"}
    node.repair(node.observe())
    assert [drift.key for drift in node.observe()] == ["foreign:ip mere c"], "a drop harms nobody"
    assert "table netdev stray" in node.namespace.ruleset() and "fwd" not in node.namespace.ruleset()
    sender.send(ethernet(0x88B5, mark))
    assert not witness.sees(mark)
    node.namespace.run("nft", "delete", "table", "netdev", "stray")
    node.namespace.nft(STRAY)
    node.settle("isolated")
    assert "table netdev stray" not in node.namespace.ruleset()
    sender.send(ethernet(0x88B5, mark))
    assert not witness.sees(mark)
    assert [drift.key for drift in node.observe()] == ["foreign:ip mere c"]
    for each in (witness, sender):
        each.close()


def test_f13_a_namespace_that_owns_a_device_of_the_machine_is_told() -> None:
    """No card can be given away here, so the kernel's answers for real links are changed to say what a card's says."""
    other = Namespace("taken")
    try:
        other.ip("link", "add", "pair0", "type", "veth", "peer", "name", "pair1")
        other.ip("link", "add", "bridge0", "type", "bridge")

        def dump() -> list[bytes]:
            talk = netlink.Talk(0)
            found = [each.payload for each in talk.dump(18, struct.pack("=BxHiII", 0, 0, 0, 0, 0))]
            talk.close()
            return found

        links = other.inside(dump)
        assert namespaces.devices(links) == [], "loopback, pairs and bridges lead nowhere by themselves"
        card = [each for each in links if b"pair0" in each]
        assert namespaces.devices([each.replace(b"veth\0", b"wwan\0") for each in card]) == ["pair0"]
        bare = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + netlink.attribute(3, b"eth7\0")
        assert namespaces.devices([*links, bare]) == ["eth7"]
    finally:
        other.remove()


def test_f13_such_a_device_is_a_drift_unless_the_baseline_names_it(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = namespaces.Stray("eth7", namespaces.DEVICE, "eth7", "pid 4242")
    monkeypatch.setattr(namespaces, "strays", lambda: [given])
    node.settle_text(BASELINE)
    found = [(drift.key, drift.found) for drift in node.observe()]
    assert found == [("netns:pid 4242 eth7", "device of the machine")]
    parents = '[containers]\nmanager = "cni"\ninterfaces = ["cni0"]\naddresses = ["10.22.0.0/16"]\n'
    node.settle_text(BASELINE + parents + 'parents = ["eth7"]\nreason = "test"\n')
    assert not any(drift.key.startswith("netns:") for drift in node.observe())
