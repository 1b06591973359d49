"""The audit log of a real controller: written, exported, verified offline by the command, proved, held against its file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import sqlalchemy
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.audittrail import verify_trail
from contract.errors import Rejected
from controller.cli.audit import audit
from controller.fleet.auditlog import FILE_NAME, AuditLog
from controller.store import Refused, Store, Transaction
from controller.store import audit as rows
from tests.controller.live import Live, running
from tests.controller.terminal import environment
from tests.parts.fleets import T0


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller") as controller:
        yield controller


@pytest.fixture
def log(store: Store, tmp_path: Path) -> AuditLog:
    return AuditLog(store, Ed25519PrivateKey.from_private_bytes(bytes(32)), tmp_path)


@pytest.fixture
def store(open_store: object) -> Store:
    return open_store()  # type: ignore[operator, no-any-return]


def act(n: int) -> object:
    def job(tx: Transaction) -> None:
        rows.note(tx, actor=f"person-{n}", act="test", target=f"node n{n}", reason="why ✓\n", now=T0 + n / 7)

    return job


async def written(store: Store, count: int, *, first: int = 0) -> None:
    for n in range(first, first + count):
        await store.run(act(n))  # type: ignore[arg-type]


async def exported(log: AuditLog) -> list[bytes]:
    """All lines, in pages as the command gets them."""
    lines: list[bytes] = []
    while True:
        page = await log.lines(after=len(lines), limit=4)
        lines += [line.encode() for line in page.lines]
        if not page.lines:
            return lines


async def test_acts_are_numbered_chained_and_signed(store: Store, log: AuditLog) -> None:
    notes: list[bytes] = []
    for count in (0, 1, 1, 1, 4, 6):
        first = await store.run(rows.size)
        await written(store, count, first=first)
        notes.append((await log.checkpoint(now=T0)).encode())
    found = verify_trail(await exported(log), log.key, notes)
    assert (found.entries, found.covered, found.checkpoints) == (13, 13, 6)


async def test_one_that_was_rolled_back_leaves_no_gap(store: Store, log: AuditLog) -> None:
    def fails(tx: Transaction) -> None:
        act(99)(tx)  # type: ignore[operator]
        raise Rejected("test.refused")

    def refuses(tx: Transaction) -> Refused:
        act(98)(tx)  # type: ignore[operator]
        return Refused(Rejected("test.refused"))

    await written(store, 2)
    for job in (fails, refuses):
        with pytest.raises(Rejected):
            await store.run(job)  # type: ignore[arg-type]
    await written(store, 1, first=2)
    note = await log.checkpoint(now=T0)
    assert verify_trail(await exported(log), log.key, [note.encode()]).entries == 4


async def test_two_controllers_append_to_one_chain(open_store: object, tmp_path: Path) -> None:
    stores = [open_store() for _ in range(2)]  # type: ignore[operator]
    await asyncio.gather(*(written(stores[n % 2], 5, first=10 * n) for n in range(6)))
    log = AuditLog(stores[0], Ed25519PrivateKey.generate(), tmp_path)
    note = await log.checkpoint(now=T0)
    assert verify_trail(await exported(log), log.key, [note.encode()]).entries == 30


TAMPERED = {
    "edited": ("UPDATE audit SET reason = 'nothing' WHERE number = 4", "audit.chain"),
    "edited with its leaf": ("UPDATE audit SET actor = 'bob', leaf = (SELECT leaf FROM audit WHERE number = 3) "
                             "WHERE number = 4", "audit.chain"),
    "the last edited": ("UPDATE audit SET reason = 'nothing' WHERE number = 9", "audit.root"),
    "cut": ("DELETE FROM audit WHERE number = 4", "audit.number"),
    "cut at the end": ("DELETE FROM audit WHERE number = 9", "audit.cut"),
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERED)
async def test_c20_what_is_changed_in_the_database_shows_in_the_export(
    how: str, store: Store, log: AuditLog
) -> None:
    statement, code = TAMPERED[how]
    await written(store, 9)
    note = await log.checkpoint(now=T0)
    await store.run(lambda tx: tx.execute(sqlalchemy.text(statement)) and None)
    with pytest.raises(Rejected) as caught:
        verify_trail(await exported(log), log.key, [note.encode()])
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("DELETE FROM audit WHERE number > 5", "audit.cut"),
        ("UPDATE audit_nodes SET hash = (SELECT leaf FROM audit WHERE number = 1)", "audit.altered"),
    ],
)
async def test_c20_c02_a_database_from_another_day_does_not_fit_the_file(
    statement: str, code: str, store: Store, log: AuditLog
) -> None:
    await log.check_kept(now=T0)  # no file yet
    await written(store, 8)
    await log.checkpoint(now=T0)
    await written(store, 3, first=8)
    await log.check_kept(now=T0)
    await store.run(lambda tx: tx.execute(sqlalchemy.text(statement)) and None)
    with pytest.raises(Rejected) as caught:
        await log.check_kept(now=T0)
    assert caught.value.code == code


async def test_proofs_of_every_act(store: Store, log: AuditLog) -> None:
    from contract.audittrail import verify_proof

    await written(store, 11)
    for number in range(1, 12):
        proof = (await log.proof(number, now=T0)).proof
        entry, checkpoint = verify_proof(msgspec.json.encode(proof), log.key)
        assert (entry.number, entry.actor, checkpoint.size) == (number, f"person-{number - 1}", 11)
    for number in (0, 12):
        with pytest.raises(Rejected, match=r"audit\.unknown"):
            await log.proof(number, now=T0)


async def command(live: Live, folder: Path, *arguments: str) -> Result:
    """`ringfence audit ...` in its own thread, against the running controller."""
    env = environment(live, folder)
    return await asyncio.to_thread(CliRunner().invoke, audit, list(arguments), env=env)


async def test_the_command_exports_proves_and_verifies_without_the_controller(
    live: Live, tmp_path: Path
) -> None:
    await live.node("press-1")
    await live.call("POST", "/api/v1/nodes/press-1/isolate", {"reason": "smoke"})
    out, key, proof = tmp_path / "audit.jsonl", tmp_path / "key", tmp_path / "proof"
    key.write_text((await command(live, tmp_path, "key")).output)
    assert (await command(live, tmp_path, "export", "--out", str(out))).exit_code == 0
    lines = out.read_bytes().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if b'"isolated"' in line)
    assert (await command(live, tmp_path, "prove", str(number), "--out", str(proof))).exit_code == 0
    told = await command(live, tmp_path, "verify", str(out), "--key", str(key), "--json")
    assert (told.exit_code, json.loads(told.output)["entries"]) == (0, len(lines))
    told = await command(live, tmp_path, "verify-proof", str(proof), "--key", str(key), "--json")
    assert (told.exit_code, json.loads(told.output)["reason"]) == (0, "smoke")
    again = await command(live, tmp_path, "export", "--out", str(out))
    assert again.exit_code != 0, "nothing is written over"
    assert out.read_bytes().splitlines() == lines

    out.write_bytes(out.read_bytes().replace(b"smoke", b"a fire"))
    told = await command(live, tmp_path, "verify", str(out), "--key", str(key), "--json")
    assert (told.exit_code, json.loads(told.output)["verdict"]) == (1, "rejected")
    out.write_bytes(out.read_bytes()[:-1])
    assert (await command(live, tmp_path, "verify", str(out), "--key", str(key))).exit_code == 1
    key.write_text("nonsense")
    assert (await command(live, tmp_path, "verify", str(out), "--key", str(key))).exit_code == 2


async def test_acts_of_people_and_of_the_controller_are_in_it(live: Live, tmp_path: Path) -> None:
    node = await live.node("press-1")
    await live.fleet.reject_evidence("press-1", Rejected("quote.signature"), now=time.time())
    acts = [(a.actor, a.act, a.target) for a in await live.fleet.list_audit(limit=500)]
    assert ("controller", "isolated", "node press-1") in acts
    assert ("tester", "enrolment.preregistered") in [(actor, act_) for actor, act_, _ in acts]
    assert node is not None


async def test_the_file_is_written_with_each_checkpoint(live: Live, tmp_path: Path) -> None:
    status, told = await live.call("GET", "/api/v1/audit/checkpoint")
    assert status == 200
    assert (tmp_path / "controller" / FILE_NAME).read_text() == told["checkpoint"]
