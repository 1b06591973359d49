"""Rows of stored evidence, and the larger parts that rows share (firmware logs, IMA lines, policies), each kept once.

A part is named by its SHA-256 and stays while a row names it. `used_at` is written whenever a row begins to name a
part, and only parts unused for long are removed: a row that another controller writes at this moment keeps its parts.
"""

from __future__ import annotations

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from contract.messages import Tier
from contract.result import Kind
from controller.records import Record
from controller.store import Transaction
from controller.store.schema import evidence, evidence_blobs

BLOB_REST_S = 86400.0
"""A part that no row names is removed after so long."""
PRUNED_AT_ONCE = 500


class EvidenceRow(Record, frozen=True, kw_only=True):
    """One stored piece of evidence without its larger parts."""

    id: int
    node: str
    kind: Kind
    at: float
    until: float | None
    """When the next verdict took its place; None while it is the newest."""
    reset: int
    tier: Tier
    facts: bytes
    """contract.result.Facts, encoded."""
    event_log_sha256: bytes
    ima_log_sha256: bytes
    policy_sha256: bytes
    packed: bytes
    """contract.bundle.Stored, packed."""


def add(tx: Transaction, row: EvidenceRow) -> int:
    """Store one and return its id (the database's to choose); it takes the place of the newest one of its node."""
    tx.execute(
        update(evidence).where(evidence.c.node == row.node, evidence.c.until.is_(None)).values(until=row.at)
    )
    made = tx.execute(
        insert(evidence)
        .values(
            node=row.node,
            kind=row.kind,
            at=row.at,
            until=None,
            reset=row.reset,
            tier=row.tier,
            facts=row.facts,
            event_log_sha256=row.event_log_sha256,
            ima_log_sha256=row.ima_log_sha256,
            policy_sha256=row.policy_sha256,
            packed=row.packed,
        )
        .returning(evidence.c.id)
    )
    return int(made.scalar_one())


def touch(tx: Transaction, sha256: bytes, now: float) -> bool:
    """Note that a row names this part from now on; False when it is not there."""
    done = tx.execute(update(evidence_blobs).where(evidence_blobs.c.sha256 == sha256).values(used_at=now))
    return bool(done.rowcount)


def add_blob(tx: Transaction, sha256: bytes, packed: bytes, now: float) -> None:
    """Store a part, or note its use when it is there already."""
    make = postgresql_insert if tx.dialect.name == "postgresql" else sqlite_insert
    statement = make(evidence_blobs).values(sha256=sha256, packed=packed, used_at=now)
    tx.execute(statement.on_conflict_do_update(index_elements=["sha256"], set_={"used_at": now}))


def blob(tx: Transaction, sha256: bytes) -> bytes | None:
    """One part, packed."""
    return tx.execute(
        select(evidence_blobs.c.packed).where(evidence_blobs.c.sha256 == sha256)
    ).scalar_one_or_none()


def get(tx: Transaction, node: str, id_: int | None) -> EvidenceRow | None:
    """One row of this node; the newest when no id is given."""
    statement = select(*evidence.c).where(evidence.c.node == node).order_by(evidence.c.id.desc()).limit(1)
    if id_ is not None:
        statement = statement.where(evidence.c.id == id_)
    row = tx.execute(statement).first()
    return None if row is None else EvidenceRow(**row._mapping)


def page(tx: Transaction, node: str, *, before: int | None, limit: int) -> list[EvidenceRow]:
    """Rows of a node, newest first, below the cursor."""
    statement = select(*evidence.c).where(evidence.c.node == node).order_by(evidence.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(evidence.c.id < before)
    return [EvidenceRow(**row._mapping) for row in tx.execute(statement)]


def of_boot(tx: Transaction, node: str, reset: int, *, up_to: int) -> list[EvidenceRow]:
    """Rows of one boot of a node, oldest first, as far as a row."""
    statement = (
        select(*evidence.c)
        .where(evidence.c.node == node, evidence.c.reset == reset, evidence.c.id <= up_to)
        .order_by(evidence.c.id)
    )
    return [EvidenceRow(**row._mapping) for row in tx.execute(statement)]


def keep_newest(tx: Transaction, node: str, kind: Kind, count: int) -> None:
    """Remove all but the newest `count` rows of a kind."""
    beyond = (
        select(evidence.c.id)
        .where(evidence.c.node == node, evidence.c.kind == kind)
        .order_by(evidence.c.id.desc())
        .offset(count)
        .limit(PRUNED_AT_ONCE)
    )
    tx.execute(delete(evidence).where(evidence.c.id.in_(beyond.scalar_subquery())))


def prune(tx: Transaction, *, older_than: float, now: float) -> int:
    """Remove rows stored before a moment, except the newest of each node and kind; then parts that nothing names.

    At most PRUNED_AT_ONCE of each; return how many rows went.
    """
    newest = select(func.max(evidence.c.id)).group_by(evidence.c.node, evidence.c.kind)
    old = (
        select(evidence.c.id)
        .where(evidence.c.at < older_than, evidence.c.id.not_in(newest))
        .order_by(evidence.c.at)
        .limit(PRUNED_AT_ONCE)
    )
    gone = tx.execute(delete(evidence).where(evidence.c.id.in_(old.scalar_subquery()))).rowcount
    named = (
        exists().where(column == evidence_blobs.c.sha256)
        for column in (evidence.c.event_log_sha256, evidence.c.ima_log_sha256, evidence.c.policy_sha256)
    )
    unused = (
        select(evidence_blobs.c.sha256)
        .where(evidence_blobs.c.used_at < now - BLOB_REST_S, *(~one for one in named))
        .limit(PRUNED_AT_ONCE)
    )
    tx.execute(
        delete(evidence_blobs).where(
            evidence_blobs.c.used_at < now - BLOB_REST_S,
            evidence_blobs.c.sha256.in_(unused.scalar_subquery()),
        )
    )
    return int(gone)
