"""Tables under our names that another process owns: real `nft -i` processes hold them, packets and `nft` are the witnesses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from agent import early
from agent.firewall.apart import Apart
from agent.firewall.netlink import Table
from agent.firewall.spare import Names
from agent.netfilter import Netfilter, NetfilterError
from agent.probes import Surroundings
from agent.responses import fence, isolate
from contract.directive import Response
from contract.messages import Drift, Posture
from tests.agent.firewall.lab import (
    BASELINE,
    FencedNode,
    Healing,
    Holder,
    Listener,
    opens,
    send_udp,
    until,
)
from tests.agent.rig import Rig, baseline, in_own_namespace, nft
from tests.parts.inference import Stream, infer
from tests.parts.topology import Topology

EVERYTHING = (
    "inet ringfence",
    "inet ringfence_guard",
    "inet ringfence_cut",
    "inet ringfence_fast",
    "arp ringfence",
    "netdev ringfence_cut",
    "bridge ringfence_cut",
)


@pytest.fixture
def node(topology: Topology, fenced: FencedNode) -> Iterator[FencedNode]:
    """A node whose agent ends with the test: names are kept for the life of an agent."""
    fenced.clear()
    made = FencedNode(topology.nodes[0], topology)
    made.settle()
    yield made
    made.close()
    fenced.clear()


@pytest.fixture
def holder(node: FencedNode) -> Iterator[Holder]:
    made = Holder(node.namespace)
    yield made
    made.close()


def hold(node: FencedNode, posture: Posture, fenced: tuple[str, ...] = ()) -> list[Drift]:
    """Bring a posture into force and return what cannot be mended."""
    around = node.probe.around
    node.probe.around = Surroundings(
        host=around.host,
        netfilter=node.netfilter,
        controller=around.controller,
        posture=posture,
        fenced=fenced,
    )
    node.repair(node.observe())
    return node.observe()


def in_force(node: FencedNode) -> list[str]:
    """Return our tables that filter, with the ends of spare names taken off; sorted."""
    listed = node.namespace.ruleset()
    found = re.findall(r"^table (\S+ ringfence\S*) \{(?: #.*)?\n((?:\t.*\n|\n)*)\}", listed, re.MULTILINE)
    return sorted(re.sub(r"_[0-9a-f]{16}$", "", name) for name, body in found if "hook" in body)


def test_f01_whoever_owns_every_table_of_ours_opens_nothing(
    node: FencedNode, holder: Holder, topology: Topology
) -> None:
    client = topology.sites["fw"].the_client.namespace
    streams = [Stream(client, address) for address in node.host.enclave]
    holder.own(*EVERYTHING)
    assert opens(client, node.host.enclave[0], 9090), "what the holder is after"
    node.repair(node.observe())
    for address in node.host.enclave:
        assert not opens(client, address, 9090)
        assert infer(client, address)
    assert not any(opens(node.namespace, address, 9090) for address in topology.outside.uplink)
    assert all(stream.alive(2.0) for stream in streams), "what was let in before goes on"
    assert in_force(node) == ["arp ringfence", "inet ringfence", "inet ringfence_guard"]
    left = node.observe()
    assert {drift.key for drift in left} == {f"{each} owner" for each in EVERYTHING}
    for drift in left:
        assert f"nft (pid {holder.process.pid}, uid 0" in drift.culprit, (
            "named, although it has done nothing since"
        )
        assert drift.culprit in drift.found
    for each in streams:
        each.close()


@pytest.mark.parametrize("effect", ["accept", "udp dport set 5353"])
def test_f11_who_owns_a_foreign_table_that_cannot_be_taken_out_is_named(
    node: FencedNode, holder: Holder, effect: str
) -> None:
    """Rules that can lead past ours are to go whatever the section says, all others where it says so."""
    foreign = "remove" if effect == "accept" else "report"
    node.settle(text=f'foreign = "{foreign}"\n' + BASELINE)
    holder.own("inet theirs", flush=False)
    chains = [
        f"add chain inet {table} c {{ type filter hook input priority 5; }}; add rule inet {table} c {effect}"
        for table in ("theirs", "zz_free")
    ]
    holder.type("add table inet zz_free", *chains)
    with pytest.raises(PermissionError) as refused:
        node.repair(node.observe())
    assert "table inet theirs can be changed by its owner alone" in str(refused.value)
    assert f"nft (pid {holder.process.pid}, uid 0" in str(refused.value)
    assert {drift.key for drift in node.observe()} == {"foreign:inet theirs c"}, "the other one went"
    holder.close()
    node.repair(node.observe())  # no event tells that the table has gone with its owner
    assert node.observe() == []


@pytest.mark.parametrize("table", ["inet ringfence_guard", "arp ringfence", "inet ringfence_cut"])
def test_f01_one_owned_table_keeps_none_of_the_others_from_healing(
    node: FencedNode, holder: Holder, table: str
) -> None:
    holder.own(table)
    node.repair(node.observe())
    assert [drift.key for drift in node.observe()] == [f"{table} owner"]
    assert in_force(node) == ["arp ringfence", "inet ringfence", "inet ringfence_guard"]


def test_f01_a_part_that_cannot_be_loaded_keeps_none_of_the_others_from_healing(node: FencedNode) -> None:
    """The kernel takes 1,024 chains at one hook: ARP is full, and no other name helps."""
    chains = "".join(f"chain c{n} {{ type filter hook input priority 9; }}\n" for n in range(1024))
    node.clear()
    node.namespace.nft(f"table arp full {{\n{chains}}}\n")
    with pytest.raises(OSError, match="Argument list too long"):
        node.repair(node.observe())
    assert in_force(node) == ["inet ringfence", "inet ringfence_guard"]
    assert [drift.key for drift in node.observe()] == ["arp ringfence table ringfence"]


@pytest.mark.parametrize("way", ["order", "posture"])
def test_f07_isolation_is_complete_although_every_name_of_it_is_owned(
    node: FencedNode, holder: Holder, topology: Topology, way: str
) -> None:
    client = topology.sites["fw"].the_client.namespace
    stream = Stream(client, node.host.enclave[0])
    listener = Listener(node.namespace, 5353)
    holder.own(*EVERYTHING, flush=False)
    if way == "order":
        told = node.do(
            lambda: isolate.Response().apply(node.probe.around, Response(name="isolate", reason="test"))
        )
        assert [each.kind for each in told] == ["isolate.applied"]
        assert not stream.alive(0.5), "before any pass"
        assert "inet ringfence_cut" in in_force(node) and "netdev ringfence_cut" in in_force(node)
    left = hold(node, "isolated")
    assert {drift.key for drift in left} == {f"{each} owner" for each in EVERYTHING}
    assert set(EVERYTHING) - set(in_force(node)) <= {"bridge ringfence_cut", "inet ringfence_fast"}
    assert not stream.alive(0.5)
    send_udp(client, node.host.enclave[0], 5353)
    assert listener.received() is None
    assert not opens(client, node.host.enclave[1], 8080)
    assert opens(node.namespace, topology.controller.uplink[0], 8443)
    hold(node, "normal")
    assert infer(client, node.host.enclave[0])
    assert not [each for each in in_force(node) if each.endswith("_cut")]
    stream.close()
    listener.close()


def test_fences_counters_and_small_changes_reach_the_rules_under_their_spare_name(
    node: FencedNode, holder: Holder, topology: Topology
) -> None:
    holder.own("inet ringfence")
    node.repair(node.observe())
    client = topology.sites["fw"].the_client
    neighbour = topology.nodes[1]
    assert not opens(client.namespace, node.host.enclave[0], 9090)
    assert "drop_input" in {each.name for each in node.do(lambda: node.netfilter.dropped(9))}
    assert any(each.name == "in_enclave_tcp" for each in node.do(node.netfilter.counts))
    beside = node.do(Netfilter)  # another process: `ringfence-agent counters`, `ringfence-agent diff`
    assert any(each.name == "in_enclave_tcp" for each in node.do(lambda: beside.find().counts()))
    node.do(beside.close)
    request = Response(name="fence", addresses=[*neighbour.enclave])
    wanted = fence.Response().wanted(request)
    stream = Stream(neighbour.namespace, node.host.enclave[0])
    around = node.probe.around
    node.probe.around = Surroundings(
        host=around.host,
        netfilter=node.netfilter,
        controller=around.controller,
        fenced=wanted.fenced,
    )
    told = node.do(lambda: fence.Response().apply(node.probe.around, request))
    assert [each.kind for each in told] == ["fence.applied"]
    assert not stream.alive(0.5)
    assert [drift.key for drift in node.observe()] == ["inet ringfence owner"], "as the rules want it"
    before = node.namespace.run("nft", "list", "tables").stdout
    node.settle_text(BASELINE.replace("8080", "8081"))
    node.namespace.run("nft", "insert", "rule", "inet", spare(node, "inet ringfence"), "input", "accept")
    node.repair(node.observe())
    assert [drift.key for drift in node.observe()] == ["inet ringfence owner"]
    assert node.namespace.run("nft", "list", "tables").stdout == before, "no other name for that"
    assert not infer(client.namespace, node.host.enclave[0])
    stream.close()


def spare(node: FencedNode, table: str, held: Iterable[str] = ()) -> str:
    """Return the spare name under which a table of ours stands, other than those that are held."""
    listed = node.namespace.run("nft", "list", "tables").stdout
    found = re.findall(rf"^table {table}(_[0-9a-f]{{16}})$", listed, re.MULTILINE)
    [name] = {f"{table.split()[1]}{each}" for each in found}.difference(held)
    return name


def test_f05_one_who_takes_each_spare_name_as_well_is_fought_and_keeps_nothing_open(
    node: FencedNode, holder: Holder, topology: Topology
) -> None:
    client = topology.sites["fw"].the_client.namespace
    healing = Healing(node)
    names: set[str] = set()
    holder.own("inet ringfence", "inet ringfence_guard")
    for _ in range(6):
        until(lambda: in_force(node)[-2:] == ["inet ringfence", "inet ringfence_guard"], 10)
        taken = [spare(node, each, names) for each in ("inet ringfence", "inet ringfence_guard")]
        names.update(taken)
        holder.own(*(f"inet {each}" for each in taken), flush=False)
    until(lambda: in_force(node)[-2:] == ["inet ringfence", "inet ringfence_guard"], 10)
    assert not opens(client, node.host.enclave[0], 9090)
    assert infer(client, node.host.enclave[0])
    healing.close()
    left = {drift.key for drift in node.observe()}
    assert left == {f"inet {each} owner" for each in (*names, "ringfence", "ringfence_guard")}


def test_f01_spare_names_are_kept_while_the_agent_runs_and_cleaned_by_the_next(
    node: FencedNode, holder: Holder, topology: Topology
) -> None:
    client = topology.sites["fw"].the_client.namespace
    holder.own("inet ringfence", "inet ringfence_guard", "inet ringfence_cut")
    hold(node, "isolated")
    hold(node, "normal")
    stream = Stream(client, node.host.enclave[0])
    first = spare(node, "inet ringfence")
    second = FencedNode(node.host, topology)
    second.repair(second.observe())
    assert spare(node, "inet ringfence") != first, "held still: another spare one, and the first is gone"
    assert all(drift.key.endswith(" owner") for drift in second.observe())
    holder.close()
    until(lambda: "table inet ringfence" not in holder.tables())
    assert second.observe() == [], "nobody announces the end of a hold"
    assert spare(node, "inet ringfence"), "and nothing is moved for it"
    third = FencedNode(node.host, topology)
    third.settle()
    assert sorted(holder.tables()) == [
        "table arp ringfence",
        "table inet ringfence",
        "table inet ringfence_guard",
    ]
    assert stream.alive(2.0), "over three agents"
    assert not opens(client, node.host.enclave[0], 9090)
    stream.close()
    second.close()
    third.close()


def test_f01_a_table_that_its_owner_has_left_behind_is_cleaned_by_the_same_agent(
    node: FencedNode, holder: Holder
) -> None:
    """Under our own name while ours stands under another: deleting it must not delete ours."""
    holder.own("inet ringfence")
    node.repair(node.observe())
    name = spare(node, "inet ringfence")
    holder.close()
    until(lambda: "table inet ringfence" not in holder.tables())
    node.namespace.run("nft", "add table inet ringfence; add chain inet ringfence x")
    assert [drift.key for drift in node.observe()] == ["inet ringfence remains"]
    node.repair(node.observe())
    assert node.observe() == []
    assert spare(node, "inet ringfence") == name
    assert "table inet ringfence" not in holder.tables()


def test_f12_the_early_rules_find_names_that_nobody_owns(
    node: FencedNode, holder: Holder, topology: Topology
) -> None:
    holder.own(*EVERYTHING)
    made = early.rules(None)
    node.do(lambda: early.load(made, Netfilter()))
    assert {"inet ringfence", "inet ringfence_guard", "inet ringfence_cut"} <= set(in_force(node))
    client = topology.sites["fw"].the_client.namespace
    assert not any(opens(client, address, 9090) for address in node.host.enclave)


def test_withdrawn_rules_leave_only_what_another_owns(node: FencedNode, holder: Holder) -> None:
    holder.own("inet ringfence")
    node.repair(node.observe())
    assert node.do(node.netfilter.withdraw)
    assert holder.tables() == ["table inet ringfence"]


def test_f11_a_hold_is_a_contest_told_with_its_culprit_and_ends_in_isolation(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        rig.call(rig.loop.session_closed)
        holder = Holder()
        try:
            holder.own(*EVERYTHING)
            rig.loop.wake("firewall")
            until(lambda: rig.loop.stance.posture == "isolated", 60)  # with no other wake
            until(
                lambda: (
                    re.search(r"^table inet ringfence_cut_\w+$", nft("list", "tables"), re.MULTILINE)
                    is not None
                )
            )
            [told] = rig.call(lambda: [event for event in rig.events() if event.kind == "firewall.contest"])
            assert "hold on" in told.summary and f"nft (pid {holder.process.pid}" in told.summary
            seen = [event for event in rig.events() if event.kind == "firewall.drift"]
            assert any(event.detail["key"] == "inet ringfence owner" for event in seen)
            assert "firewall.repair-failed" not in rig.kinds()
        finally:
            holder.close()
            rig.stop()

    in_own_namespace(job)


def table(name: str, *, owned: bool, family: str = "inet") -> Table:
    return Table(family, name, 2 if owned else 0, 1, 77 if owned else 0)


def test_names_are_put_into_commands_and_nowhere_else() -> None:
    draws = iter(("aa", "bb"))
    names = Names(lambda: next(draws))
    text = (
        "add table inet ringfence\ndelete table inet ringfence\ntable inet ringfence {\n"
        '\tchain input {\n\t\tiifname "inet ringfence" accept\n\t}\n}\n'
        "add element inet ringfence zone4_x { 192.0.2.1 }\nflush chain inet ringfence input\n"
        "list counters table inet ringfence\ntable inet ringfence_guard {\n}\ntable arp ringfence {\n}\n"
    )
    assert names.text(text) == text
    assert not names.leave([table("ringfence", owned=False), table("other", owned=True)])
    assert names.text(text) == text
    assert names.leave([table("ringfence", owned=True)])
    changed = names.text(text)
    assert changed.count("inet ringfence_aa") == 6
    assert changed.replace("inet ringfence_aa", "inet ringfence") == text
    assert 'iifname "inet ringfence" accept' in changed and "table arp ringfence {" in changed
    assert names.meant(("inet", "ringfence")) is None
    assert names.meant(("inet", "ringfence_aa")) == ("inet", "ringfence")
    assert not names.leave([table("ringfence", owned=True)]), "left already"
    assert names.leave([table("ringfence_aa", owned=True)])
    assert names.real(("inet", "ringfence")) == ("inet", "ringfence_bb")


def test_every_part_is_tried_and_every_error_told() -> None:
    done = []
    parts = Apart()
    for number in range(3):
        with parts.each():
            done.append(number)
            if number != 1:
                raise NetfilterError(1, f"part {number}")
    assert done == [0, 1, 2]
    with pytest.raises(OSError, match=r"part 0.*part 2"):
        parts.end()
    Apart().end()
