"""Isolation of a node in which another network namespace holds a way out of its own (ATTACKS f13); packets are the witness."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.firewall import elsewhere, namespaces
from agent.responses import isolate
from contract.messages import Drift, Posture
from tests.agent.firewall.frames import Wire, ethernet, udp4
from tests.agent.firewall.lab import BASELINE, FencedNode, Listener, opens, send_udp, until
from tests.parts.inference import Stream
from tests.parts.namespace import Namespace

INSIDE, OUTSIDE = ("10.66.0.1", "fd66::1"), ("10.66.0.2", "fd66::2")
WHERE = "pid 4242"


@pytest.fixture
def taken() -> Iterator[tuple[Namespace, Namespace]]:
    """A namespace that a card was given to, and what lies behind the card."""
    made, outside = Namespace("taken"), Namespace("beyond")
    for each in (made, outside):
        each.sysctl(net__ipv6__conf__default__accept_dad="0")
    made.ip("link", "add", "eth7", "type", "veth", "peer", "name", "far7", "netns", outside.name)
    for namespace, name, own in ((made, "eth7", INSIDE), (outside, "far7", OUTSIDE)):
        namespace.ip("addr", "add", f"{own[0]}/24", "dev", name)
        namespace.ip("addr", "add", f"{own[1]}/64", "dev", name, "nodad")
        namespace.ip("link", "set", name, "up")
        namespace.start("python3", "-m", "tests.parts.inference", "--port", "8080")
        until(lambda n=namespace: opens(n, "127.0.0.1", 8080), 20)  # type: ignore[misc]
    yield made, outside
    for each in (made, outside):
        each.remove()


@pytest.fixture
def card(taken: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch) -> namespaces.Stray:
    """No card can be given away here: that it is one is all that is put in the kernel's mouth."""
    path = f"/run/netns/{taken[0].name}"
    number = Path(path).stat().st_ino
    made = namespaces.Stray("eth7", namespaces.DEVICE, "eth7", WHERE, path, number)
    assert any((each.path, each.number) == (path, number) for each in namespaces.others())
    monkeypatch.setattr(namespaces, "strays", lambda: [made])
    return made


def look(node: FencedNode, posture: Posture) -> list[Drift]:
    """One pass of the agent; return what it leaves of namespaces."""
    node.probe.around = replace(node.probe.around, posture=posture)
    node.repair(node.observe())
    return [drift for drift in node.observe() if drift.key.startswith("netns:")]


def talks(taken: tuple[Namespace, Namespace]) -> list[bool]:
    """Tell what comes about: TCP by either side, by both families."""
    inside, outside = taken
    ways = [(inside, address) for address in OUTSIDE] + [(outside, address) for address in INSIDE]
    return [opens(namespace, address, 8080, 0.3) for namespace, address in ways]


def test_f13_a_namespace_with_a_card_of_its_own_says_nothing_in_isolation_and_talks_after_release(
    node: FencedNode, taken: tuple[Namespace, Namespace], card: namespaces.Stray
) -> None:
    inside, outside = taken
    mark = b"from a card that was given away"
    stream = Stream(inside, OUTSIDE[0])
    witness, wire = Wire(outside, "far7"), Wire(inside, "eth7", bypass=True)
    hearing = Listener(inside, 7000)
    until(lambda: all(talks(taken)), 20)
    assert stream.alive(2.0)

    left = look(node, "isolated")
    assert [(drift.key, drift.found) for drift in left] == [
        (f"netns:{WHERE} eth7", "device of the machine, cut off")
    ]
    assert not any(talks(taken)) and not stream.alive(0.5)
    wire.send(ethernet(0x88B5, mark))
    wire.send(ethernet(0x0800, udp4(INSIDE[0], OUTSIDE[0], 9, mark)))
    assert not witness.sees(mark)
    send_udp(outside, INSIDE[0], 7000)
    assert hearing.received() is None
    assert opens(inside, "127.0.0.1", 8080), "what stays inside is its own affair"

    before = inside.ip("addr"), inside.ip("route")
    node.do(lambda: isolate.Response().undo(node.probe.around))
    assert "ringfence" not in inside.ruleset()
    assert (inside.ip("addr"), inside.ip("route")) == before
    assert [drift.found for drift in look(node, "normal")] == ["device of the machine"]
    until(lambda: all(talks(taken)), 20)
    assert node.probe.around.remembered == {}
    for each in (stream, witness, wire, hearing):
        each.close()


TAMPERINGS = {
    "gone": "flush ruleset",
    "open": "insert rule netdev ringfence_apart cut_egress_1 accept",
    "asleep": "add table netdev ringfence_apart { flags dormant; }",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_f13_a_cut_that_is_taken_away_there_is_put_back(
    node: FencedNode, taken: tuple[Namespace, Namespace], card: namespaces.Stray, tampering: str
) -> None:
    inside, _ = taken
    look(node, "isolated")
    inside.nft(TAMPERINGS[tampering])
    later = time.time() + 61
    found = node.do(lambda: node.probe.observe(later))
    assert [d.found for d in found if d.key.startswith("netns:")] == ["device of the machine, not cut off"]
    node.repair(found)
    assert not any(talks(taken))
    assert [d.found for d in node.observe() if d.key.startswith("netns:")] == [
        "device of the machine, cut off"
    ]


def test_f13_an_interface_that_comes_there_later_is_cut_and_a_card_that_is_meant_is_no_exception(
    node: FencedNode, taken: tuple[Namespace, Namespace], card: namespaces.Stray
) -> None:
    inside, _ = taken
    parents = '[containers]\nmanager = "cni"\ninterfaces = ["cni0"]\naddresses = ["10.22.0.0/16"]\n'
    node.settle_text(BASELINE + parents + 'parents = ["eth7"]\nreason = "test"\n')
    assert look(node, "normal") == []
    assert look(node, "isolated") == []
    assert not any(talks(taken))
    inside.ip("link", "add", "more0", "type", "bridge")
    node.namespace.ip(
        "link", "add", "more1", "type", "bridge"
    )  # what wakes the agent: something here has changed
    try:
        assert look(node, "isolated") == []
        chains = inside.run("nft", "list", "table", "netdev", "ringfence_apart").stdout
        assert chains.count("more0") == 2, "both ways"
    finally:
        node.namespace.ip("link", "del", "more1")


def test_f13_where_the_table_cannot_be_had_the_links_go_down_and_up_again_with_release(
    node: FencedNode, taken: tuple[Namespace, Namespace], card: namespaces.Stray
) -> None:
    inside, _ = taken
    inside.batch(["link set eth7 down", "link set eth7 name eth7;}", "link set eth7;} up"])
    until(lambda: talks(taken)[0], 20)
    inside.ip("link", "add", "spare0", "type", "bridge")  # down before, and down after
    left = look(node, "isolated")
    assert [drift.found for drift in left] == ["device of the machine, cut off"]
    assert not any(talks(taken))
    node.do(lambda: isolate.Response().undo(node.probe.around))
    until(lambda: talks(taken)[0], 20)
    assert "UP" not in inside.ip("link", "show", "spare0").split(">")[0]
    assert node.probe.around.remembered == {}


def test_f13_another_namespace_under_the_same_name_is_left_alone(
    taken: tuple[Namespace, Namespace], card: namespaces.Stray
) -> None:
    remembered = {f"isolate:apart {card.number + 1}": WHERE, "firewall:x": "y"}
    with pytest.raises(FileNotFoundError):
        elsewhere.cut(card.path, card.number + 1)
    elsewhere.rejoin(remembered)
    assert remembered == {"firewall:x": "y"}, "it has ended: forgotten"
    assert "ringfence" not in taken[0].ruleset()


def test_f06_a_card_that_takes_the_name_of_the_loopback_is_cut_like_any_other(node: FencedNode) -> None:
    inside = node.namespace
    inside.ip("link", "add", "eth8", "type", "bridge")
    try:
        look(node, "isolated")
        inside.batch(["link set lo down", "link set lo name back0", "link set eth8 name lo"])
        node.do(lambda: node.probe.settle(time.time()))
        node.observe()
        held = node.do(node.netfilter.cut_devices)
        assert "lo" in held and "back0" not in held
    finally:
        inside.batch(["link set lo name eth8", "link set back0 name lo", "link set lo up", "link del eth8"])
