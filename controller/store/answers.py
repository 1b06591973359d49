"""Rows of answers that are kept by Idempotency-Key. What may be done with them is in `controller.fleet.once`."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update

from controller.records import Record
from controller.store import Transaction
from controller.store.schema import answers_kept

SWEPT_AT_ONCE = 1000


class KeptRow(Record, frozen=True, kw_only=True):
    """One key of one account."""

    request_sha256: bytes
    holder: str
    """The request that carries it out."""
    begun_at: float
    held_at: float
    """Since when it is this holder."""
    acted: int
    """1 once something of it was stored."""
    answer: bytes | None
    """Sealed; None until it was given."""


_COLUMNS = tuple(answers_kept.c[name] for name in KeptRow.__struct_fields__)


def _of(account: str, key_sha256: bytes) -> ColumnElement[bool]:
    return and_(answers_kept.c.account == account, answers_kept.c.key_sha256 == key_sha256)


def load(tx: Transaction, account: str, key_sha256: bytes) -> KeptRow | None:
    """One row, which nobody else changes until this transaction ends."""
    row = tx.execute(select(*_COLUMNS).where(_of(account, key_sha256)).with_for_update()).first()
    return None if row is None else KeptRow(**row._mapping)


def add(
    tx: Transaction, account: str, key_sha256: bytes, *, request_sha256: bytes, holder: str, now: float
) -> None:
    """Raises the database's own integrity error where somebody was faster."""
    tx.execute(
        insert(answers_kept).values(
            account=account,
            key_sha256=key_sha256,
            request_sha256=request_sha256,
            holder=holder,
            begun_at=now,
            held_at=now,
            acted=0,
            bytes=0,
        )
    )


def take_over(tx: Transaction, account: str, key_sha256: bytes, holder: str, now: float) -> None:
    """Give it to another holder."""
    tx.execute(update(answers_kept).where(_of(account, key_sha256)).values(holder=holder, held_at=now))


def mark_acted(tx: Transaction, account: str, key_sha256: bytes, holder: str) -> bool:
    """Say that something of it is stored with this transaction; whether it is still this holder's."""
    mine = and_(_of(account, key_sha256), answers_kept.c.holder == holder)
    return tx.execute(update(answers_kept).where(mine).values(acted=1)).rowcount == 1


def keep(tx: Transaction, account: str, key_sha256: bytes, holder: str, answer: bytes) -> None:
    """Keep the answer."""
    mine = and_(_of(account, key_sha256), answers_kept.c.holder == holder)
    tx.execute(update(answers_kept).where(mine).values(answer=answer, bytes=len(answer)))


def remove(tx: Transaction, account: str, key_sha256: bytes) -> None:
    """Forget a key."""
    tx.execute(delete(answers_kept).where(_of(account, key_sha256)))


def remove_idle(tx: Transaction, account: str, key_sha256: bytes, holder: str) -> None:
    """Forget a key of this holder of which nothing was stored."""
    idle = and_(answers_kept.c.holder == holder, answers_kept.c.acted == 0)
    tx.execute(delete(answers_kept).where(_of(account, key_sha256), idle))


def used(tx: Transaction, account: str) -> tuple[int, int]:
    """Keys of an account, and bytes of their answers."""
    counted = select(func.count(), func.coalesce(func.sum(answers_kept.c.bytes), 0))
    keys, size = tx.execute(counted.where(answers_kept.c.account == account)).one()
    return int(keys), int(size)


def sweep(tx: Transaction, before: float) -> int:
    """Forget keys from before then, some at a time; returns how many went."""
    some = (
        select(answers_kept.c.account, answers_kept.c.key_sha256)
        .where(answers_kept.c.begun_at <= before)
        .limit(SWEPT_AT_ONCE)
    )
    rows = tx.execute(some).all()
    for account, key_sha256 in rows:
        tx.execute(delete(answers_kept).where(_of(account, key_sha256), answers_kept.c.begun_at <= before))
    return len(rows)
