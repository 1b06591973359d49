"""Large sets are read and filled in the kernel's own bytes: same truth, same words, and closed while it is done."""

from __future__ import annotations

import errno
import time
from dataclasses import replace

import pytest

from agent.firewall import large, listing
from agent.firewall.events import Culprit, Events
from agent.firewall.netlink import Talk
from agent.firewall.tables import LARGE, Set, Table, difference
from tests.agent.firewall.lab import BASELINE, FencedNode, opens, until
from tests.agent.firewall.test_incremental import many
from tests.parts.inference import infer
from tests.parts.topology import Topology

COUNT = 4 * LARGE
ZONE = "inet ringfence set zone4_enclave"


def ranges(count: int) -> str:
    """Return a baseline whose enclave has so many prefixes, and IPv6 addresses one by one."""
    four = [f"10.{100 + n // 64}.{n % 64 * 4}.0/{22 + n % 3}" for n in range(count)]
    six = [f"fd10:1::{n + 0x1000:x}" for n in range(count)]
    listed = ", ".join(f'"{each}"' for each in ["10.10.1.100", *four])
    also = ", ".join(f'"{each}"' for each in ["fd10:1::100", *six])
    return BASELINE.replace('"10.10.1.0/24", "fd10:1::/64"', f"{listed}, {also}")


LISTS = {"addresses": many(COUNT), "ranges": ranges(COUNT)}
CHANGES = {
    "one less": "delete element inet ringfence zone4_enclave { 10.10.1.100 }",
    "one more": "add element inet ringfence zone4_enclave { 203.0.113.9 }",
    "one with a comment": 'add element inet ringfence zone4_enclave { 203.0.113.9 comment "mine" }',
    "emptied": "flush set inet ringfence zone4_enclave",
    "one for another": "delete element inet ringfence zone4_enclave { 10.10.1.100 };"
    " add element inet ringfence zone4_enclave { 203.0.113.9 }",
}


def test_f02_large_sets_are_read_by_the_quick_way_here(node: FencedNode) -> None:
    """Or the tests below would say nothing about it."""
    assert node.do(listing._lists_tersely)
    node.settle(text=LISTS["ranges"])
    tried = node.do(lambda: node.netfilter.tried(node.probe.rules().text(live=False)))
    assert {key: held.interval for key, held in tried.elements.items()} == {
        ZONE: True,
        "inet ringfence set zone6_enclave": False,
    }


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("change", CHANGES)
def test_f02_an_element_of_a_large_set_is_seen_named_and_mended(
    node: FencedNode, kind: str, change: str
) -> None:
    node.settle(text=LISTS[kind])
    before = node.namespace.ruleset()
    node.namespace.run("nft", CHANGES[change])
    assert node.namespace.ruleset() != before
    (drift,) = node.observe()
    assert drift.key == ZONE
    if "10.10.1.100" in CHANGES[change]:
        assert '"10.10.1.100"' in drift.wanted
    if "203.0.113.9" in CHANGES[change]:
        assert "203.0.113.9" in drift.found
    if change == "emptied":
        assert " more" in drift.wanted
    node.repair([drift])
    assert node.observe() == []
    assert node.namespace.ruleset() == before


def test_f02_one_element_is_put_back_and_the_others_are_not_loaded_again(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.settle(text=LISTS["addresses"])
    heard: list[int] = []
    load = node.netfilter.load

    def watched(text: str) -> None:
        heard.append(len(text))
        load(text)

    monkeypatch.setattr(node.netfilter, "load", watched)
    talk = node.do(Talk)
    node.namespace.run("nft", CHANGES["one for another"])
    node.repair(node.observe())
    assert heard and max(heard) < 1000, "no list was loaded as text"
    held = node.do(lambda: node.netfilter.tried(node.probe.rules().text(live=False))).elements[ZONE]
    found = node.do(lambda: large.read(talk, ("inet", "ringfence", "zone4_enclave")))
    assert frozenset(found) == held.elements
    talk.close()


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "delete table inet ringfence",
        "insert rule inet ringfence input accept",
        "add chain inet ringfence output { policy accept; }",
        "add chain inet ringfence mine { type filter hook input priority -5; }",
        "add set inet ringfence mine { type ipv4_addr; elements = { 1.2.3.4 }; }; insert rule inet ringfence input"
        " ip saddr @mine accept",
        "add map inet ringfence mine { type ipv4_addr : verdict; elements = { 1.2.3.4 : accept }; };"
        " insert rule inet ringfence input ip saddr vmap @mine",
        "add element inet ringfence in_enclave_tcp { 22 }",
        "add element inet ringfence in_enclave_tcp { 22 }; flush set inet ringfence zone4_enclave;"
        " insert rule inet ringfence input accept",
    ],
)
def test_f01_whatever_was_changed_beside_a_large_set_is_as_it_was(
    node: FencedNode, topology: Topology, kind: str, change: str
) -> None:
    node.settle(text=LISTS[kind])
    before = node.namespace.ruleset()
    node.namespace.run("nft", change)
    assert node.namespace.ruleset() != before
    node.repair(node.observe())
    assert node.observe() == []
    assert node.namespace.ruleset() == before
    assert infer(topology.sites["fw"].the_client.namespace, node.host.enclave[0])


@pytest.mark.parametrize("beside", ["add table inet other", "add table inet other { flags dormant; }"])
def test_f02_beside_a_table_of_others_it_is_seen_as_well(node: FencedNode, beside: str) -> None:
    """There the ruleset is not listed tersely: it is theirs too."""
    node.settle(text=LISTS["addresses"])
    before = node.namespace.ruleset()
    node.namespace.run("nft", beside)
    for change in ("insert rule inet ringfence input accept", CHANGES["one less"]):
        node.namespace.run("nft", change)
        node.repair(node.ours())
        assert node.ours() == []
    node.namespace.run("nft", "delete table inet other")
    assert node.namespace.ruleset() == before


def test_f02_with_a_library_that_hides_too_much_it_is_seen_as_well(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_lists_tersely", lambda: False)
    test_f02_an_element_of_a_large_set_is_seen_named_and_mended(node, "addresses", "one for another")
    node.namespace.run("nft", "insert rule inet ringfence input accept")
    (drift,) = node.observe()
    assert drift.key == "inet ringfence chain input"
    node.repair([drift])
    assert node.observe() == []


def test_f02_a_list_that_the_kernel_does_not_take_as_bytes_is_loaded_as_text(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, "not as bytes")

    node.settle(text=LISTS["addresses"])
    before = node.namespace.ruleset()
    monkeypatch.setattr(large, "mend", refused)
    for change in ("flush ruleset", CHANGES["emptied"]):
        node.namespace.run("nft", change)
        node.repair(node.observe())
        assert node.observe() == []
        assert node.namespace.ruleset() == before


def test_f01_while_a_large_set_is_filled_the_rules_stand_and_only_what_it_allows_waits(
    node: FencedNode, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.settle(text=LISTS["addresses"])
    client, address = topology.sites["fw"].the_client.namespace, node.host.enclave[0]
    node.namespace.run("nft", "flush", "ruleset")
    assert opens(client, address, 9090, 1.0), "nothing denies it now"
    met: list[tuple[bool, bool]] = []
    mend = large.mend

    def watched(talk: Talk, place: tuple[str, str, str], wanted: large.Held) -> bool:
        met.append((opens(client, address, 9090, 0.3), opens(client, address, 8080, 0.3)))
        return mend(talk, place, wanted)

    monkeypatch.setattr(large, "mend", watched)
    node.repair(node.observe())
    assert met == [(False, False)]
    assert opens(client, address, 8080)
    assert not opens(client, address, 9090, 0.3)


def test_f05_who_filled_a_large_set_is_known_by_its_table(node: FencedNode) -> None:
    heard: list[Culprit | None] = []
    events = node.namespace.inside(lambda: Events(heard.append))
    try:
        listed = ", ".join(f"10.{n // 250}.{n % 250}.7" for n in range(20_000))
        node.namespace.nft(
            "add table ip other\nadd table ip6 another\nadd set ip other s { type ipv4_addr; }\n"
            f"add element ip other s {{ {listed} }}\n"
        )
        until(lambda: bool(heard), 60)
    finally:
        events.close()
    (culprit,) = heard
    assert culprit is not None
    assert culprit.name == "nft"
    assert culprit.tables == {("ip", "other"), ("ip6", "another")}


def test_f05_filling_a_large_set_wakes_nobody_and_who_commits_meanwhile_is_noticed(
    node: FencedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.settle(text=LISTS["addresses"])
    heard: list[Culprit | None] = []
    events = node.namespace.inside(lambda: Events(heard.append))
    monkeypatch.setattr(node.netfilter, "unheard", events.unheard)
    mend = large.mend

    def crossed(talk: Talk, place: tuple[str, str, str], wanted: large.Held) -> bool:
        node.namespace.nft("add table ip meanwhile")
        return mend(talk, place, wanted)

    try:
        node.namespace.nft(CHANGES["emptied"])
        until(lambda: len(heard) == 1)
        node.repair(node.observe())
        assert node.observe() == []
        time.sleep(0.3)
        assert len(heard) == 1
        monkeypatch.setattr(large, "mend", crossed)
        node.namespace.nft(CHANGES["emptied"])
        until(lambda: len(heard) == 2)
        node.repair(node.observe())
        until(lambda: heard[2:] == [None])
        node.namespace.nft("delete table ip meanwhile")
        until(lambda: len(heard) == 4 and heard[3] is not None)
    finally:
        events.close()


def test_a_large_set_is_told_its_size_so_that_a_change_of_it_is_a_whole_load() -> None:
    plain = Set(
        name="s", kind="ipv4_addr", elements=tuple(f"10.0.{n // 250}.{n % 250}" for n in range(LARGE))
    )
    assert plain.size == 2 * LARGE
    assert f"size {2 * LARGE}" in plain.text()
    for other in (
        replace(plain, elements=plain.elements[1:]),
        replace(plain, interval=True),
        replace(plain, live=True),
        replace(plain, timeout=True),
    ):
        assert other.size == 0
        assert "size" not in other.text()

    def table(elements: tuple[str, ...]) -> list[Table]:
        return [Table(name="t", sets=(replace(plain, elements=elements),), chains=())]

    more = (*plain.elements, "192.0.2.1")
    assert "192.0.2.1" in str(difference(table(plain.elements), table(more)))
    assert difference(table(plain.elements[1:]), table(plain.elements)) is None
