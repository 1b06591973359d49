"""Foreign chains that lead packets past our rules: taken out rule by rule, packets are the witnesses. What our rules see
through is only told, and what managers write stays."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.firewall import netlink
from agent.firewall.foreign import LEADS_PAST, foreign_chains
from agent.firewall.netlink import Rule, attribute
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, Holder, Listener, opens, send_udp, until
from tests.agent.rig import Rig, baseline, in_own_namespace
from tests.parts.containers import Podman
from tests.parts.inference import infer
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

TREE = Path(__file__).resolve().parents[3]
DENIED, ALLOWED = 7000, 5353
SNEAK = f"""
table inet sneak {{
    chain pre {{
        type filter hook prerouting priority -350; policy accept;
        udp dport {DENIED} udp dport set {ALLOWED}
        counter
    }}
    chain post {{
        type filter hook input priority 50; policy accept;
        udp dport {ALLOWED} udp dport set {DENIED}
    }}
}}
"""
MARKED = """
table inet sneak {{
    chain pre {{
        type filter hook prerouting priority -150; policy accept;
        udp dport 7000 ct mark set {mark}
    }}
}}
"""


@pytest.fixture
def listener(node: FencedNode) -> Iterator[Listener]:
    made = Listener(node.namespace, DENIED)
    yield made
    made.close()


def mark_of(node: FencedNode) -> str:
    """Return the mark that our rules know their own flows by, as anybody can read it (nft 1.0 shows a prefix, 1.1 a mask)."""
    listed = node.namespace.ruleset().replace("& 0xffff0000 == ", "")
    return re.findall(r"ct mark (0x[0-9a-f]+)(?:/16)? accept", listed)[0]


@pytest.mark.parametrize("way", ["ports", "mark"])
def test_f03_rewriting_that_carries_a_denied_port_is_taken_out_also_where_foreign_is_only_reported(
    node: FencedNode, topology: Topology, listener: Listener, way: str
) -> None:
    client = topology.sites["fw"].the_client.namespace
    node.namespace.nft(SNEAK if way == "ports" else MARKED.format(mark=mark_of(node)))
    send_udp(client, node.host.enclave[0], DENIED)
    assert listener.received() == b"x", "this is what it is for"
    drifts = node.observe()
    assert {drift.key.rpartition(" ")[0] for drift in drifts} == {"foreign:inet sneak"}
    assert {drift.wanted for drift in drifts} == {LEADS_PAST}
    node.repair(drifts)
    assert node.observe() == []
    node.namespace.run("conntrack", "-F", check=False)
    for address in node.host.enclave:
        send_udp(client, address, DENIED)
    assert listener.received() is None
    left = node.namespace.run("nft", "list", "table", "inet", "sneak").stdout
    assert " set " not in left
    assert "counter" in left or way == "mark", "its other rules are its own affair"
    assert infer(client, node.host.enclave[0])


def test_f03_rewriting_that_comes_back_is_taken_out_by_event(
    node: FencedNode, topology: Topology, listener: Listener
) -> None:
    client = topology.sites["fw"].the_client.namespace
    healing = Healing(node)
    for number in range(3):
        node.namespace.nft(SNEAK.replace("sneak", f"sneak{number}"))
        until(lambda: "dport set" not in node.namespace.ruleset(), 10)
    healing.close()
    assert {drift.key.split(" ")[1] for drift in healing.drifts} == {"sneak0", "sneak1", "sneak2"}
    assert all("nft (pid" in drift.culprit for drift in healing.drifts)
    send_udp(client, node.host.enclave[0], DENIED)
    assert listener.received() is None


def test_f03_a_way_out_that_is_chosen_behind_our_rules_is_taken_out(
    node: FencedNode, topology: Topology
) -> None:
    """A mark in a chain of type `route`: the rules have judged one interface, the packet leaves by another."""
    node.settle(text=BASELINE + OUT)
    beside = topology.nodes[1]
    outside = Listener(beside.namespace, 6001)
    carried = topology.sites["fw"].the_client.enclave[0]
    beside.namespace.ip("addr", "add", f"{carried}/32", "dev", "lo")
    node.namespace.ip("rule", "add", "fwmark", "77", "table", "77")
    node.namespace.ip("route", "add", carried, "via", beside.uplink[0], "table", "77")
    try:
        send_udp(node.namespace, carried, 6001)
        assert outside.received() is None
        node.namespace.nft(
            "table ip steer {\nchain to {\nmeta mark set 77\n}\n"
            "chain out {\ntype route hook output priority 50;\nudp dport 6001 jump to\n}\n}\n"
        )
        send_udp(node.namespace, carried, 6001)
        assert outside.received() == b"x", "this is what it is for"
        node.repair(node.observe())
        assert node.observe() == []
        send_udp(node.namespace, carried, 6001)
        assert outside.received() is None
    finally:
        node.namespace.ip("rule", "del", "fwmark", "77", "table", "77")
        node.namespace.ip("route", "flush", "table", "77")
        beside.namespace.ip("addr", "del", f"{carried}/32", "dev", "lo")
        outside.close()


OUT = """
[[outbound]]
zone = "enclave"
protocol = "udp"
ports = [6001]
reason = "test"
"""

TOLD = """
table ip other {
    chain pre { type nat hook prerouting priority -100; tcp dport 9091 redirect to :8080; }
    chain out { type nat hook output priority -100; tcp dport 9091 dnat to 10.10.1.100:8080; }
    chain post { type nat hook postrouting priority 100; masquerade; }
    chain class { type filter hook forward priority -150; tcp option maxseg size set 1200; meta mark set 7; }
}
"""


def test_f03_what_our_rules_see_through_is_told_and_left(node: FencedNode, topology: Topology) -> None:
    client = topology.sites["fw"].the_client.namespace
    node.namespace.nft(TOLD)
    before = node.namespace.run("nft", "-a", "list", "table", "ip", "other").stdout
    drifts = node.observe()
    assert [drift.key.rpartition(" ")[2] for drift in drifts] == ["class", "out", "post", "pre"]
    node.repair(drifts)
    assert node.namespace.run("nft", "-a", "list", "table", "ip", "other").stdout == before
    assert not opens(client, node.host.enclave[0], 9091), "and it opens nothing"
    assert not opens(node.namespace, topology.outside.uplink[0], 9091)


def test_f03_what_the_baseline_knows_is_left_whatever_it_does(node: FencedNode) -> None:
    known = '[[known]]\nfamily = "inet"\ntable = "sneak"\nreason = "test"\n'
    node.settle(text=BASELINE + known)
    node.namespace.nft(SNEAK)
    assert node.observe() == []


@pytest.mark.parametrize("declared", [True, False])
def test_f11_what_a_manager_writes_is_left_also_where_the_baseline_names_no_manager(
    node: FencedNode, tmp_path: Path, declared: bool
) -> None:
    made = Podman(node.namespace, tmp_path)
    container = Namespace("container")
    try:
        joined = made.join(container)
        node.namespace.sysctl(**{"net__bridge__bridge-nf-call-iptables": "1"})
        node.settle(text=BASELINE + (joined.section() if declared else ""))
        before = foreign_tables(node)
        assert "masquerade" in before.lower() or "MASQUERADE" in before
        healing = Healing(node)
        node.repair(node.observe())
        node.namespace.run("iptables", "-t", "mangle", "-A", "FORWARD", "-p", "tcp", "--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS", "--clamp-mss-to-pmtu")  # fmt: skip
        for target in ("CONNMARK", "MARK"):  # in a chain of type `route`
            node.namespace.run("iptables", "-t", "mangle", "-A", "OUTPUT", "-j", target, "--set-mark", "1")
            until(lambda: "MARK" not in node.namespace.run("iptables-save", "-t", "mangle").stdout, 10)
        healing.close()
        assert "TCPMSS" in node.namespace.run("iptables-save", "-t", "mangle").stdout
        node.namespace.run("nft", "delete", "table", "ip", "mangle")
        assert foreign_tables(node) == before
    finally:
        container.remove()
        made.close()


FIREWALLD = """
table inet firewalld {
    ct helper helper-tftp-udp {
        type "tftp" protocol udp
        l3proto inet
    }
    chain mangle_PREROUTING {
        type filter hook prerouting priority mangle + 10; policy accept;
        jump mangle_PRE_public
    }
    chain mangle_PRE_public {
        tcp dport 2222 meta mark set 0x64
    }
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        jump nat_PRE_public
    }
    chain nat_PRE_public {
        meta nfproto ipv4 tcp dport 2222 redirect to :22
        meta nfproto ipv4 tcp dport 8443 dnat ip to 10.10.1.100:443
    }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        meta nfproto ipv4 oifname != "lo" masquerade
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        udp dport 69 ct helper set "helper-tftp-udp"
        reject with icmpx admin-prohibited
    }
}
"""
"""What firewalld 1.3 writes for a zone with a port forward, a mark, masquerading and the tftp service."""


def test_f11_reloads_of_firewalld_leave_its_table_whole_and_are_no_fight(node: FencedNode) -> None:
    node.namespace.nft(FIREWALLD)
    before = foreign_tables(node)
    healing = Healing(node)
    for _ in range(3):
        node.namespace.nft("delete table inet firewalld\n" + FIREWALLD)
    until(lambda: healing.passes >= 1 and healing._wakes.empty())
    told = {drift.key for drift in node.observe()}
    healing.close()
    assert foreign_tables(node) == before
    assert told == {
        f"foreign:inet firewalld {name}"
        for name in ("filter_INPUT", "mangle_PRE_public", "nat_PRE_public", "nat_POSTROUTING")
    }
    assert not [drift for drift in healing.drifts if drift.wanted == LEADS_PAST]


def foreign_tables(node: FencedNode) -> str:
    """Return what stands in the tables of others."""
    parts = f"\n{node.namespace.ruleset()}".split("\ntable ")
    return "\n".join(sorted(each for each in parts if " ringfence" not in each.partition("{")[0]))


def test_f03_rewriting_in_a_table_that_another_owns_is_read_told_and_a_contest(tmp_path: Path) -> None:
    """Nobody but its owner can take it out, so the node takes itself out."""

    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        rig.call(rig.loop.session_closed)
        holder = Holder()
        try:
            holder.own("inet sneak", "inet calm", flush=False)
            holder.type(
                "add chain inet calm c { type filter hook input priority 5; }",
                "add rule inet calm c tcp dport 1 accept",
            )
            rig.loop.wake("firewall")
            until(lambda: "firewall.drift" in rig.kinds(), 10)
            keys = {each.detail["key"] for each in rig.events() if each.kind == "firewall.drift"}
            assert keys == {"foreign:inet calm c"}, "read in spite of its flag, and harmless"
            holder.type(
                "add chain inet sneak pre { type filter hook prerouting priority -350; }",
                "add rule inet sneak pre udp dport set 5353",
            )
            until(lambda: rig.loop.stance.posture == "isolated", 60)
            [told] = rig.call(lambda: [each for each in rig.events() if each.kind == "firewall.contest"])
            assert told.summary.startswith("rewriting past our rules was found 3 times")
        finally:
            holder.close()
            rig.stop()

    in_own_namespace(job)


BAD = b"b\xff\xfe"


def badly_named(table: str, kind: str) -> None:
    """Make a chain or a counter whose name is no text, as only netlink can."""
    talk = netlink.Talk()
    body = b"\1\0\0\0" + attribute(1, table.encode() + b"\0")
    if kind == "chain":
        talk.commit([(3, body + attribute(3, BAD + b"\0"))])
    else:
        counted = attribute(1, bytes(8)) + attribute(2, bytes(8))
        body += (
            attribute(2, BAD + b"\0") + attribute(3, struct.pack("!I", 1)) + attribute(4 | 0x8000, counted)
        )
        talk.commit([(18, body)])
    talk.close()


LOOKS = """
from agent.netfilter import Netfilter
netfilter = Netfilter()
netfilter.own(), netfilter.foreign(), netfilter.dropped(1)
"""


@pytest.mark.parametrize("kind", ["chain", "counter"])
@pytest.mark.parametrize("table", ["other", "ringfence"])
def test_f10_a_name_that_is_no_text_does_not_end_the_agent(node: FencedNode, table: str, kind: str) -> None:
    """libnftables ends the process where it is to print such a name as JSON."""
    enter = ["nsenter", f"--net=/run/netns/{node.namespace.name}"]
    node.namespace.run("nft", "add", "table", "inet", table)
    node.do(lambda: badly_named(table, kind))
    assert subprocess.run([*enter, "nft", "-j", "list", "ruleset"], capture_output=True).returncode < 0
    looked = subprocess.run([*enter, sys.executable, "-c", LOOKS], capture_output=True, cwd=TREE)
    assert looked.returncode == 0, looked.stderr
    drifts = node.observe()
    key = "inet ringfence table ringfence" if table == "ringfence" else "foreign:inet other *"
    assert [drift.key for drift in drifts] == [key]
    node.repair(drifts)
    assert node.observe() == []
    assert BAD not in subprocess.run([*enter, "nft", "list", "ruleset"], capture_output=True).stdout


def test_rules_are_deleted_only_where_nobody_has_committed_since(node: FencedNode) -> None:
    node.namespace.nft(SNEAK)
    [chain] = [each for each in node.do(node.netfilter.foreign) if each.chain == "pre"]
    rules = [Rule(chain.family, chain.table, chain.chain, handle) for handle in chain.past]
    before = node.do(node.netfilter.generation)
    node.namespace.nft("table ip newer {\n}\n")
    with pytest.raises(OSError, match="restarted"):
        node.do(lambda: node.netfilter.remove_rules(rules, before))
    assert "dport set" in node.namespace.ruleset()
    node.do(lambda: node.netfilter.remove_rules(rules, node.netfilter.generation()))
    assert f"dport set {ALLOWED}" not in node.namespace.ruleset()


def rule(chain: str, *statements: object) -> dict[str, object]:
    return {"rule": {"family": "ip", "table": "t", "chain": chain, "handle": 5, "expr": list(statements)}}


MARK = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}


@pytest.mark.parametrize(
    ("statement", "past"),
    [
        ({"masquerade": None}, False),
        ({"snat": {"addr": "192.0.2.1"}}, False),
        ({"redirect": {"port": 80}}, False),
        ({"dnat": {"addr": "192.0.2.1"}}, False),
        ({"notrack": None}, False),
        ({"ct helper": "x"}, False),
        (MARK, False),
        ({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": 1}}, False),
        ({"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": 1}}, False),
        ({"mangle": {"key": {"ct": {"key": "zone"}}, "value": 1}}, False),
        ({"xt": {"type": "target", "name": "CHECKSUM"}}, False),
        ({"xt": {"type": "target", "name": "CONNMARK"}}, True),
        ({"xt": {"type": "target", "name": "TPROXY"}}, True),
        ({"xt": {"type": "target", "name": "NFQUEUE"}}, True),
        ({"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}}, True),
        ({"mangle": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "value": 1}}, True),
        ({"mangle": {"key": {"payload": {"base": "th", "offset": 16, "len": 16}}, "value": 1}}, True),
        ({"mangle": {"key": {"payload": {"protocol": "ip6", "field": "hoplimit"}}, "value": 1}}, True),
        ({"tproxy": {"port": 80}}, True),
        ({"queue": {"num": 0}}, True),
        ({"dup": {"addr": "192.0.2.1"}}, True),
        ({"fwd": {"dev": "eth0"}}, True),
        ({"flow": {"op": "add", "flowtable": "@f"}}, True),
        ({"made-up": 1}, True),
    ],
)
def test_f03_what_may_lead_past_our_rules(statement: dict[str, object], past: bool) -> None:
    [found] = foreign_chains([rule("c", {"counter": None}, statement)], ())
    assert found.past == ((5,) if past else ())
    assert (found.wanted == LEADS_PAST) == past


@pytest.mark.parametrize(
    ("leads", "past"),
    [
        ([{"jump": {"target": "far"}}], True),
        ([{"goto": {"target": "near"}}], True),
        ([{"vmap": {"key": 1, "data": "@m"}}], True),
        ([{"jump": {"target": "elsewhere"}}], False),
    ],
)
def test_f03_a_mark_chooses_another_way_only_where_the_way_is_asked_for_again(
    leads: list[object], past: bool
) -> None:
    chains = [
        {"chain": {"family": "ip", "table": "t", "name": name, **head}}
        for name, head in (
            ("out", {"type": "route", "hook": "output", "prio": -150}),
            ("near", {}),
            ("far", {}),
            ("elsewhere", {}),
        )
    ]
    rules = [rule("out", *leads), rule("near", {"jump": {"target": "far"}}), rule("far", MARK)]
    [found] = [each for each in foreign_chains([*chains, *rules], ()) if each.chain == "far"]
    assert bool(found.past) == past
