"""A plan says which open connections it would cut, who would lose the controller, and of whom that is not known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.messages import Answer, BaselineRef, Refused, Sockets, SocketsWanted
from contract.sockets import Connection, Endpoint, Listening, SocketReport
from contract.wire import encode
from controller import session as sessions
from controller.foretelling import Asked, Foretelling
from controller.permissions import EVERYWHERE
from controller.rollout_records import Impact
from tests.agent.wholenode import until
from tests.controller.live import Live, answer_to, next_message, running
from tests.controller.terminal import command, environment
from tests.parts.signing import minimal_baseline
from tests.parts.simulator import Node

RULES = """
[firewall.zones.lan]
addresses = ["10.0.0.0/8"]
[[firewall.inbound]]
zone = "lan"
protocol = "tcp"
ports = [{port}]
reason = "inference API"
"""
CAMERA = Connection(
    "tcp", "there", 8080, "10.0.0.7", 5000, "eth0", 0, "root", "/system.slice/vllm.service", "python3"
)
PRINTER = Connection("tcp", "here", 40000, "10.0.0.9", 9100, "eth0", 7, "lp", "", "cupsd")
CONTROLLER = Endpoint("10.0.0.2", 8440, "eth0")
SAID = SocketReport(
    connections=[CAMERA, PRINTER], listening=[Listening("tcp", 8080, "python3")], controller=[CONTROLLER]
)


def rules(port: int, *, version: int, head: str = "", more: str = "") -> bytes:
    return minimal_baseline("factory", version, extra=head + RULES.format(port=port) + more)


def asked(node: str = "press-1", *, before: str = "factory/1", interval_s: float = 60.0) -> Asked:
    return Asked(node=node, site="factory", before=before, posture="normal", interval_s=interval_s)


def foretold(before: bytes, after: bytes, *told: tuple[Asked, SocketReport | str]) -> Impact:
    made = Foretelling({"factory/1": before, "factory/2": after}, "factory/2")
    for node, said in told:
        made.told(node, said)
    return made.impact()


def test_what_the_rules_in_force_do_not_name_either_is_not_blamed_on_the_plan() -> None:
    impact = foretold(rules(8080, version=1), rules(8081, version=2), (asked(), SAID))
    (node,) = impact.nodes
    assert (impact.cut, impact.unsure, node.closed) == (1, 1, ["tcp/8080 python3"])
    assert [(one.verdict, one.peer, one.unit) for one in node.shown] == [
        ("cut", "10.0.0.7", "vllm.service"),
        ("unsure", "10.0.0.9", ""),
    ]
    assert "do not name it either" in node.shown[1].why


def test_rules_that_stay_or_only_observe_cut_nothing() -> None:
    same = foretold(rules(8080, version=1), rules(8080, version=2), (asked(), SAID))
    assert (same.known, same.cut, same.unsure, same.nodes) == (1, 0, 0, [])
    observed = rules(8081, version=2).replace(
        b"[firewall.zones", b'[firewall]\nmode = "observe"\n[firewall.zones', 1
    )
    assert foretold(rules(8080, version=1), observed, (asked(), SAID)).cut == 0
    begins = rules(8080, version=1).replace(
        b"[firewall.zones", b'[firewall]\nmode = "observe"\n[firewall.zones', 1
    )
    assert (
        foretold(begins, rules(8080, version=2), (asked(), SAID)).cut == 1
    )  # the printer: nothing judged it before


def test_a_baseline_without_a_firewall_lets_the_controller_through_and_nothing_else() -> None:
    plain = minimal_baseline("factory", 2)
    impact = foretold(rules(8080, version=1), plain, (asked(), SAID))
    assert (impact.cut, impact.lose_controller) == (1, [])


def test_who_loses_the_controller_and_who_isolates_itself() -> None:
    elsewhere = rules(8080, version=2, more='[firewall.controller]\ninterface = "eth9"\n')
    impact = foretold(rules(8080, version=1), elsewhere, (asked(), SAID), (asked("press-2"), SocketReport()))
    assert impact.lose_controller == ["press-1"]
    assert impact.would_isolate == {}
    assert {one.node: one.controller for one in impact.nodes} == {"press-1": "cut", "press-2": "unsure"}
    hasty = elsewhere.replace(
        b"[firewall.zones", b"[baseline.offline]\nisolate_after_s = 20\n[firewall.zones", 1
    )
    impact = foretold(rules(8080, version=1), hasty, (asked(interval_s=10.0), SAID))
    assert impact.would_isolate == {"press-1": "it loses the controller, and isolates itself after 20 s"}
    silent = rules(8080, version=2).replace(
        b"[firewall.zones", b"[baseline.offline]\nisolate_after_s = 20\n[firewall.zones", 1
    )
    impact = foretold(rules(8080, version=1), silent, (asked(), "it is not connected"))
    assert list(impact.would_isolate) == ["press-1"]
    assert (
        foretold(silent.replace(b"version = 2", b"version = 1"), silent, (asked(), SAID)).would_isolate == {}
    )


def test_what_is_not_known_is_counted_and_never_none() -> None:
    told = [(asked(f"n-{n:03}"), "it is not connected") for n in range(150)]
    impact = foretold(rules(8080, version=1), rules(8081, version=2), *told, (asked(), SAID))
    (unknown,) = impact.unknown
    assert (impact.known, unknown.count, len(unknown.nodes)) == (1, 150, 100)


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setattr(sessions, "SOCKETS_S", 1.0)
    async with running(tmp_path) as controller:
        for name, value in environment(controller, tmp_path).items():
            monkeypatch.setenv(name, value)
        await controller.assign(2, extra=RULES.format(port=8080))
        await controller.push(3, extra=RULES.format(port=8081))
        yield controller


async def node(live: Live, name: str, *, new: bool = True) -> Node:
    """A node that holds factory/2; `new`: its agent tells of its connections."""
    made = await live.node(name)
    wanted = next(b for b in (await live.fleet.list_baselines(scope=EVERYWHERE)).items if b.version == 2)
    made.baseline = BaselineRef(name="factory", version=2, sha256=bytes.fromhex(wanted.sha256))
    for named in (b"", b"n" * 32 if new else b""):
        await answer_to(made, made.report(inventory_sha256=named))
    return made


async def tell(made: Node, report: bytes) -> None:
    """Answer the next SocketsWanted."""
    while not isinstance(await next_message(made), SocketsWanted):
        pass
    assert made._socket is not None
    await made._socket.send_bytes(encode(Sockets(report=report)))


async def plan(*arguments: str) -> tuple[int, str]:
    return await command("plan", "factory", "-l", "all", *arguments)


async def test_a_plan_asks_the_nodes_and_says_of_whom_it_does_not_know(live: Live) -> None:
    here, silent = await node(live, "press-1"), await node(live, "press-2")
    liar, old = await node(live, "press-3"), await node(live, "press-4", new=False)
    away = await node(live, "press-5")
    await away.close()

    async def gone() -> bool:
        return not (await live.fleet.node("press-5")).summary.connected

    await until("it has gone", gone, within_s=60)
    telling = asyncio.gather(tell(here, encode(SAID)), tell(liar, b"\xc1"))
    code, text = await plan("--json")
    await telling
    assert code == 0, text
    impact = json.loads(text)["impact"]
    assert {each["why"]: each["nodes"] for each in impact["unknown"]} == {
        "it did not answer in time": ["press-2"],
        "what it told was refused: sockets.malformed": ["press-3"],
        "its agent does not tell, or not yet": ["press-4"],
        "it is not connected": ["press-5"],
    }
    assert (impact["known"], impact["cut"], impact["cut_nodes"], impact["cut_sites"]) == (
        1,
        1,
        1,
        ["factory"],
    )
    for each in (here, silent, liar, old):  # nobody's session has suffered
        assert (await live.fleet.node(each.identity.name)).summary.connected


async def test_who_did_not_answer_is_asked_again_by_the_next_plan(live: Live) -> None:
    here = await node(live, "press-1")
    _, text = await plan("--json")
    assert json.loads(text)["impact"]["unknown"][0]["why"] == "it did not answer in time"
    assert isinstance(await next_message(here), SocketsWanted)
    telling = asyncio.create_task(tell(here, encode(SAID)))
    _, text = await plan("--json")
    await telling
    assert json.loads(text)["impact"]["known"] == 1
    late = here.report(inventory_sha256=b"n" * 32)
    assert here._socket is not None
    await here._socket.send_bytes(
        encode(Sockets(report=encode(SAID)))
    )  # the first question's answer, at last
    assert isinstance(await answer_to(here, late), Answer)
    refused = await answer_to(here, Sockets(report=encode(SAID)))
    assert isinstance(refused, Refused) and refused.code == "sockets.unasked"


async def test_the_command_shows_counts_first_and_each_connection_when_asked(live: Live) -> None:
    here = await node(live, "press-1")
    telling = asyncio.create_task(tell(here, encode(SAID)))
    code, text = await plan()
    await telling
    assert code == 0, text
    assert "1 open connection on 1 node of 1 site, of 1 node that told" in text
    assert "would lose the controller  none " in text
    assert "10.0.0.7" not in text
    line = next(line for line in text.splitlines() if line.startswith("press-1"))
    assert line.split()[1:6] == ["factory", "1", "1", "2", "kept"]
    _, text = await plan("--details")  # within two seconds the same answer is good enough
    assert "cut: tcp 10.0.0.7 port 5000 to own port 8080 (vllm.service): no rule lets it in" in text
    assert "+ inbound" in text
    assert "\\n" not in text


async def test_c16_where_nobody_tells_nothing_reads_as_none(live: Live) -> None:
    old = await node(live, "press-1", new=False)
    code, text = await plan()
    await old.close()
    assert code == 0, text
    facts = {line[:27].strip(): line[27:].strip() for line in text.splitlines()}
    assert facts["would be cut"] == "not known"
    assert facts["would lose the controller"] == facts["would isolate themselves"] == "not known"
    assert facts["not known of"] == "1 node: its agent does not tell, or not yet"


async def test_what_nobody_asked_for_ends_the_session(live: Live) -> None:
    here = await node(live, "press-1")
    refused = await answer_to(here, Sockets(report=encode(SAID)))
    assert isinstance(refused, Refused)
    assert refused.code == "sockets.unasked"
