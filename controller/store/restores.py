"""Rows of restores: when the database was put back to an earlier day, and who has looked at what that means."""

from __future__ import annotations

from sqlalchemy import BigInteger, String, and_, case, cast, func, insert, select, true, update

from controller.records import Record
from controller.restore_records import AheadNode
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import baselines, nodes, restores, sites


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


def confirm(tx: Transaction, *, actor: str, now: float) -> bool:
    """Somebody has looked; every node's directive is due. False where somebody else was first."""
    done = tx.execute(
        update(restores).where(restores.c.confirmed_at.is_(None)).values(confirmed_at=now, confirmed_by=actor)
    )
    if done.rowcount == 0:
        return False
    tx.execute(update(nodes).values(directive_due=True))
    return True


# Told by columns alone: to read every node's whole row takes seconds in a large fleet. A name has no slash, so what
# follows `name/` is the version; CASE keeps the cast from anything else.
_SAME_NAME = baselines.c.name + "/"
_OTHER = case(
    (
        func.substr(nodes.c.reported_baseline, 1, func.length(_SAME_NAME)) == _SAME_NAME,
        cast(func.substr(nodes.c.reported_baseline, func.length(_SAME_NAME) + 1), BigInteger)
        > baselines.c.version,
    ),
    else_=true(),
)
_AHEAD = (
    select(
        nodes.c.node,
        nodes.c.site,
        nodes.c.reported_baseline.label("holds"),
        (_SAME_NAME + cast(baselines.c.version, String)).label("chosen"),
    )
    .select_from(
        nodes.join(sites, sites.c.site == nodes.c.site).join(
            baselines,
            and_(
                baselines.c.name == func.coalesce(nodes.c.baseline_name, sites.c.baseline_name),
                baselines.c.version == func.coalesce(nodes.c.baseline_version, sites.c.baseline_version),
            ),
        )
    )
    .where(nodes.c.reported_baseline != "", _OTHER)
)


def ahead(tx: Transaction, *, after: str | None, limit: int) -> list[AheadNode]:
    """Nodes whose newest report names a newer baseline than the one chosen for them, or one of another name; by name."""
    found = _AHEAD if after is None else _AHEAD.where(nodes.c.node > after)
    return [AheadNode(**row._mapping) for row in tx.execute(found.order_by(nodes.c.node).limit(limit))]


def count_ahead(tx: Transaction) -> int:
    """How many there are."""
    return tx.execute(select(func.count()).select_from(_AHEAD.subquery())).scalar_one()


def count_unheard(tx: Transaction, since: float) -> int:
    """Nodes without a report since then."""
    silent = func.coalesce(nodes.c.last_report_at, 0.0) < since
    return tx.execute(select(func.count()).select_from(nodes).where(silent)).scalar_one()
