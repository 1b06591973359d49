"""Zones by names: a real name server, the machine's own resolver, real packets, and an agent that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.firewall.answers import sorted_out
from agent.firewall.names import MAX_ADDRESSES, Names, Terms
from agent.firewall.uses import weak
from agent.probes import parse_sections
from contract.baseline import parse_baseline
from contract.errors import Rejected
from tests.agent.firewall.lab import BASELINE, FencedNode, opens, section, until
from tests.parts.inference import Stream
from tests.parts.nameserver import Zonefile
from tests.parts.topology import Topology

LIFETIME_S = 4
QUEUE = """
[zones.queue]
interfaces = ["uplink0"]
names = ["queue.plant.example"]
names_private = true

[[outbound]]
zone = "queue"
protocol = "tcp"
ports = [8080]
reason = "the model server's queue"
"""


class Resolving:
    """The process that holds the firewall, with a resolver configuration of its own."""

    def __init__(self, node: FencedNode, topology: Topology, folder: Path, text: str) -> None:
        self.node = node
        self.zonefile = Zonefile(folder / "zone.json")
        self._outside = topology.outside
        self._log = folder / "log"
        server = topology.outside.uplink[0]
        (folder / "section.toml").write_text(text)
        resolver = f"nameserver {server}\nsearch lease.example\noptions timeout:1 attempts:1\n"
        (folder / "resolv.conf").write_text(resolver)
        self._serving = topology.outside.namespace.start(
            sys.executable, "-m", "tests.parts.nameserver", server, self.zonefile.path, log=folder / "served"
        )
        mounted = f'mount --bind {folder}/resolv.conf /etc/resolv.conf && exec "$@"'
        program = [sys.executable, "-m", "tests.agent.firewall.resolving", str(folder / "section.toml")]
        self._argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", *program, str(LIFETIME_S)]
        self._argv.append(topology.controller.uplink[0])
        self._process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes]:
        return self.node.namespace.start(*self._argv, log=self._log)

    def reaches(self, address: str = "") -> bool:
        """Tell whether the node gets to the queue."""
        return opens(self.node.namespace, address or self._outside.uplink[0], 8080)

    def passes(self) -> list[dict[str, list[str]]]:
        """Return what was printed."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        assert not [line for line in lines if "Traceback" in line], lines[-1]
        return [json.loads(line) for line in lines]

    def last(self) -> dict[str, list[str]]:
        """Return the last pass."""
        found = self.passes()
        return found[-1] if found else {"found": [], "left": ["nothing yet"], "told": []}

    def finding(self, key: str) -> str:
        """Wait for a drift and return what was found there."""
        until(lambda: key in self.last()["left"])
        return next(found for at, found, _ in self.last()["found"] if at == key)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def again(self) -> None:
        """Start it anew."""
        self._process = self._begin()

    def close(self) -> None:
        """End all of it."""
        for process in (self._process, self._serving):
            process.kill()
            process.wait()


@pytest.fixture
def resolving(node: FencedNode, topology: Topology, tmp_path: Path) -> Iterator[Callable[[str], Resolving]]:
    made: list[Resolving] = []

    def make(text: str = BASELINE + QUEUE) -> Resolving:
        made.append(Resolving(node, topology, tmp_path, text))
        return made[0]

    yield make
    for each in made:
        each.close()


def elements(node: FencedNode, version: int = 4) -> str:
    """Return what the kernel holds, as the nft program shows it."""
    return node.namespace.run("nft", "list", "set", "inet", "ringfence", f"name{version}_queue").stdout


def test_a_name_opens_its_addresses_in_both_families_and_follows_them_without_drift(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology
) -> None:
    outside, neighbour = topology.outside.uplink, topology.nodes[1].uplink
    agent = resolving()
    agent.zonefile.say(queue_plant_example=[*outside])
    until(agent.reaches)
    assert opens(node.namespace, outside[1], 8080)
    assert not agent.reaches(neighbour[0])
    quiet_from = len(agent.passes())
    time.sleep(LIFETIME_S * 2.5)
    assert agent.reaches(), "answers renew it beyond its lifetime"
    assert "timeout" in elements(node)
    agent.zonefile.say(queue_plant_example=[neighbour[0]])
    until(lambda: agent.reaches(neighbour[0]), LIFETIME_S)
    until(lambda: not agent.reaches(), LIFETIME_S + 2)
    until(lambda: not opens(node.namespace, outside[1], 8080), 2)
    later = agent.passes()[quiet_from:]
    assert [line["found"] for line in later if line["found"]] == [], "coming and going is no drift"
    told = [text for line in agent.passes() for text in line["told"]]
    assert told == [f"queue.plant.example leads to {', '.join(outside)}"], "the next after five minutes"


def test_a01_when_the_agent_is_killed_the_kernel_ends_what_a_name_opened(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology
) -> None:
    agent = resolving()
    agent.zonefile.say(queue_plant_example=[*topology.outside.uplink])
    until(agent.reaches)
    agent.kill()
    killed_at = time.monotonic()
    assert agent.reaches(), "a crash closes nothing at once"
    # Asked of the kernel: on a busy machine a connection may also fail while it is still let out.
    until(lambda: "elements" not in elements(node) + elements(node, 6), LIFETIME_S + 2)
    assert time.monotonic() - killed_at <= LIFETIME_S + 1.5
    assert not agent.reaches()
    agent.again()
    until(agent.reaches)


def test_an_agent_that_starts_again_interrupts_nothing_and_finds_no_drift(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology
) -> None:
    agent = resolving()
    agent.zonefile.say(queue_plant_example=[topology.outside.uplink[0]])
    until(agent.reaches)
    stream = Stream(node.namespace, topology.outside.uplink[0])
    agent.kill()
    before = len(agent.passes())
    agent.again()
    until(lambda: len(agent.passes()) > before + 5)
    assert stream.alive() and agent.reaches()
    assert [line["found"] for line in agent.passes()[before:] if line["found"]] == []
    stream.close()


@pytest.mark.parametrize("answer", ["silent", "refused", None])
def test_a_name_without_an_answer_is_could_not_look_and_ends_by_itself(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology, answer: str | None
) -> None:
    agent = resolving()
    agent.zonefile.say(queue_plant_example=[topology.outside.uplink[0]])
    until(agent.reaches)
    if answer is None:
        agent.zonefile.say(queue_plant_example_lease_example=[topology.outside.uplink[0]])
    else:
        agent.zonefile.say(queue_plant_example=answer)
    until(lambda: agent.last()["left"] == ["name queue.plant.example"], LIFETIME_S + 2)
    assert agent.finding("name queue.plant.example") == "?"
    until(lambda: not agent.reaches(), LIFETIME_S + 2)
    assert {key for line in agent.passes()[3:] for key, _, _ in line["found"]} <= {"name queue.plant.example"}
    assert agent.zonefile.asked() == {"queue.plant.example"}, "the search list of a lease is not asked"
    agent.zonefile.say(queue_plant_example=[topology.outside.uplink[0]])
    until(agent.reaches, 10)
    until(lambda: agent.last()["left"] == [])


def test_an_answer_that_leads_inside_is_refused_and_told(
    resolving: Callable[[str], Resolving], node: FencedNode, topology: Topology
) -> None:
    """DNS rebinding: a name server of somebody else points to a neighbour, to the node itself, to the controller."""
    agent = resolving(BASELINE + QUEUE.replace("names_private = true", ""))
    agent.zonefile.say(queue_plant_example=[topology.outside.uplink[0], "127.0.0.1", "fe80::1"])
    until(lambda: agent.last()["left"] == ["name queue.plant.example answers"])
    assert "10.20.99.2 (private)" in agent.finding("name queue.plant.example answers")
    assert not agent.reaches() and "elements" not in elements(node)


def test_no_name_leads_to_the_controller(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology
) -> None:
    agent = resolving()
    own = topology.controller.uplink[0]
    agent.zonefile.say(queue_plant_example=[own, topology.outside.uplink[0]])
    until(agent.reaches)
    assert not agent.reaches(own)
    assert f"{own} (the controller's)" in agent.finding("name queue.plant.example answers")


def test_an_element_that_somebody_adds_is_drift_and_taken_out(
    resolving: Callable[[], Resolving], node: FencedNode, topology: Topology
) -> None:
    agent = resolving()
    agent.zonefile.say(queue_plant_example=[topology.outside.uplink[0]])
    until(agent.reaches)
    stranger = topology.nodes[1].uplink[0]
    node.namespace.run("nft", "add", "element", "inet", "ringfence", "name4_queue", f"{{ {stranger} }}")
    until(
        lambda: any(
            "inet ringfence set name4_queue" in key for p in agent.passes() for key, _, _ in p["found"]
        )
    )
    until(lambda: not agent.reaches(stranger))
    assert agent.reaches()


# ---- without packets: what is taken of an answer


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.5", "private"),
        ("100.64.0.1", "private"),
        ("192.0.2.1", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("64:ff9b::a00:5", "private"),
        ("64:ff9b:1::1", "private"),
        ("2002:a00:5::1", "private"),
        ("127.0.0.1", "never"),
        ("0.0.0.0", "never"),
        ("0.1.2.3", "never"),
        ("169.254.169.254", "never"),
        ("224.0.0.1", "never"),
        ("255.255.255.255", "never"),
        ("::", "never"),
        ("::1", "never"),
        ("fe80::1", "never"),
        ("ff02::1", "never"),
        ("::ffff:11.0.0.5", "never"),
        ("::ffff:127.0.0.1", "never"),
        ("::11.0.0.5", "never"),
        ("64:ff9b::7f00:1", "never"),
        ("2002:7f00:1::1", "never"),
        ("fe80::1%eth0", "never"),
        ("} ; accept", "no"),
        ("11.9.9.9", "the controller's"),
        ("64:ff9b::b09:909", "the controller's"),
    ],
)
def test_answers_that_lead_inside(text: str, why: str) -> None:
    found = sorted_out([text, "11.0.0.5", "2600::5"], private=False, controller=["11.9.9.9"])
    assert found.taken == ("11.0.0.5", "2600::5")
    (refused,) = found.refused
    assert f"({why}" in refused
    taken = sorted_out([text], private=True, controller=["11.9.9.9"]).taken
    assert bool(taken) == (why == "private")


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def names_of(answer: Callable[[str], list[str]], *names: str, clock: Clock | None = None) -> Names:
    """Return names that ask only when they are told to."""
    made = Names(
        dict.fromkeys(names or ("a.example",), Terms(60, False)),
        lambda: None,
        resolve=answer,
        clock=clock or Clock(),
    )
    made.stop()
    return made


def test_a_name_with_too_many_addresses_is_cut_and_told_and_new_ones_replace_old_ones() -> None:
    answer = [f"11.0.{number}.1" for number in range(100)]
    names = names_of(lambda name: answer)
    names.ask("a.example")
    assert len(names.snapshot().addresses["a.example"]) == MAX_ADDRESSES
    assert "100 addresses" in names.objections()["a.example"]
    answer[:] = ["12.0.0.1"]
    names.ask("a.example")
    held = dict(names.snapshot().addresses["a.example"])
    assert "12.0.0.1" in held and len(held) == MAX_ADDRESSES
    assert names.objections() == {}


def test_whoever_answers_cannot_fill_the_events() -> None:
    number, clock = 0, Clock()

    def other(name: str) -> list[str]:
        nonlocal number
        number += 1
        return [f"11.0.{number // 250}.{number % 250}"]

    names = names_of(other, clock=clock)
    told = 0
    for _ in range(200):
        names.ask("a.example")
        told += len(names.changes())
        clock.s += 3
    assert told == 2


def test_a_resolver_that_never_answers_holds_up_no_other_name_and_is_told() -> None:
    hang, clock = threading.Event(), Clock()

    def resolve(name: str) -> list[str]:
        if name == "slow.example":
            hang.wait(20)
        return ["11.0.0.1"]

    wanted = {name: Terms(60, False) for name in ("slow.example", "a.example", "b.example")}
    names = Names(wanted, lambda: None, resolve=resolve, clock=clock)
    try:
        until(lambda: all(names.snapshot().addresses[name] for name in ("a.example", "b.example")))
        clock.s += 61
        until(lambda: "slow.example" in names.failed())
        assert "no answer for" in names.failed()["slow.example"]
    finally:
        names.stop()
        hang.set()


HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n[firewall.zones.n]\nnames = ["q.example"]\n'
RULE = '{table}\nzone = "n"\nprotocol = "tcp"\nports = [1]\nreason = "r"\n'
PASSAGE = '[[firewall.forward]]\nfrom = "n"\nto = "n"\nprotocol = "tcp"\nports = [1]\nreason = "r"\n'
MACS = HEAD.replace('names = ["q.example"]', 'interfaces = ["e0"]\nmacs = ["02:00:00:00:00:01"]')
TWICE = HEAD + '[firewall.zones.m]\nnames = ["a.example", "q.example"]\nnames_private = true\n'


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (HEAD + RULE.format(table="[[firewall.inbound]]"), "firewall.inbound[0].zone"),
        (
            HEAD + RULE.format(table="[[firewall.maintenance.inbound]]"),
            "firewall.maintenance.inbound[0].zone",
        ),
        (HEAD + RULE.format(table="[[firewall.isolated.inbound]]"), "firewall.isolated.inbound[0].zone"),
        (HEAD + RULE.format(table="[[firewall.isolated.outbound]]"), "firewall.isolated.outbound[0].zone"),
        (HEAD + PASSAGE, "firewall.forward[0].from"),
        (MACS + RULE.format(table="[[firewall.outbound]]"), "firewall.outbound[0].zone"),
        (MACS + PASSAGE, "firewall.forward[0].to"),
        (TWICE, "firewall.zones.m.names[1]"),
    ],
)
def test_f10_names_and_macs_where_they_cannot_decide_are_refused_with_line_and_key(
    text: str, key: str
) -> None:
    with pytest.raises(Rejected) as refused:
        parse_sections(parse_baseline(text.encode(), file="x.toml"))
    assert f": {key}: expected" in refused.value.detail and refused.value.detail.startswith("x.toml:")


def test_check_says_how_weak_private_names_are() -> None:
    said = [".".join(map(str, each.at)) for each in weak(section(BASELINE + QUEUE))]
    assert said == ["firewall.zones.queue.names_private"]


def test_check_says_that_an_isolated_node_can_ask_for_no_names() -> None:
    kept = '[[isolated.outbound]]\nzone = "queue"\nprotocol = "tcp"\nports = [443]\nreason = "test"\n'
    said = [".".join(map(str, each.at)) for each in weak(section(BASELINE + QUEUE + kept))]
    assert said == ["firewall.zones.queue.names_private", "firewall.isolated.outbound.0.zone"]
