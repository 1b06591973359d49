"""Whole databases: read all tables in one snapshot, write them into an empty one. SQLite and PostgreSQL, in any direction.

An archive is one gzip file of frames: a head, rows of the tables in the order of their foreign keys, and an end that says how
many there were. Each frame is its length (4 bytes, big endian) and MessagePack. Refuses what is not whole, what is of another
schema, and to write into tables that hold anything. One transaction: what fails leaves the target as it was.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec import Struct
from sqlalchemy import Table, func, insert, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

from contract.errors import Rejected
from contract.merkle import leaf_hash, root_of
from controller.store import MIGRATIONS, StoreUnavailable, audit, engine_of, migrate, replicas, restores
from controller.store.schema import metadata

FORMAT = 1
CHUNK_ROWS = 1000
MAX_FRAME_BYTES = 1 << 30
EVENT_GAP = 1_000_000
"""After a restore event ids go on so much higher: a receiver's cursor is never ahead of what it has not seen."""
LEFT_OUT = frozenset({"controllers", "socket_questions"})
"""Leases of processes, and what they ask each other at this moment."""

Progress = Callable[[str, int], None]
"""Told a table's name and how many of its rows are done."""


class Head(Struct, tag=True):
    """Begins an archive."""

    format: int
    schema: str
    at: float


class Rows(Struct, tag=True):
    """Some rows of a table, in the order of `columns`."""

    table: str
    columns: list[str]
    rows: list[list[object]]


class End(Struct, tag=True):
    """Ends an archive: how many rows there are, and the highest id ever given."""

    counts: dict[str, int]
    last_ids: dict[str, int]


Frame = Head | Rows | End
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Head | Rows | End).decode


def newest_schema() -> str:
    """The schema that this program knows."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return str(ScriptDirectory.from_config(config).get_current_head())


def _tables() -> list[Table]:
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def read(url: str, now: float, *, progress: Progress, stopped: bool = False) -> Iterator[Frame]:
    """Read a database in one snapshot; nothing in it changes, and nobody who writes waits.

    `stopped`: no controller may be running on it. Raises Rejected `store.schema`, `store.in-use`, StoreUnavailable.
    """
    engine = engine_of(url, begin="BEGIN")
    try:
        with engine.connect() as plain:
            tx = plain
            if tx.dialect.name == "postgresql":
                tx = plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with tx.begin():
                _check_schema(tx)
                if stopped and replicas.alive(tx, now):
                    raise Rejected(
                        "store.in-use", "a controller runs on it: stop it first, or what it does now is lost"
                    )
                yield Head(FORMAT, newest_schema(), now)
                counts: dict[str, int] = {}
                for table in _tables():
                    counts[str(table.name)] = 0
                    names = [str(column.name) for column in table.c]
                    found = tx.execution_options(yield_per=CHUNK_ROWS).execute(select(*table.c))
                    for part in found.partitions(CHUNK_ROWS):
                        counts[table.name] += len(part)
                        yield Rows(str(table.name), names, [list(row) for row in part])
                        progress(table.name, counts[table.name])
                yield End(
                    counts, {str(table.name): _last_id(tx, table) for table in _tables() if _counted(table)}
                )
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailable(str(error.orig)) from error
    finally:
        engine.dispose()


def write(
    url: str, frames: Iterable[Frame], *, progress: Progress, restored_at: float | None = None
) -> dict[str, int]:
    """Write into an empty database, made here where there is none; returns the rows by table, counted in the target.

    `restored_at`: it is a backup of an earlier day; the controller will ask a person (fleet.restoring). Raises Rejected
    `store.schema`, `store.not-empty`, `store.damaged`, StoreUnavailable.
    """
    migrate(url)
    engine = engine_of(url)
    try:
        with engine.begin() as tx:
            full = [
                table.name for table in _tables() if tx.execute(select(table).limit(1)).first() is not None
            ]
            if full:
                raise Rejected(
                    "store.not-empty", f"the target holds rows already ({full[0]}): name an empty database"
                )
            head, end = _fill(tx, frames, progress)
            counts = {str(table.name): _count(tx, table) for table in _tables()}
            if counts != end.counts:
                raise Rejected("store.damaged", "not all rows have arrived: nothing was written")
            _check_audit(tx)
            for table in _tables():
                if _counted(table):
                    gap = EVENT_GAP if restored_at is not None and table.name == "events" else 0
                    _go_on(tx, table, max(end.last_ids.get(table.name, 0), _last_id(tx, table)) + gap)
            if restored_at is not None:
                restores.add(tx, at=restored_at, backup_at=head.at)
            return counts
    except IntegrityError as error:
        raise Rejected("store.damaged", f"its rows do not fit together: {error.orig}"[:2048]) from None
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailable(str(error.orig)) from error
    finally:
        engine.dispose()


def _fill(tx: Connection, frames: Iterable[Frame], progress: Progress) -> tuple[Head, End]:
    head: Head | None = None
    counts: dict[str, int] = {}
    for frame in frames:
        if isinstance(frame, Head):
            head = frame
            if (frame.format, frame.schema) != (FORMAT, newest_schema()):
                raise Rejected(
                    "store.schema",
                    f"it is of schema {frame.schema}, this program has {newest_schema()}: use the version that wrote it",
                )
        elif isinstance(frame, Rows):
            table = metadata.tables.get(frame.table)
            if head is None or table is None or frame.columns != [column.name for column in table.c]:
                raise Rejected("store.damaged", f"{frame.table[:63]}: not a table of this schema")
            tx.execute(insert(table), [dict(zip(frame.columns, row, strict=True)) for row in frame.rows])
            counts[frame.table] = counts.get(frame.table, 0) + len(frame.rows)
            progress(frame.table, counts[frame.table])
        elif head is not None:
            return head, frame
    raise Rejected("store.damaged", "it has no end: it was cut off")


def _check_schema(tx: Connection) -> None:
    found = MigrationContext.configure(tx).get_current_revision()
    if found != newest_schema():
        raise Rejected(
            "store.schema",
            f"the database is of schema {found}, this program has {newest_schema()}: start this version's controller once",
        )


def _check_audit(tx: Connection) -> None:
    """Every act hashes to what was stored beside it, and all of them to the root. Raises Rejected `store.damaged`."""
    size = audit.size(tx)
    leaves = [leaf_hash(line) for _, line in audit.lines(tx, after=0, limit=size)]
    if len(leaves) != size or (size and root_of(leaves) != audit.root(tx, size)):
        raise Rejected("store.damaged", "its audit log does not fit together: nothing was written")


def _counted(table: Table) -> bool:
    column = next(iter(table.primary_key.columns))
    return len(table.primary_key.columns) == 1 and column.name == "id" and column.type.python_type is int


def _count(tx: Connection, table: Table) -> int:
    return int(tx.execute(select(func.count()).select_from(table)).scalar_one())


def _last_id(tx: Connection, table: Table) -> int:
    highest = int(tx.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one())
    if tx.dialect.name == "sqlite":
        if not inspect(tx).has_table("sqlite_sequence") and not _has_sequence(tx):
            return highest
        given = tx.execute(
            text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name}
        ).scalar()
    else:
        given = tx.execute(text(f"SELECT last_value FROM {table.name}_id_seq")).scalar()  # noqa: S608  (our own name)
    return max(highest, int(given or 0))


def _has_sequence(tx: Connection) -> bool:
    found = tx.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'"))
    return found.first() is not None


def _go_on(tx: Connection, table: Table, last: int) -> None:
    if last == 0:
        return
    if tx.dialect.name == "postgresql":
        tx.execute(
            text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :last)"),
            {"table": table.name, "last": last},
        )
        return
    values = {"name": table.name, "last": last}
    changed = tx.execute(text("UPDATE sqlite_sequence SET seq = :last WHERE name = :name"), values)
    if changed.rowcount == 0:
        tx.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), values)


def save(path: Path, frames: Iterable[Frame]) -> End:
    """Write an archive that only its owner can read, whole or not at all. Raises Rejected `backup.exists`, OSError."""
    if path.exists():
        raise Rejected("backup.exists", f"{path} is there already: name another file")
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    end: End | None = None
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=5) as file:
                for frame in frames:
                    content = _encode(frame)
                    file.write(len(content).to_bytes(4, "big") + content)
                    end = frame if isinstance(frame, End) else end
            raw.flush()
            os.fsync(raw.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    if end is None:
        raise Rejected("store.damaged", f"{path}: the snapshot had no end")
    return end


def load(path: Path) -> Iterator[Frame]:
    """Read an archive. Raises Rejected `store.damaged` with what is wrong, OSError."""
    try:
        with gzip.open(path, "rb") as file:
            while size := file.read(4):
                length = int.from_bytes(size, "big")
                content = file.read(length) if length <= MAX_FRAME_BYTES else b""
                if len(size) != 4 or len(content) != length:
                    raise Rejected("store.damaged", f"{path}: it was cut off")
                frame: Frame = _decode(content)
                yield frame
    except (gzip.BadGzipFile, EOFError, msgspec.DecodeError, ValueError) as error:
        raise Rejected("store.damaged", f"{path}: {error}") from None
