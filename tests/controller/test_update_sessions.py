"""Updates over real sessions and the real API: announced, asked about, accepted; judged again when what is announced
changes, without a reboot."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.learn import Learned, propose
from contract.messages import Answer, Challenge
from controller import cli as admin
from controller.permissions import EVERYWHERE
from controller.reference_records import BootView
from tests.contract.boots import COMMAND, LINUX, Boot, kernel, secure, value
from tests.controller.live import TOKENS, Live, answer_to, next_message, running
from tests.parts.simulator import Node, replayed
from tests.parts.softtpm import SoftTpm

QUESTION = '[boot]\nsecure_boot = "required"\nunannounced = "question"\n'
KERNEL = {"kernel": [value("new file").hex(), value("new image").hex()]}


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        await controller.assign(2, extra=QUESTION)
        yield controller


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def new(old: Boot) -> Boot:
    return old.changed(kernel("new"))


async def reported(node: Node, **said: object) -> Answer:
    """One report, with the logs that are asked for on the way; `said` replaces fields of its body."""
    answer = await answer_to(node, node.report(**said))
    assert isinstance(answer, Answer), answer
    if answer.number == 0:
        assert isinstance(await next_message(node), Challenge)
        answer = await answer_to(node, node.report(**said))
        assert isinstance(answer, Answer), answer
    return answer


async def booted(live: Live, node: Node, boot: Boot, resets: int) -> Node:
    """The node after a reboot, in a new session."""
    again = await live.again(node.identity)
    again.event_log = boot.raw()
    again.log_sha256 = hashlib.sha256(again.event_log).digest()
    again.pcrs = replayed(again.event_log)
    again.tpm = SoftTpm(node.identity.ek, node.identity.ak, resets=resets)
    return again


async def accepted(live: Live, name: str, boot: Boot) -> Node:
    """A node that has booted what it is held to."""
    node = await booted(live, await live.node(name), boot, 1)
    assert (await reported(node)).tier == "affirming"
    return node


def announcement(valid_from: float) -> dict[str, object]:
    """What `ringfence reference announce` sends."""
    one = {"site": "factory", "values": KERNEL, "valid_from": valid_from}
    return {"references": [one], "reason": "monthly update"}


def codes(answer: Answer) -> list[str]:
    """Codes of an answer's findings."""
    return [finding.code for finding in answer.findings]


async def test_an_announced_kernel_is_accepted_and_the_old_one_is_not_any_more(
    live: Live, old: Boot, new: Boot
) -> None:
    node = await accepted(live, "press-1", old)
    status, made = await live.call("POST", "/api/v1/references", announcement(time.time() - 1))
    assert status == 200 and made["refused"] == 0, made
    updated = await booted(live, node, new, 2)
    assert (await reported(updated)).findings == []
    assert "boot.announced" in await live.kinds("press-1")
    back = await booted(live, node, old, 3)
    answer = await reported(back)
    assert answer.tier == "contraindicated"
    assert "boot.rolled-back" in codes(answer)


async def test_a_question_is_settled_by_announcing_without_a_reboot(live: Live, old: Boot, new: Boot) -> None:
    node = await booted(live, await accepted(live, "press-1", old), new, 2)
    assert codes(await reported(node)) == ["boot.unannounced", "boot.unannounced"]
    assert (await live.call("POST", "/api/v1/references", announcement(time.time() - 1)))[0] == 200
    # The first report that follows still goes by what its session knew; with its answer the log is asked for.
    later = await reported(node)
    assert later.event_log_wanted
    assert (await reported(node)).findings == []
    [incident] = (await live.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.state) == ("update", "resolved")


async def test_a_question_is_settled_by_accepting(live: Live, old: Boot, new: Boot) -> None:
    nodes = [await booted(live, await accepted(live, f"press-{n}", old), new, 2) for n in (1, 2)]
    for node in nodes:
        assert (await reported(node)).tier == "warning"
    [incident] = (await live.fleet.list_incidents(scope=EVERYWHERE)).items
    path = f"/api/v1/incidents/{incident.id}/accept"
    assert (await live.call("POST", path, {"reason": "our update"}, role="viewer"))[0] == 403
    status, done = await live.call("POST", path, {"reason": "our update"})
    assert (status, done["affected"]) == (200, ["press-1", "press-2"])
    for node in nodes:
        assert isinstance(await next_message(node), Challenge | object)
    assert (await live.fleet.list_holds(scope=EVERYWHERE)).items == []


async def test_what_is_announced_for_later_begins_in_its_time(live: Live, old: Boot, new: Boot) -> None:
    begins = time.time() + 1.0
    assert (await live.call("POST", "/api/v1/references", announcement(begins)))[0] == 200
    node = await booted(live, await accepted(live, "press-1", old), new, 2)
    assert "boot.unannounced" in codes(await reported(node))
    while time.time() < begins:
        await reported(node)
    await reported(node)
    assert (await reported(node)).findings == []


async def test_what_a_node_says_of_itself_narrows_and_explains(live: Live, old: Boot, new: Boot) -> None:
    announced = announcement(time.time() - 1)
    announced["references"][0]["os_release"] = "debian 12"  # type: ignore[index]
    assert (await live.call("POST", "/api/v1/references", announced))[0] == 200
    package = {"name": "linux-image-amd64", "after": "6.1.82-1", "at": 1795212000.0}
    said = {"os_release": "debian 13", "packages": [package]}
    other = await booted(live, await accepted(live, "press-1", old), new, 2)
    answer = await reported(other, **said)
    assert codes(answer) == ["boot.unannounced", "boot.unannounced"]
    assert "package 'linux-image-amd64' updated on 2026-11-20 to 6.1.82-1" in answer.findings[0].detail
    that = await booted(live, await accepted(live, "press-2", old), new, 2)
    assert (await reported(that, **{**said, "os_release": "debian 12"})).findings == []
    view = await live.fleet.boot("press-2")
    assert view.reference.os_release == "debian 12"
    assert view.reference.explained != []


async def test_the_command_says_why_and_on_how_many_others(
    live: Live, old: Boot, new: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_PROFILE", str(tmp_path / "profile.json"))
    (tmp_path / "ca.pem").write_text(live.ca)
    (tmp_path / "token").write_text(TOKENS["viewer"])
    package = {"name": "linux-image-amd64", "after": "6.1.82-1", "at": 1795212000.0}
    for name in ("press-1", "press-2", "press-3"):
        node = await booted(live, await accepted(live, name, old), new, 2)
        assert (await reported(node, os_release="debian 12", packages=[package])).tier == "warning"

    def shown(*arguments: object) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert admin.run([str(argument) for argument in arguments]) == 0
        return " ".join(out.getvalue().split())

    login = (
        "login",
        "--url",
        live.admin_url,
        "--ca",
        tmp_path / "ca.pem",
        "--token-file",
        tmp_path / "token",
    )
    await asyncio.to_thread(shown, *login)
    of_node = await asyncio.to_thread(shown, "node", "press-2")
    assert "operating system debian 12" in of_node
    assert of_node.count("2 other nodes report the same") == 2
    assert "package 'linux-image-amd64' updated on" in of_node
    of_incident = await asyncio.to_thread(shown, "incidents", 1)
    assert "FINDING NODES DETAIL" in of_incident
    assert of_incident.count("boot.unannounced 3 the kernel changed and nothing else; package") == 2


async def test_l01_a_log_forged_where_the_policy_does_not_look_teaches_nothing(live: Live, old: Boot) -> None:
    node = await booted(live, await live.node("press-1"), old, 1)
    node.event_log = old.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "quiet evil=1"))).raw()
    node.log_sha256 = hashlib.sha256(node.event_log).digest()
    await live.assign(3, extra="[boot]\npcrs = [4, 7]\n")
    for _ in range(3):  # the first may still be judged by the baseline before
        answer = await reported(node)
    assert (answer.tier, codes(answer)) == ("contraindicated", ["eventlog.replay"])
    with pytest.raises(Rejected, match=r"boot\.unknown"):
        await live.fleet.boot("press-1")


async def test_a_policy_is_learned_over_the_api(live: Live, old: Boot, new: Boot) -> None:
    await accepted(live, "press-1", old)
    status, found = await live.call("GET", "/api/v1/nodes/press-1/boot", role="viewer")
    assert status == 200
    view = msgspec.convert(found, BootView, strict=True, str_keys=True)
    assert view.is_last
    text = propose({"press-1": Learned(reference=view.reference, claims=view.claims)})
    head = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'
    policy = section(parse_baseline((head + text).encode()), "boot", BootPolicy)
    assert policy.secure_boot == "required"
    assert old.judged(policy, view.reference) == []
    assert "boot.stage" in [f.code for f in new.judged(policy, view.reference)]
    assert (await live.call("GET", "/api/v1/nodes/press-9/boot"))[0] == 404
