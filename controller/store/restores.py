"""Rows of restores: when the database was put back to an earlier day, and who has looked at what that means."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from controller.records import Record
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import nodes, restores


class Restore(Record, frozen=True, kw_only=True):
    """A database that was put back."""

    at: float
    backup_at: float


def add(tx: Transaction, *, at: float, backup_at: float) -> None:
    """The database was put back just now."""
    tx.execute(insert(restores).values(at=at, backup_at=backup_at))


_UNCONFIRMED = Prepared(
    select(restores.c.at, restores.c.backup_at)
    .where(restores.c.confirmed_at.is_(None))
    .order_by(restores.c.at.desc())
    .limit(1)
)


def unconfirmed(tx: Transaction) -> Restore | None:
    """The newest restore that nobody has confirmed."""
    row = _UNCONFIRMED.first(tx, {})
    return None if row is None else Restore(at=row[0], backup_at=row[1])  # type: ignore[arg-type]


def confirm(tx: Transaction, *, actor: str, now: float) -> None:
    """Somebody has looked; every node's directive is due."""
    tx.execute(
        update(restores).where(restores.c.confirmed_at.is_(None)).values(confirmed_at=now, confirmed_by=actor)
    )
    tx.execute(update(nodes).values(directive_due=True))
