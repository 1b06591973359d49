"""Rows of outlets and of what they refused."""

from __future__ import annotations

from sqlalchemy import func, insert, or_, select, update

from controller.outlet_records import DeadLetter
from controller.records import Record
from controller.store import Transaction
from controller.store.schema import dead_letters, outlets


class OutletRow(Record, frozen=True, kw_only=True):
    """How far an outlet is."""

    name: str
    kind: str
    cursor: int
    delivered: int
    delivered_at: float | None
    attempts: int
    failing_since: float | None
    next_at: float
    why: str
    holder: str
    held_until: float


def load(tx: Transaction, name: str) -> OutletRow | None:
    """One outlet."""
    row = tx.execute(select(*outlets.c).where(outlets.c.name == name)).first()
    return None if row is None else OutletRow(**row._mapping)


def all_(tx: Transaction) -> list[OutletRow]:
    """By name."""
    return [OutletRow(**row._mapping) for row in tx.execute(select(*outlets.c).order_by(outlets.c.name))]


def lease(
    tx: Transaction, name: str, kind: str, *, holder: str, for_s: float, now: float
) -> OutletRow | None:
    """Take or keep the right to send for an outlet; None while somebody else has it. Makes a row where there is none."""
    if load(tx, name) is None:
        tx.execute(
            insert(outlets).values(
                name=name,
                kind=kind,
                cursor=0,
                delivered=0,
                attempts=0,
                next_at=0.0,
                why="",
                holder="",
                held_until=0.0,
            )
        )
    taken = tx.execute(
        update(outlets)
        .where(outlets.c.name == name, or_(outlets.c.holder == holder, outlets.c.held_until <= now))
        .values(holder=holder, held_until=now + for_s, kind=kind)
    )
    return load(tx, name) if taken.rowcount == 1 else None


def release(tx: Transaction, name: str, holder: str) -> None:
    """Let another controller send at once."""
    tx.execute(
        update(outlets).where(outlets.c.name == name, outlets.c.holder == holder).values(held_until=0.0)
    )


def delivered(tx: Transaction, name: str, *, cursor: int, count: int, now: float) -> None:
    """The receiver has everything up to `cursor`; `count` of it was sent."""
    values: dict[str, object] = {"cursor": cursor, "delivered": outlets.c.delivered + count}
    if count:
        values |= {"delivered_at": now, "attempts": 0, "failing_since": None, "next_at": 0.0, "why": ""}
    tx.execute(update(outlets).where(outlets.c.name == name).values(values))


def failed(tx: Transaction, name: str, *, attempts: int, next_at: float, why: str, now: float) -> None:
    """The receiver did not take a batch."""
    tx.execute(
        update(outlets)
        .where(outlets.c.name == name)
        .values(
            attempts=attempts,
            next_at=next_at,
            why=why[:1024],
            failing_since=func.coalesce(outlets.c.failing_since, now),
        )
    )


def retry(tx: Transaction, name: str) -> bool:
    """Try at once; False where there is no such outlet."""
    return tx.execute(update(outlets).where(outlets.c.name == name).values(next_at=0.0)).rowcount == 1


def lay_aside(tx: Transaction, name: str, event: int, why: str, now: float) -> None:
    """Keep what a receiver will never take."""
    there = tx.execute(
        select(dead_letters.c.event).where(dead_letters.c.outlet == name, dead_letters.c.event == event)
    ).first()
    if there is None:
        tx.execute(insert(dead_letters).values(outlet=name, event=event, why=why[:1024], at=now))


def count_dead(tx: Transaction) -> dict[str, int]:
    """Dead letters by outlet."""
    rows = tx.execute(select(dead_letters.c.outlet, func.count()).group_by(dead_letters.c.outlet))
    return {row[0]: row[1] for row in rows}


def dead(tx: Transaction, name: str, *, after: int, limit: int) -> list[DeadLetter]:
    """Dead letters of an outlet, oldest first."""
    rows = tx.execute(
        select(dead_letters.c.event, dead_letters.c.why, dead_letters.c.at)
        .where(dead_letters.c.outlet == name, dead_letters.c.event > after)
        .order_by(dead_letters.c.event)
        .limit(limit)
    )
    return [DeadLetter(**row._mapping) for row in rows]
