"""Whole databases: from SQLite to PostgreSQL, into an archive and back; what is not whole or not empty is refused."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy

from contract.errors import Rejected
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.store import Store, audit, copying, engine_of, migrate, replicas
from controller.store.schema import metadata
from tests.parts.fleets import ACTOR, T0, FleetLab, drift, event
from tests.parts.postgres import Postgres

_names = itertools.count()


def quiet(table: str, rows: int) -> None:
    """No progress."""


async def filled(lab: FleetLab) -> FleetLab:
    """A fleet with something in most tables."""
    await lab.site("factory", SitePolicy(interval_s=60))
    for number in range(1, 4):
        await lab.enrol(f"press-{number}")
        await lab.report(f"press-{number}", events=[event(1), event(2)], drifts=[drift("kernel.x", "2")])
    await lab.fleet.set_labels("press-1", {"line": "3"}, actor=ACTOR, reason="test", now=T0)
    await lab.fleet.isolate_node("press-2", actor=ACTOR, reason="test \N{SNOWMAN}", now=T0)
    await lab.fleet.release_node("press-2", actor=ACTOR, reason="test", now=T0)
    return lab


def dump(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, in an order of its own."""
    engine = engine_of(url)
    with engine.connect() as tx:
        found = {
            table.name: sorted((tuple(row) for row in tx.execute(sqlalchemy.select(*table.c))), key=repr)
            for table in metadata.sorted_tables
            if table.name not in copying.LEFT_OUT
        }
    engine.dispose()
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_everything_goes_from_sqlite_to_postgresql_and_ids_go_on(
    lab: FleetLab, database_url: str, postgres_server: Postgres
) -> None:
    await filled(lab)
    target = postgres_server.create(f"copy{next(_names)}")
    before = dump(database_url)
    done: dict[str, int] = {}
    frames = copying.read(database_url, T0, progress=quiet, stopped=True)
    counts = await asyncio.to_thread(copying.write, target, frames, progress=done.__setitem__)
    assert dump(target) == before == dump(database_url)
    assert counts["nodes"] == 3 and done["events"] == counts["events"]
    store = Store(target)
    there = FleetLab(store)
    last = (await there.fleet.counts(scope=EVERYWHERE)).last_event
    await there.fleet.isolate_site("factory", actor=ACTOR, reason="test", now=T0)
    assert (await there.fleet.counts(scope=EVERYWHERE)).last_event == last + 1
    store.close()


async def test_a_backup_of_either_database_is_put_back_into_either(
    lab: FleetLab, database_url: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    await filled(lab)
    archive = tmp_path / "backup"
    await asyncio.to_thread(copying.save, archive, copying.read(database_url, T0, progress=quiet))
    assert archive.stat().st_mode & 0o777 == 0o600
    targets = (f"sqlite:///{tmp_path / 'back.db'}", postgres_server.create(f"copy{next(_names)}"))
    for url in targets:
        await asyncio.to_thread(
            copying.write, url, copying.load(archive), progress=quiet, restored_at=T0 + 100
        )
        before, after = dump(database_url), dump(url)
        assert after.pop("restores") and not before.pop("restores")
        assert before == after
        store = Store(url)
        there = FleetLab(store)
        last = (await there.fleet.counts(scope=EVERYWHERE)).last_event
        await there.fleet.isolate_site("factory", actor=ACTOR, reason="test", now=T0)
        # A receiver that had seen later events of the lost days still gets what comes now.
        assert (await there.fleet.counts(scope=EVERYWHERE)).last_event > last + copying.EVENT_GAP
        store.close()


async def test_a_backup_is_one_moment_while_others_write(
    lab: FleetLab, database_url: str, tmp_path: Path
) -> None:
    await filled(lab)
    frames = copying.read(database_url, T0, progress=quiet)
    read = [next(frames), next(frames)]
    size = await lab.store.run(audit.size)
    await asyncio.wait_for(
        lab.fleet.isolate_site("factory", actor=ACTOR, reason="meanwhile", now=T0), 30
    )  # nobody waits for the reader
    read += list(frames)
    counts = await asyncio.to_thread(
        copying.write, f"sqlite:///{tmp_path / 'one.db'}", read, progress=quiet, restored_at=T0
    )
    assert counts["audit"] == size


async def test_a_target_that_holds_anything_is_refused_and_left_alone(
    lab: FleetLab, database_url: str, tmp_path: Path
) -> None:
    await filled(lab)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    migrate(other)
    store = Store(other)
    await FleetLab(store).site("mine")
    store.close()
    before = dump(other)
    with pytest.raises(Rejected, match=r"store\.not-empty"):
        copying.write(other, copying.read(database_url, T0, progress=quiet), progress=quiet)
    assert dump(other) == before


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_source_on_which_a_controller_runs_is_not_moved(lab: FleetLab, database_url: str) -> None:
    await lab.fleet.start(name="one", now=T0)
    with pytest.raises(Rejected, match=r"store\.in-use"):
        list(copying.read(database_url, T0 + 1, progress=quiet, stopped=True))
    list(copying.read(database_url, T0 + 2 * replicas.LEASE_S, progress=quiet, stopped=True))
    await lab.fleet.leave()
    list(copying.read(database_url, T0 + 1, progress=quiet, stopped=True))


def _cut(archive: Path) -> None:
    content = gzip.decompress(archive.read_bytes())
    archive.write_bytes(gzip.compress(content[: len(content) // 2]))


def _truncated(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])


def _noise(archive: Path) -> None:
    archive.write_bytes(b"no archive")


def _without_a_row(archive: Path) -> None:
    frames = list(copying.load(archive))
    for frame in frames:
        if isinstance(frame, copying.Rows) and frame.table == "events":
            frame.rows.pop()
    archive.unlink()
    copying.save(archive, frames)


def _rewritten(archive: Path) -> None:
    frames = list(copying.load(archive))
    for frame in frames:
        if isinstance(frame, copying.Rows) and frame.table == "audit":
            frame.rows[0][frame.columns.index("actor")] = "somebody else"
    archive.unlink()
    copying.save(archive, frames)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", [_cut, _truncated, _noise, _without_a_row, _rewritten])
async def test_c03_a_damaged_archive_leaves_the_target_empty(
    lab: FleetLab, database_url: str, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    await filled(lab)
    archive, target = tmp_path / "backup", f"sqlite:///{tmp_path / 'back.db'}"
    copying.save(archive, copying.read(database_url, T0, progress=quiet))
    damage(archive)
    with pytest.raises(Rejected, match=r"store\.damaged"):
        copying.write(target, copying.load(archive), progress=quiet, restored_at=T0)
    assert not any(dump(target).values())


def _older_schema(url: str) -> None:
    engine = engine_of(url)
    with engine.begin() as tx:
        tx.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()


async def test_a_program_that_is_older_than_the_schema_says_so_and_a_running_one_goes_on(
    lab: FleetLab, database_url: str
) -> None:
    await filled(lab)
    _older_schema(database_url)
    with pytest.raises(Rejected, match=r"store\.newer.*9999"):
        migrate(database_url)
    with pytest.raises(Rejected, match=r"store\.schema"):
        list(copying.read(database_url, T0, progress=quiet))
    await lab.report("press-1", number=2, now=T0 + 60)
