"""The store: group commit, refusals that are kept, failures that take nobody with them; on both databases."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from contract.errors import Rejected
from controller.permissions import EVERYWHERE
from controller.store import (
    Duplicate,
    Refused,
    Store,
    StoreUnavailable,
    Transaction,
    audit,
    events,
    migrate,
    rehearsed,
    tokens,
    under,
)
from controller.store.schema import metadata
from tests.parts.fleets import T0
from tests.parts.postgres import Postgres

OpenStore = Callable[[], Store]


def _note(actor: str) -> Callable[[Transaction], str]:
    def job(tx: Transaction) -> str:
        audit.note(tx, actor=actor, act="test", target="", reason="", now=T0)
        return actor

    return job


def _token(tx: Transaction, name: str, sha256: bytes) -> None:
    tokens.add(tx, name, [], sha256, user=None, counts_as=name, created_by="test", expires_at=None, now=T0)


async def _actors(store: Store) -> list[str]:
    return [n.actor for n in await store.run(lambda tx: audit.notes(tx, after=0, limit=10_000))]


async def test_migrations_make_exactly_the_schema_that_the_code_knows(open_store: OpenStore) -> None:
    def differences(tx: Transaction) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(tx), metadata))

    assert await open_store().run(differences) == []


async def test_migrating_twice_changes_nothing(database_url: str, open_store: OpenStore) -> None:
    store = open_store()
    await store.run(_note("before"))
    migrate(database_url)
    assert await _actors(store) == ["before"]


async def test_jobs_that_wait_together_all_get_their_own_result(open_store: OpenStore) -> None:
    store = open_store()
    results = await asyncio.gather(*(store.run(_note(f"a{n}")) for n in range(500)))
    assert results == [f"a{n}" for n in range(500)]
    assert await _actors(store) == results


async def test_one_failing_job_takes_no_other_with_it(open_store: OpenStore) -> None:
    store = open_store()

    def broken(tx: Transaction) -> str:
        audit.note(tx, actor="broken", act="test", target="", reason="", now=T0)
        raise ZeroDivisionError("a bug of ours")

    jobs = [_note("one"), broken, _note("two"), broken, _note("three")]
    results = await asyncio.gather(*(store.run(job) for job in jobs), return_exceptions=True)
    assert [str(r) if isinstance(r, str) else type(r) for r in results] == [
        "one",
        ZeroDivisionError,
        "two",
        ZeroDivisionError,
        "three",
    ]
    assert sorted(await _actors(store)) == ["one", "three", "two"]


class _Line:
    """A store whose thread is held in a job, and what was done in which order after it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def held(self, name: str) -> Callable[[Transaction], str]:
        def job(tx: Transaction) -> str:
            self.begun.set()
            assert self.go_on.wait(60)
            return self.note(name)(tx)

        return job

    def note(self, name: str) -> Callable[[Transaction], str]:
        def job(tx: Transaction) -> str:
            self.done.append(name)
            return _note(name)(tx)

        return job


async def test_c05_what_is_urgent_goes_before_all_that_waits(open_store: OpenStore) -> None:
    line = _Line(open_store())
    waiting = [asyncio.ensure_future(line.store.run(line.held("held")))]
    await asyncio.to_thread(line.begun.wait, 60)
    waiting += [asyncio.ensure_future(line.store.run(line.note(f"report {n}"))) for n in range(300)]
    await asyncio.sleep(0)
    waiting.append(asyncio.ensure_future(line.store.run(line.note("isolate"), urgent=True)))
    await asyncio.sleep(0)
    line.go_on.set()
    await asyncio.gather(*waiting)
    assert line.done == ["held", "isolate", *(f"report {n}" for n in range(300))]
    assert await _actors(line.store) == line.done


async def test_c05_a_group_that_is_worked_through_ends_early_for_what_is_urgent(
    open_store: OpenStore,
) -> None:
    line, blocked = _Line(open_store()), _Line(open_store())
    blocked.store = line.store
    first = asyncio.ensure_future(line.store.run(line.held("first")))
    await asyncio.to_thread(line.begun.wait, 60)
    jobs = [
        line.note("report 0"),
        blocked.held("report 1"),
        *(line.note(f"report {n}") for n in range(2, 100)),
    ]
    group = [asyncio.ensure_future(line.store.run(job)) for job in jobs]
    await asyncio.sleep(0)
    line.go_on.set()
    await asyncio.to_thread(blocked.begun.wait, 60)  # the second of a hundred that share a transaction
    urgent = asyncio.ensure_future(line.store.run(line.note("isolate"), urgent=True))
    await asyncio.sleep(0)
    blocked.go_on.set()
    assert await asyncio.gather(first, *group, urgent) == [
        "first",
        *(f"report {n}" for n in range(100)),
        "isolate",
    ], "each has its own result, and once"
    assert await _actors(line.store) == [
        "first",
        "report 0",
        "report 1",
        "isolate",
        *(f"report {n}" for n in range(2, 100)),
    ]


async def test_a_refusal_is_raised_and_what_was_written_with_it_stays(open_store: OpenStore) -> None:
    store = open_store()

    def refuse(tx: Transaction) -> str | Refused:
        audit.note(tx, actor="refused", act="test", target="", reason="", now=T0)
        return Refused(Rejected("test.refused", "no"))

    with pytest.raises(Rejected, match=r"test\.refused"):
        await store.run(refuse)
    assert await _actors(store) == ["refused"]


async def test_what_is_rehearsed_beside_other_jobs_leaves_nothing_and_takes_nothing_with_it(
    open_store: OpenStore,
) -> None:
    store = open_store()

    class Rehearsal:
        def on(self, fn: Callable[[Transaction], object]) -> Callable[[Transaction], object]:
            return rehearsed(fn)

    async def rehearse(actor: str) -> str:
        with under(Rehearsal()):
            return await store.run(_note(actor))

    def refused(tx: Transaction) -> Refused:
        audit.note(tx, actor="refused", act="test", target="", reason="", now=T0)
        return Refused(Rejected("x.refused"))

    async def rehearse_refusal() -> None:
        with under(Rehearsal()):
            await store.run(refused)

    real = [store.run(_note(f"real-{n}")) for n in range(50)]
    got = await asyncio.gather(*(each for n, one in enumerate(real) for each in (one, rehearse(f"dry-{n}"))))
    assert got == [each for n in range(50) for each in (f"real-{n}", f"dry-{n}")]
    with pytest.raises(Rejected, match=r"x\.refused"):
        await rehearse_refusal()
    assert sorted(await _actors(store)) == sorted(f"real-{n}" for n in range(50))


async def test_a_taken_key_is_a_duplicate(open_store: OpenStore) -> None:
    store = open_store()

    def add(tx: Transaction) -> None:
        _token(tx, "ci", b"x" * 32)

    await store.run(add)
    with pytest.raises(Duplicate):
        await store.run(add)
    assert [t.name for t in await store.run(tokens.all_)] == ["ci"]


async def test_a_closed_store_refuses(open_store: OpenStore) -> None:
    store = open_store()
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        await store.run(_note("late"))


async def test_what_was_queued_before_closing_is_done(open_store: OpenStore) -> None:
    store = open_store()
    jobs = [asyncio.ensure_future(store.run(_note(f"a{n}"))) for n in range(200)]
    await asyncio.sleep(0)
    await asyncio.to_thread(store.close)
    assert len(await asyncio.gather(*jobs)) == 200
    assert len(await _actors(open_store())) == 200


async def test_c03_without_a_database_nothing_is_promised_and_it_comes_back(
    postgres_server: Postgres, database_url: str, open_store: OpenStore
) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("an embedded database does not go away by itself")
    store = open_store()
    await store.run(_note("before"))
    postgres_server.stop()
    try:
        with pytest.raises(StoreUnavailable):
            await store.run(_note("while it is down"))
    finally:
        postgres_server.start()
    await store.run(_note("after"))
    assert await _actors(store) == ["before", "after"]


_WRITER = """
import asyncio, sys
from controller.store import Store, audit
async def main():
    store = Store(sys.argv[1])
    async def one(n):
        def job(tx):
            audit.note(tx, actor=f"{n}", act="first", target="", reason="", now=0.0)
            audit.note(tx, actor=f"{n}", act="second", target="", reason="", now=0.0)
        await store.run(job)
        print(n, flush=True)
    for base in range(0, 1_000_000, 50):
        await asyncio.gather(*(one(base + n) for n in range(50)))
asyncio.run(main())
"""


def _write_until_killed(url: str, lines: int) -> set[str]:
    """Run a writer, kill it after so many acknowledged jobs and return all that it acknowledged."""
    tree = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, url],
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
    ) as writer:
        assert writer.stdout is not None
        said = {writer.stdout.readline().strip() for _ in range(lines)}
        writer.send_signal(signal.SIGKILL)
        return said | {line.strip() for line in writer.stdout if line.endswith("\n")}


async def test_c04_killed_at_any_moment_nothing_acknowledged_is_lost_or_half_done(
    database_url: str, open_store: OpenStore
) -> None:
    said: set[str] = set()
    for lines in (1, 60, 333):
        said |= await asyncio.to_thread(_write_until_killed, database_url, lines)
        stored = await open_store().run(lambda tx: audit.notes(tx, after=0, limit=1_000_000))
        first = [n.actor for n in stored if n.act == "first"]
        second = [n.actor for n in stored if n.act == "second"]
        assert sorted(first) == sorted(second)
        assert said <= set(first)


async def test_the_event_cursor_misses_nothing_with_two_controllers(open_store: OpenStore) -> None:
    one, two = open_store(), open_store()
    done = asyncio.Event()

    async def write(store: Store, name: str) -> None:
        for n in range(60):
            await store.run(lambda tx, n=n: events.add(tx, f"{name}.{n}", "info", "", now=T0))

    async def follow() -> list[str]:
        seen: list[str] = []
        cursor, last = 0, False
        while True:
            page = await one.run(
                lambda tx, after=cursor: events.read(
                    tx, after=after, limit=7, node=None, scope=EVERYWHERE, order="up"
                )
            )
            seen += [event.kind for event in page]
            cursor = page[-1].id if page else cursor
            if last and not page:
                return seen
            last = done.is_set()

    async def write_both() -> None:
        await asyncio.gather(write(one, "one"), write(two, "two"))
        done.set()

    seen, _ = await asyncio.gather(follow(), write_both())
    assert sorted(seen) == sorted(f"{name}.{n}" for name in ("one", "two") for n in range(60))


async def test_two_controllers_that_wait_for_each_other_both_get_through(open_store: OpenStore) -> None:
    one, two = open_store(), open_store()
    if one.dialect == "sqlite":
        pytest.skip("one writer at a time cannot cross")
    await one.run(lambda tx: [_token(tx, n, n.encode()) for n in "ab"])
    both_hold_one = threading.Barrier(2)
    touch = sqlalchemy.text("UPDATE api_tokens SET used_at = 1 WHERE name = :name")

    def crossing(first: str, second: str) -> Callable[[Transaction], str]:
        tries = itertools.count()

        def job(tx: Transaction) -> str:
            tx.execute(touch, {"name": first})
            if next(tries) == 0:
                both_hold_one.wait(10)
            tx.execute(touch, {"name": second})
            return first

        return job

    assert await asyncio.gather(one.run(crossing("a", "b")), two.run(crossing("b", "a"))) == ["a", "b"]


async def test_sqlite_commits_reach_the_disk(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    migrate(url)
    store = Store(url)
    settings = await store.run(
        lambda tx: [
            tx.execute(sqlalchemy.text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    store.close()
    assert settings == ["wal", 2, 1]


def test_other_databases_are_refused() -> None:
    with pytest.raises(Rejected, match=r"store\.url"):
        Store("mysql://localhost/x")


async def test_b11_text_with_nul_is_stored_and_read_on_either_database(open_store: OpenStore) -> None:
    store = open_store()

    def job(tx: Transaction) -> str:
        events.add(tx, "k\0ind", "info", "a\0b", now=T0, node="n\0", detail={"k\0": "v\0"})
        [found] = events.read(tx, after=0, limit=10, node="n\0", scope=EVERYWHERE, order="up")
        assert found.detail == {"k\0": "v\0"}
        return found.summary

    assert await store.run(job) in ("a\0b", "a\ufffdb")
