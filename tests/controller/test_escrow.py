"""Keys in escrow over real sessions: given out to a good attestation, refused to everything else, and all of it written down."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from contract.enrolment import ek_digest
from contract.escrow import answer, ask, opened_share, seal, unseal
from contract.messages import Answer, Challenge, Drift, KeyRefused, KeyReleased, KeyWanted, Message
from contract.quote import Counters
from contract.tpm import name_of
from controller.fleet import escrow as use_cases
from controller.store import escrow as rows
from controller.store import nodes
from tests.controller.live import Live, answer_to, next_message, running
from tests.controller.terminal import command, environment
from tests.parts.simulator import Node

KEY = b"the very secret key of a disk"


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


@pytest_asyncio.fixture
async def node(live: Live) -> Node:
    """A node that has attested and has a key in escrow."""
    made = await live.node("press-1")
    await answer_to(made, made.report())
    assert (await put(live, made))[0] == 200
    return made


def sealed_body(node: Node, name: str = "disk", **changes: object) -> dict[str, object]:
    """What `ringfence key put` sends."""
    tpm = node.tpm
    sealed, share = seal(
        KEY, node=node.identity.name, name=name, ek_public=tpm.ek_public, ak_public=tpm.ak_public
    )

    def text(value: bytes) -> str:
        return base64.b64encode(value).decode()

    return {
        "sealed": {field: text(getattr(sealed, field)) for field in sealed.__struct_fields__},
        "share": text(share),
        "ak_name": name_of(tpm.ak_public).hex(),
        "reason": "first installation",
        **changes,
    }


async def put(live: Live, node: Node, name: str = "disk", **changes: object) -> tuple[int, dict[str, object]]:
    """Put a key in escrow, in place of one that is there."""
    path = f"/api/v1/nodes/{node.identity.name}/keys/{name}"
    there = (await live.call("GET", path))[0] == 200
    headers = {"If-Match": "*"} if there else {"If-None-Match": "*"}
    return await live.call("PUT", path, sealed_body(node, name, **changes), headers=headers)


async def asked(node: Node, wanted: KeyWanted, **changes: object) -> Message:
    """What follows the answer to a report that asks for a key."""
    got = await answer_to(node, node.report(keys_wanted=[wanted], **changes))
    while isinstance(got, Answer) and got.number == 0:
        assert isinstance(await next_message(node), Challenge)
        got = await answer_to(node, node.report(keys_wanted=[wanted], **changes))
    assert isinstance(got, Answer)
    return await next_message(node)


async def refusal(node: Node, name: str = "disk", **changes: object) -> str:
    """The code with which a key is refused."""
    got = await asked(node, ask(name)[0], **changes)
    assert isinstance(got, KeyRefused) and got.name == name, got
    return got.code


async def told(live: Live, kind: str) -> list[str]:
    """Summaries of the events of a kind."""
    return [event.summary for event in await live.events() if event.kind == kind]


def drift() -> Drift:
    """A drift that is not repaired."""
    return Drift(section="sysctl", key="kernel.x", wanted="1", found="0", since=time.time())


async def test_a_good_attestation_gets_its_key_and_it_is_written_down(live: Live, node: Node) -> None:
    wanted, private = ask("disk")
    released = await asked(node, wanted)
    assert isinstance(released, KeyReleased)
    share = opened_share(released, wanted, private, node="press-1")
    seed = node.tpm.activate(released.sealed.credential_blob, released.sealed.encrypted_secret)
    assert unseal(released.sealed, seed=seed, share=share, node="press-1", name="disk") == KEY
    assert await told(live, "key.put") == ["press-1: key disk version 1 put in escrow"]
    assert await told(live, "key.released") == ["press-1: key disk version 1 released"]
    acts = [(line.act, line.actor, line.target) for line in await live.fleet.list_audit(limit=500)]
    assert ("key.released", "node press-1", "node press-1 key disk") in acts
    _, page = await live.call("GET", "/api/v1/nodes/press-1/keys", role="viewer")
    (shown,) = page["items"]  # type: ignore[misc]
    assert (shown["state"], shown["releases"]) == ("held", 1)
    assert not {"sealed", "share"} & shown.keys()


async def test_s01_the_controller_holds_nothing_that_opens_the_key(
    live: Live, node: Node, tmp_path: Path
) -> None:
    await asked(node, ask("disk")[0])
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY not in path.read_bytes()
    row = await live.controller._store.run(lambda tx: rows.get(tx, "press-1", "disk"))
    assert row is not None
    with pytest.raises(Exception, match="does not open"):
        unseal(row.content(), seed=bytes(32), share=row.share, node="press-1", name="disk")


async def test_s05_a_recorded_answer_is_of_no_use_to_the_next_request(node: Node) -> None:
    first, _ = ask("disk")
    recorded = await asked(node, first)
    assert isinstance(recorded, KeyReleased)
    later, private = ask("disk")
    with pytest.raises(Exception, match="not the answer to this request"):
        opened_share(recorded, later, private, node="press-1")


async def test_s03_another_boot_gets_no_key(live: Live, node: Node) -> None:
    node.pcrs = {**node.pcrs, 9: bytes(31) + b"\1"}
    assert await refusal(node, **{}) == "key.not-affirming"
    assert "press-1: key disk refused: key.not-affirming" in await told(live, "key.refused")


async def test_s03_a_drifting_node_gets_only_what_was_put_in_for_that(live: Live, node: Node) -> None:
    assert await refusal(node, drifts=[drift()]) == "key.not-affirming"
    assert (await put(live, node, "logs", least_tier="warning"))[0] == 200
    assert isinstance(await asked(node, ask("logs")[0], drifts=[drift()]), KeyReleased)


async def test_s04_an_isolated_node_gets_no_key_though_its_boot_is_good(live: Live, node: Node) -> None:
    status, _ = await live.call("POST", "/api/v1/nodes/press-1/isolate", {"reason": "stolen?"})
    assert status == 200
    assert await refusal(node) == "key.isolated"


async def test_s06_a_report_that_was_refused_gets_no_answer(live: Live, node: Node) -> None:
    report = node.report(keys_wanted=[ask("disk")[0]])
    forged = msgspec.structs.replace(report, pcrs={**report.pcrs, 4: bytes(31) + b"\1"})
    await answer_to(node, forged)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await next_message(node)
    assert await told(live, "key.released") == []


async def test_s06_a_request_counts_only_in_the_report_that_was_accepted_last(live: Live, node: Node) -> None:
    row = await live.controller._store.run(lambda tx: nodes.load(tx, "press-1"))
    assert row is not None and row.state.counters is not None
    old = msgspec.structs.replace(row.state.counters, clock=row.state.counters.clock - 1)
    other_boot = msgspec.structs.replace(row.state.counters, reset=row.state.counters.reset + 1)
    for counters in (old, other_boot):
        got = await released_to(live, counters)
        assert isinstance(got, KeyRefused) and got.code == "key.not-attested"
    assert isinstance(await released_to(live, row.state.counters), KeyReleased)


async def released_to(live: Live, counters: Counters) -> object:
    """What a request under a quote with these counters gets."""
    wanted, _ = ask("disk")
    return await live.controller._store.run(
        lambda tx: use_cases.release(tx, "press-1", wanted, counters, now=time.time())
    )


async def test_s07_a_key_of_another_node_or_of_another_name_is_unknown(live: Live, node: Node) -> None:
    other = await live.node("press-2")
    assert await refusal(other) == "key.unknown"
    assert await refusal(node, "disk-2") == "key.unknown"


async def test_c15_the_command_puts_a_key_in_place_of_another_only_when_told_to(
    live: Live, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, value in environment(live, tmp_path, "installer").items():
        monkeypatch.setenv(each, value)
    (tmp_path / "key").write_bytes(KEY)
    ek = ek_digest(node.tpm.ek_public)

    async def entered(name: str, *more: str) -> tuple[int, str]:
        line = ["key", "put", "press-1", name, "--from-file", str(tmp_path / "key"), "--ek", ek]
        return await command(*line, "--reason", "installed", *more)

    code, text = await entered("disk")
    assert code == 1 and "key.exists" in text and "--replace" in text
    code, text = await entered("logs", "--replace")
    assert code == 1 and "key.unknown" in text
    assert await entered("logs") == (0, "key logs of press-1: version 1\n")
    assert await entered("disk", "--replace") == (0, "key disk of press-1: version 2\n")


async def test_s08_a_revoked_key_opens_nothing_any_more(live: Live, node: Node) -> None:
    path = "/api/v1/nodes/press-1/keys/disk/revoke"
    assert (await live.call("POST", path, {"reason": "lost"}))[1]["state"] == "revoked"
    assert await refusal(node) == "key.revoked"
    row = await live.controller._store.run(lambda tx: rows.get(tx, "press-1", "disk"))
    assert row is not None and (row.sealed, row.share) == (b"", b"")
    assert (await live.call("POST", path, {"reason": "again"}))[1]["code"] == "key.decided"
    assert (await put(live, node))[1]["version"] == 2
    assert isinstance(await asked(node, ask("disk")[0]), KeyReleased)


async def test_s09_a_key_sealed_to_an_attestation_key_of_before_is_stale(live: Live, node: Node) -> None:
    status, problem = await put(live, node, "logs", ak_name="000b" + "00" * 32)
    assert (status, problem["code"]) == (422, "key.stale")
    await live.controller._store.run(
        lambda tx: tx.execute(rows.update(rows.escrow_keys).values(ak_name="000b" + "00" * 32))
    )
    assert await refusal(node) == "key.stale"


async def test_a_request_whose_key_makes_no_secret_is_refused_and_not_counted(live: Live, node: Node) -> None:
    got = await asked(node, KeyWanted(name="disk", ephemeral=bytes(32)))
    assert isinstance(got, KeyRefused) and got.code == "escrow.ephemeral"
    assert await told(live, "key.released") == []


async def test_s10_a_suspect_cannot_fill_the_audit_trail(live: Live, node: Node) -> None:
    codes = [await refusal(node, f"no-{n}") for n in range(use_cases.ASKS_PER_WINDOW + 3)]
    assert codes == ["key.unknown"] * use_cases.ASKS_PER_WINDOW + ["key.too-often"] * 3
    assert len(await told(live, "key.refused")) == use_cases.ASKS_PER_WINDOW


@pytest.mark.parametrize(
    "changes",
    [
        {"share": ""},
        {"share": "AAAA"},
        {"reason": " "},
        {"least_tier": "none"},
        {"ak_name": "xyz"},
        {"extra": 1},
    ],
)
async def test_what_is_no_sealed_key_is_refused(live: Live, node: Node, changes: dict[str, object]) -> None:
    status, _ = await put(live, node, **changes)
    assert 400 <= status < 500
    _, page = await live.call("GET", "/api/v1/nodes/press-1/keys")
    assert page["items"][0]["version"] == 1  # type: ignore[index]


async def test_the_answer_is_for_the_node_that_asked_and_names_its_key(node: Node) -> None:
    wanted, private = ask("disk")
    released = await asked(node, wanted)
    assert isinstance(released, KeyReleased)
    forged = answer(released.sealed, bytes(32), wanted, node="press-2")
    with pytest.raises(Exception, match="not the answer"):
        opened_share(forged, wanted, private, node="press-1")
