"""Rows of holds: isolations in force, and those that were."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, select, text, update

from controller.permissions import Scope
from controller.records import HoldView
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import holds
from controller.store.scoped import within

_BREAKER_LOCK = 0x52464252
"""Any number, the same in every controller."""


def lock_breaker(tx: Transaction) -> None:
    """Until this transaction ends nobody else counts or places holds: two controllers share one breaker."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BREAKER_LOCK})


def _view(row: Row[tuple[object, ...]]) -> HoldView:
    return HoldView(**row._mapping)


def place(
    tx: Transaction,
    *,
    node: str | None,
    site: str,
    reason: str,
    actor: str,
    automatic: bool,
    incident: int | None,
    now: float,
    fence_only: bool = False,
) -> HoldView:
    """Add a hold. Raises the database's own integrity error when the target has one in force."""
    made = tx.execute(
        insert(holds)
        .values(
            node=node,
            site=site,
            reason=reason,
            actor=actor,
            automatic=automatic,
            fence_only=fence_only,
            incident=incident,
            placed_at=now,
        )
        .returning(*holds.c)
    ).one()
    return _view(made)


def release(tx: Transaction, hold: int, *, actor: str, reason: str, now: float) -> HoldView:
    """End a hold."""
    return _view(
        tx.execute(
            update(holds)
            .where(holds.c.id == hold)
            .values(released_at=now, released_by=actor, release_reason=reason)
            .returning(*holds.c)
        ).one()
    )


_ACTIVE = select(*holds.c).where(holds.c.released_at.is_(None))


_ANY = Prepared(
    select(holds.c.id).where(holds.c.released_at.is_(None), holds.c.site == bindparam("of_site")).limit(1)
)


def active_of_site(tx: Transaction, site: str) -> list[HoldView]:
    """Holds in force on the site or on any node of it; there are none most of the time."""
    if _ANY.first(tx, {"of_site": site}) is None:
        return []
    return [_view(row) for row in tx.execute(_ACTIVE.where(holds.c.site == site).order_by(holds.c.id))]


def active_on_sites(tx: Transaction, scope: Scope) -> dict[str, HoldView]:
    """Holds in force on whole sites, by site."""
    rows = tx.execute(_ACTIVE.where(holds.c.node.is_(None), within(scope, holds.c.site, holds.c.node)))
    return {row.site: _view(row) for row in rows}


def automatic_since(tx: Transaction, since: float, *, sites: bool) -> int:
    """Holds on nodes (or on sites) that no person placed, placed after `since`."""
    target: ColumnElement[bool] = holds.c.node.is_(None) if sites else holds.c.node.is_not(None)
    return int(
        tx.execute(
            select(func.count())
            .select_from(holds)
            .where(holds.c.automatic.is_(True), holds.c.placed_at > since, target)
        ).scalar_one()
    )


def page(
    tx: Transaction,
    *,
    active: bool,
    scope: Scope,
    node: str | None = None,
    before: int | None,
    limit: int,
) -> list[HoldView]:
    """Newest first, ids below `before`."""
    statement = (
        select(*holds.c)
        .where(within(scope, holds.c.site, holds.c.node))
        .order_by(holds.c.id.desc())
        .limit(limit)
    )
    if active:
        statement = statement.where(holds.c.released_at.is_(None))
    if node is not None:
        statement = statement.where(holds.c.node == node)
    if before is not None:
        statement = statement.where(holds.c.id < before)
    return [_view(row) for row in tx.execute(statement)]
