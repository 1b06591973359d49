"""firewalld beside the fence: the daemon as Debian has it writes, reloads and takes away its rules; packets are the witnesses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from agent.firewall import netlink
from agent.firewall.foreign import LEADS_PAST
from tests.agent.firewall.lab import BASELINE, FencedNode, Healing, opens, until
from tests.parts.debs import Unpacked, unpacked
from tests.parts.firewalld import PACKAGES, Firewalld
from tests.parts.inference import Stream
from tests.parts.topology import Topology

KNOWN = "".join(
    f'[[known]]\nfamily = "inet"\ntable = "{table}"\nreason = "the machine had firewalld before us"\n'
    # The second one stands for a moment, while firewalld loads the first anew.
    for table in ("firewalld", "firewalld_policy_drop")
)


class Start(Protocol):
    """Starts the daemon."""

    def __call__(self, zone: str, *, owns: bool = True) -> Firewalld: ...


@pytest.fixture(scope="module")
def programs() -> Unpacked:
    try:
        return unpacked(*PACKAGES)
    except RuntimeError as error:
        pytest.skip(f"firewalld cannot be had: {error}")


@pytest.fixture
def start(node: FencedNode, programs: Unpacked, tmp_path: Path) -> Iterator[Start]:
    made: list[Firewalld] = []

    def begin(zone: str, *, owns: bool = True) -> Firewalld:
        made.append(Firewalld(node.namespace, tmp_path, programs, zone=zone, owns=owns))
        made[-1].start()
        return made[-1]

    yield begin
    for each in made:
        each.close()


def passes(node: FencedNode, topology: Topology) -> list[tuple[bool, bool]]:
    """Return, for both families, whether the port that the baseline names and another one can be reached."""
    client = topology.sites["fw"].the_client.namespace
    return [(opens(client, each, 8080), opens(client, each, 9090)) for each in node.host.enclave]


def test_f11_firewalld_reloads_and_restarts_beside_the_fence_and_nothing_of_ours_changes(
    node: FencedNode, topology: Topology, start: Start
) -> None:
    node.settle(text=BASELINE + KNOWN)
    healing = Healing(node)
    firewalld = start("trusted")
    assert passes(node, topology) == [(True, False)] * 2, "what it trusts opens nothing"
    stream = Stream(topology.sites["fw"].the_client.namespace, node.host.enclave[0], port=8080)
    for _ in range(4):
        firewalld.command("--reload")
    assert "table inet firewalld" in node.namespace.ruleset()
    assert stream.alive(), "an open connection outlives it"
    assert passes(node, topology) == [(True, False)] * 2
    firewalld.stop()
    assert passes(node, topology) == [(True, False)] * 2
    firewalld.start()
    until(healing._wakes.empty)
    assert passes(node, topology) == [(True, False)] * 2
    assert node.observe() == []
    assert healing.drifts == [], "nothing of ours was touched, so nothing is counted as a fight"
    stream.close()


def test_f11_what_firewalld_refuses_stays_refused_and_is_told_where_nobody_named_it(
    node: FencedNode, topology: Topology, start: Start
) -> None:
    firewalld = start("public")
    assert passes(node, topology) == [(False, False)] * 2, "a foreign table can add drops"
    keys = {drift.key for drift in node.observe()}
    assert keys and all(key.startswith("foreign:inet firewalld") for key in keys)
    firewalld.command("--zone=public", "--add-port=8080/tcp")
    firewalld.command("--zone=public", "--add-port=9090/tcp")
    assert passes(node, topology) == [(True, False)] * 2


def test_f11_what_firewalld_rewrites_is_left_over_its_reloads_and_opens_nothing(
    node: FencedNode, topology: Topology, start: Start
) -> None:
    """Nobody named it: its NAT is told and seen through, and nothing of it can lead past our rules."""
    firewalld = start("trusted")
    healing = Healing(node)
    for option in (
        "--add-masquerade",
        "--add-forward-port=port=2222:proto=tcp:toport=8080",
        "--add-service=tftp",
    ):
        firewalld.command("--permanent", "--zone=trusted", option)
    for _ in range(2):
        firewalld.command("--reload")
    until(healing._wakes.empty)
    healing.close()
    drifts = node.observe()
    assert any("rewrites" in drift.found for drift in drifts)
    assert LEADS_PAST not in {drift.wanted for drift in drifts}
    assert LEADS_PAST not in {drift.wanted for drift in healing.drifts}
    assert "masquerade" in node.namespace.ruleset() and "redirect to :8080" in node.namespace.ruleset()
    assert not opens(topology.sites["fw"].the_client.namespace, node.host.enclave[0], 2222)


def test_f11_firewalld_is_taken_away_where_the_baseline_says_so_and_its_restart_is_no_fight_over_ours(
    node: FencedNode, topology: Topology, start: Start
) -> None:
    node.settle(text='foreign = "remove"\n' + BASELINE)
    firewalld = start("public", owns=False)
    for again in (True, False):
        assert {drift.key.partition(":")[0] for drift in node.observe()} == {"foreign"}
        node.repair(node.observe())
        assert "firewalld" not in node.namespace.ruleset()
        assert node.observe() == []
        assert passes(node, topology) == [(True, False)] * 2
        if again:  # its own reload fails without its table
            firewalld.stop()
            firewalld.start()


def test_f11_firewalld_that_owns_its_table_is_named_where_it_cannot_be_taken_away(
    node: FencedNode, topology: Topology, start: Start
) -> None:
    node.settle(text='foreign = "remove"\n' + BASELINE)
    firewalld = start("public")
    if not firewalld.can_own:
        pytest.skip("this firewalld owns no table")
    for _ in range(2):
        with pytest.raises(
            PermissionError, match=r"table inet firewalld .* owner alone, .*\(pid \d+, uid 0.*/firewalld "
        ):
            node.repair(node.observe())
        assert {drift.key.partition(":")[0] for drift in node.observe()} == {"foreign"}
    assert passes(node, topology) == [(False, False)] * 2
    firewalld.kill()  # the kernel keeps its table, which is nobody's then
    node.repair(node.observe())
    assert "firewalld" not in node.namespace.ruleset()
    assert node.observe() == []
    assert passes(node, topology) == [(True, False)] * 2


def test_f11_a_table_that_goes_while_tables_are_listed_is_no_failed_look(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = netlink.tables
    gone = [netlink.Table("inet", "firewalld_policy_drop", 0)]
    monkeypatch.setattr(netlink, "tables", lambda talk: [*listed(talk), *(gone.pop() for _ in gone[:])])
    assert node.do(node.netfilter.foreign) == []
    assert gone == []
