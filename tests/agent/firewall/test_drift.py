"""Changes by others: seen, named, healed, and told who did it. The `nft` program makes them and is the witness."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from agent.firewall.events import Culprit
from agent.netfilter import Events, Netfilter, NetfilterError
from contract.errors import Rejected
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, opens, until
from tests.parts.inference import infer
from tests.parts.topology import Topology

F01 = {
    "flush ruleset": "inet ringfence table ringfence",
    "flush table inet ringfence": "inet ringfence chain",
    "delete table inet ringfence": "inet ringfence table ringfence",
    "rename chain inet ringfence input input2": "inet ringfence chain input",
    "add table inet ringfence { flags dormant; }": "inet ringfence table ringfence",
    "flush set inet ringfence zone4_enclave": "inet ringfence set zone4_enclave",
    "flush chain inet ringfence forward": "inet ringfence chain forward",
}
F02 = {
    "insert rule inet ringfence input accept": "inet ringfence chain input",
    "add rule inet ringfence in_enclave accept": "inet ringfence chain in_enclave",
    "add element inet ringfence in_enclave_tcp { 22 }": "inet ringfence set in_enclave_tcp",
    "delete element inet ringfence in_enclave_tcp { 8080 }": "inet ringfence set in_enclave_tcp",
    "add element inet ringfence controller4 { 192.0.2.1 . 443 }": "inet ringfence set controller4",
    "add chain inet ringfence input { policy accept; }": "inet ringfence chain input",
    "add chain inet ringfence mine { type filter hook input priority -5; }": "inet ringfence chain mine",
    "add set inet ringfence mine { type ipv4_addr; }": "inet ringfence set mine",
}


@pytest.mark.parametrize("change", F01)
def test_f01_a_table_flushed_deleted_renamed_or_dormant_is_seen_and_healed(
    node: FencedNode, topology: Topology, change: str
) -> None:
    before = node.namespace.ruleset()
    node.namespace.run("nft", change)
    assert node.namespace.ruleset() != before
    drifts = node.observe()
    assert drifts
    assert any(drift.key.startswith(F01[change]) for drift in drifts)
    if "dormant" in change:
        assert [drift.found for drift in drifts] == ["flags dormant"]
    node.repair(drifts)
    assert node.observe() == []
    assert node.namespace.ruleset() == before
    assert not opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 9090, 0.1)


@pytest.mark.parametrize("change", F02)
def test_f02_one_rule_element_policy_or_chain_changed_is_seen_by_name_and_healed(
    node: FencedNode, change: str
) -> None:
    before = node.namespace.ruleset()
    node.namespace.run("nft", change)
    assert node.namespace.ruleset() != before
    drifts = node.observe()
    assert [drift.key for drift in drifts] == [F02[change]]
    assert drifts[0].wanted != drifts[0].found
    node.repair(drifts)
    assert node.observe() == []
    assert node.namespace.ruleset() == before


def test_f02_a_chain_made_anew_at_another_priority_is_seen_and_healed(node: FencedNode) -> None:
    before = node.namespace.ruleset()
    node.namespace.run("nft", "flush chain inet ringfence output; delete chain inet ringfence output")
    node.namespace.run(
        "nft", "add chain inet ringfence output { type filter hook output priority 5; policy drop; }"
    )
    drifts = node.observe()
    assert [drift.key for drift in drifts] == ["inet ringfence chain output"]
    assert '"prio":5' in drifts[0].found
    node.repair(drifts)
    assert node.namespace.ruleset() == before


def test_f02_the_order_of_rules_counts_and_two_loads_of_one_text_are_equal(node: FencedNode) -> None:
    for _ in range(3):
        node.do(lambda: node.netfilter.load(node.probe.text()))
        assert node.observe() == []
    listed = node.namespace.run("nft", "-a", "list", "chain", "inet", "ringfence", "input").stdout
    last = next(line for line in listed.splitlines() if line.strip().startswith('counter name "drop_input"'))
    handle = last.rpartition("handle ")[2]
    node.namespace.nft(
        f"delete rule inet ringfence input handle {handle}\ninsert rule inet ringfence input counter name drop_input drop\n"
    )
    assert [drift.key for drift in node.observe()] == ["inet ringfence chain input"]


def test_f02_the_cut_table_taken_away_from_an_isolated_node_comes_back(
    node: FencedNode, topology: Topology
) -> None:
    node.settle("isolated")
    node.namespace.run("nft", "delete", "table", "inet", "ringfence_cut")
    drifts = node.observe()
    assert [drift.key for drift in drifts] == ["inet ringfence_cut table ringfence_cut"]
    node.repair(drifts)
    assert "inet ringfence_cut" in node.namespace.ruleset()


def test_f02_a_cut_table_that_nobody_ordered_is_taken_away(node: FencedNode, topology: Topology) -> None:
    node.namespace.nft(
        "table inet ringfence_cut {\nchain x {\ntype filter hook input priority -310; policy drop;\n}\n}\n"
    )
    drifts = node.observe()
    assert [(drift.key, drift.wanted) for drift in drifts] == [
        ("inet ringfence_cut table ringfence_cut", "absent")
    ]
    node.repair(drifts)
    assert node.observe() == []
    assert infer(topology.sites["fw"].the_client.namespace, node.host.enclave[0])


FOREIGN = """
table inet other {{
    chain before {{
        type filter hook {hook} priority {priority}; policy accept;
        {rule}
    }}
}}
"""


@pytest.mark.parametrize("priority", [-400, 100])
def test_f03_a_foreign_table_cannot_accept_what_ours_drops_and_is_told(
    node: FencedNode, topology: Topology, priority: int
) -> None:
    client = topology.sites["fw"].the_client.namespace
    node.namespace.nft(FOREIGN.format(hook="input", priority=priority, rule="tcp dport 9090 accept"))
    assert not opens(client, node.host.enclave[0], 9090)
    assert not opens(client, node.host.enclave[1], 9090)
    (drift,) = node.observe()
    assert drift.key == "foreign:inet other before"
    assert drift.found == f"accepts at input {priority}"


def test_f03_a_foreign_drop_and_a_foreign_rewrite_are_told_apart_and_a_counter_is_not_told(
    node: FencedNode,
) -> None:
    node.namespace.nft(FOREIGN.format(hook="input", priority=-400, rule="counter"))
    assert node.observe() == []
    node.namespace.nft(FOREIGN.format(hook="input", priority=-400, rule="tcp dport 8080 drop"))
    assert [drift.found for drift in node.observe()] == ["drops at input -400"]
    node.namespace.nft(FOREIGN.format(hook="input", priority=-400, rule="tcp dport set 8080"))
    assert [drift.found for drift in node.observe()] == ["drops and rewrites at input -400"]


def test_f03_a_foreign_policy_that_drops_is_told(node: FencedNode) -> None:
    node.namespace.nft(
        "table inet other {\nchain c {\ntype filter hook input priority 9; policy drop;\n}\n}\n"
    )
    assert [drift.found for drift in node.observe()] == ["drops at input 9"]


def test_f03_a_dormant_foreign_table_neither_counts_nor_blinds_us(node: FencedNode) -> None:
    """Old libraries print the flags of a table from freed memory: nothing may depend on that listing."""
    node.namespace.nft(
        "table ip sleeper {\nflags dormant\nchain c {\ntype nat hook prerouting priority -100\n}\n}\n"
    )
    assert node.observe() == []
    node.namespace.run("nft", "insert rule inet ringfence input accept")
    assert [drift.key for drift in node.observe()] == ["inet ringfence chain input"]


def test_f03_foreign_tables_are_removed_only_where_the_baseline_says_so(node: FencedNode) -> None:
    table = FOREIGN.format(hook="output", priority=-1, rule="meta mark set 7")
    node.namespace.nft(table)
    node.repair(node.observe())
    assert [drift.key for drift in node.observe()] == ["foreign:inet other before"]
    node.settle(text='foreign = "remove"\n' + BASELINE)
    assert "inet other" not in node.namespace.ruleset()
    assert node.observe() == []
    known = '[[known]]\nfamily = "inet"\ntable = "other"\nreason = "test"\n'
    node.settle(text='foreign = "remove"\n' + BASELINE + known)
    node.namespace.nft(table)
    node.repair(node.observe())
    assert "inet other" in node.namespace.ruleset()
    assert node.observe() == []


def test_f04_a_change_undone_before_anyone_looked_is_told_with_its_culprit(node: FencedNode) -> None:
    noted: list[Culprit] = []

    def note(culprit: Culprit | None) -> None:
        if culprit is not None:
            noted.append(culprit)
            node.netfilter.note(culprit)

    events = node.namespace.inside(lambda: Events(note))
    try:
        node.namespace.run("nft", "insert rule inet ringfence input accept")
        listed = node.namespace.run("nft", "-a", "list", "chain", "inet", "ringfence", "input").stdout
        handle = next(line for line in listed.splitlines() if line.strip().startswith("accept")).rpartition(
            " "
        )[2]
        node.namespace.run("nft", f"delete rule inet ringfence input handle {handle}")
        until(lambda: len(noted) >= 2)
        assert node.observe() == []
        notices = node.notices()
        assert {notice.kind for notice in notices} == {"firewall.touched"}
        assert {notice.detail["name"] for notice in notices} == {"nft"}
        assert node.notices() == []
    finally:
        events.close()


def test_f04_a_foreign_change_is_healed_by_event_with_its_culprit_and_fast(node: FencedNode) -> None:
    healing = Healing(node)
    lasting = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{node.namespace.name}", "nft", "-i"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    assert lasting.stdin is not None
    took_ms = []
    for number in range(20):
        begun = time.monotonic()
        lasting.stdin.write("insert rule inet ringfence input accept\n")
        healing.wait_healed(number + 1)
        took_ms.append((healing.healed_at[number] - begun) * 1000)
    lasting.stdin.close()
    lasting.wait()
    drift = healing.drifts[0]
    assert drift.key == "inet ringfence chain input"
    assert f"nft (pid {lasting.pid}, uid 0" in drift.culprit and drift.culprit.endswith(": nft -i")
    assert f"of {sys.executable.rpartition('/')[2][:6]}" in drift.culprit or "of " in drift.culprit
    took_ms.sort()
    print(f"healed in ms: p50 {took_ms[10]:.1f}, max {took_ms[-1]:.1f}")
    assert took_ms[10] < 1000, "the promise of 50 ms is measured by the bench, on a machine at rest"
    assert node.ours() == []


def test_f03_who_made_a_foreign_table_is_told_as_long_as_it_stands(node: FencedNode) -> None:
    events = node.namespace.inside(lambda: Events(lambda culprit: culprit and node.netfilter.note(culprit)))
    try:
        node.namespace.nft(FOREIGN.format(hook="input", priority=-400, rule="tcp dport 8080 drop"))
        until(lambda: bool(node.netfilter._noted))
    finally:
        events.close()
    for _ in range(3):
        (drift,) = node.observe()
        assert drift.culprit.startswith("nft (pid ")
    assert node.notices() == []


def test_f11_another_program_that_flushes_everything_does_not_open_the_node(
    node: FencedNode, topology: Topology
) -> None:
    client = topology.sites["fw"].the_client.namespace
    healing = Healing(node)
    for number in range(5):
        node.namespace.nft(
            "flush ruleset\ntable ip docker {\nchain c {\ntype nat hook postrouting priority 100\nmasquerade\n}\n}\n"
        )
        healing.wait_healed(number + 1)
        assert not opens(client, node.host.enclave[0], 9090, 0.1)
    assert infer(client, node.host.enclave[0])
    assert "table ip docker" in node.namespace.ruleset(), "only told, not taken away"
    assert {drift.key for drift in node.observe()} == {"foreign:ip docker c"}


def test_f05_a_thousand_changes_a_second_are_healed_in_few_passes(node: FencedNode) -> None:
    healing = Healing(node)
    lines = "insert rule inet ringfence input accept\n" * 1000
    node.namespace.run("nft", "-i", text=lines)
    until(lambda: bool(healing.healed_at), 10)
    until(lambda: node.ours() == [] and healing._wakes.empty(), 10)
    assert healing.passes < 500
    assert node.ours() == []


def test_f05_a_storm_of_one_process_is_told_in_few_words(node: FencedNode) -> None:
    heard: list[Culprit | None] = []

    def slow(culprit: Culprit | None) -> None:
        heard.append(culprit)
        time.sleep(0.02)

    events = node.namespace.inside(lambda: Events(slow))
    try:
        node.namespace.run("nft", "-i", text="insert rule inet ringfence input accept\n" * 1000)
        time.sleep(0.2)
    finally:
        events.close()
    assert 0 < len(heard) < 200


def test_own_commits_wake_nobody_and_unwatched_ones_are_noticed_by_their_number(node: FencedNode) -> None:
    heard: list[Culprit | None] = []
    events = node.namespace.inside(lambda: Events(heard.append))
    try:
        before = node.do(node.netfilter.generation)
        node.do(lambda: node.netfilter.load(node.probe.text()))
        assert node.do(node.netfilter.generation) > before
        time.sleep(0.2)
        assert heard == []
        events._seen -= 1  # as if an announcement had been lost
        until(lambda: bool(heard), 7)
        assert heard[0] is None
    finally:
        events.close()


def test_f10_names_that_try_to_be_syntax_reach_the_culprit_cleaned(node: FencedNode) -> None:
    heard: list[Culprit | None] = []
    events = node.namespace.inside(lambda: Events(heard.append))
    try:
        program = (
            "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, b'x\\n\\x1b[31m;}', 0, 0, 0);"
            "import nftables; nftables.Nftables().cmd('flush table inet ringfence'); time.sleep(1)"
        )
        node.namespace.run(sys.executable, "-c", program)
        until(lambda: bool(heard))
        assert heard[0] is not None
        assert heard[0].name.startswith("x") and heard[0].describe().isprintable()
        assert heard[0].touched("inet", "ringfence")
    finally:
        events.close()


def test_a_bad_batch_is_refused_whole_and_the_dry_run_says_why(node: FencedNode) -> None:
    before = node.namespace.ruleset()
    bad = node.probe.text() + "add rule inet ringfence nowhere accept\n"
    with pytest.raises(NetfilterError, match="No such file"):
        node.do(lambda: node.netfilter.load(bad))
    with pytest.raises(Rejected) as refused:
        node.do(lambda: node.netfilter.check(bad))
    assert refused.value.code == "firewall.refused"
    assert node.namespace.ruleset() == before


def test_the_dry_run_leaves_no_trace(node: FencedNode) -> None:
    before, generation = node.namespace.ruleset(), node.do(node.netfilter.generation)
    node.settle(text=BASELINE)
    node.do(lambda: node.netfilter.check(node.probe.text() + "# another text\n"))
    assert node.namespace.ruleset() == before
    assert node.do(node.netfilter.generation) == generation


def test_the_end_of_the_agent_leaves_the_rules(node: FencedNode) -> None:
    before = node.namespace.ruleset()
    other = node.namespace.inside(Netfilter)
    other.close()
    assert node.namespace.ruleset() == before
