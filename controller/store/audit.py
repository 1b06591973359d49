"""Rows of the audit log: append, read, prove. Nothing here changes or removes a row.

Each row gets the next number, the leaf hash of its line, and with it the inner nodes that have become whole
(`contract.merkle`): one more row for each act on average. Relies on one writer at a time: SQLite has no other, on
PostgreSQL an advisory lock is held until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, insert, select, text

from contract.audittrail import NO_LINE, Entry, encode_entry
from contract.merkle import fold, inclusion_proof, leaf_hash, node_hash, peaks_of
from controller.records import AuditView
from controller.store import Transaction
from controller.store.schema import audit, audit_checkpoints, audit_nodes

_APPEND_LOCK = 0x52464155
_ACT = (audit.c.number, audit.c.at, audit.c.actor, audit.c.act, audit.c.target, audit.c.reason)


def lock(tx: Transaction) -> None:
    """Until this transaction ends no other controller appends or signs."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _APPEND_LOCK})


def note(tx: Transaction, *, actor: str, act: str, target: str, reason: str, now: float) -> None:
    """Write down who did what, and why."""
    lock(tx)
    last = tx.execute(select(audit.c.number, audit.c.leaf).order_by(audit.c.number.desc()).limit(1)).first()
    number, previous = (1, NO_LINE) if last is None else (last.number + 1, last.leaf.hex())
    entry = Entry(
        number=number, at=now, actor=actor, act=act, target=target, reason=reason, previous=previous
    )
    leaf = leaf_hash(encode_entry(entry))
    tx.execute(
        insert(audit).values(
            number=number, at=now, actor=actor, act=act, target=target, reason=reason, leaf=leaf
        )
    )
    _grow(tx, number - 1, leaf)


def _grow(tx: Transaction, position: int, top: bytes) -> None:
    """Store the inner nodes that the new leaf has made whole."""
    level = 0
    while position & 1:
        top = node_hash(_node(tx, level, position - 1), top)
        position, level = position >> 1, level + 1
        tx.execute(insert(audit_nodes).values(level=level, position=position, hash=top))


def _node(tx: Transaction, level: int, position: int) -> bytes:
    if level == 0:
        found = tx.execute(select(audit.c.leaf).where(audit.c.number == position + 1))
    else:
        found = tx.execute(
            select(audit_nodes.c.hash).where(audit_nodes.c.level == level, audit_nodes.c.position == position)
        )
    return bytes(found.scalar_one())


def size(tx: Transaction) -> int:
    """How many acts there are."""
    return int(tx.execute(select(func.coalesce(func.max(audit.c.number), 0))).scalar_one())


def root(tx: Transaction, of: int) -> bytes:
    """The Merkle root over the first `of` acts."""
    return fold([_subtree(tx, begin, end) for begin, end in peaks_of(of)])


def path(tx: Transaction, number: int, of: int) -> list[bytes]:
    """The audit path of one act in the tree of the first `of`."""
    return inclusion_proof(number - 1, of, lambda begin, end: _subtree(tx, begin, end))


def _subtree(tx: Transaction, begin: int, end: int) -> bytes:
    level = (end - begin).bit_length() - 1
    return _node(tx, level, begin >> level)


def notes(tx: Transaction, *, after: int, limit: int) -> list[AuditView]:
    """Oldest first from the cursor."""
    rows = tx.execute(select(*_ACT).where(audit.c.number > after).order_by(audit.c.number).limit(limit))
    return [AuditView(**row._mapping) for row in rows]


def lines(tx: Transaction, *, after: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbers and lines from the cursor, as they would be written today: what was changed since shows."""
    previous = NO_LINE if after == 0 else None
    rows = tx.execute(
        select(*_ACT, audit.c.leaf)
        .where(audit.c.number >= after)
        .order_by(audit.c.number)
        .limit(limit + (after > 0))
    )
    for row in rows:
        if previous is not None and row.number > after:
            entry = Entry(
                number=row.number,
                at=row.at,
                actor=row.actor,
                act=row.act,
                target=row.target,
                reason=row.reason,
                previous=previous,
            )
            yield row.number, encode_entry(entry)
        previous = row.leaf.hex()


def keep_checkpoint(tx: Transaction, of: int, note_: str, now: float) -> None:
    """Store a signed checkpoint; one of the same size stays as it is."""
    there = tx.execute(select(audit_checkpoints.c.size).where(audit_checkpoints.c.size == of)).first()
    if there is None:
        tx.execute(insert(audit_checkpoints).values(size=of, note=note_, at=now))


def last_checkpoint(tx: Transaction) -> tuple[int, str] | None:
    """Size and note of the newest checkpoint."""
    found = tx.execute(
        select(audit_checkpoints.c.size, audit_checkpoints.c.note)
        .order_by(audit_checkpoints.c.size.desc())
        .limit(1)
    ).first()
    return None if found is None else (found.size, found.note)
