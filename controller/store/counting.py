"""How many nodes there are, and in which state."""

from __future__ import annotations

from sqlalchemy import func, select

from controller.permissions import Scope
from controller.records import Standing
from controller.store import Transaction
from controller.store.schema import nodes
from controller.store.scoped import within

KEPT_S = 60.0
_COUNT, _ADDED = "ringfence.nodes", "ringfence.nodes-added"


def added(tx: Transaction) -> None:
    """A node was taken in: the kept count is none any more."""
    tx.info.pop(_COUNT, None)
    tx.info[_ADDED] = tx.get_transaction()


def count(tx: Transaction, now: float) -> int:
    """Nodes of the fleet, as of the last KEPT_S: for the breaker, whose budget grows with the fleet.

    Nodes are only ever added, by another controller perhaps, so a count that is old allows less, never more.
    """
    kept: tuple[int, float] | None = tx.info.get(_COUNT)
    if kept is not None and abs(now - kept[1]) < KEPT_S:
        return kept[0]
    counted = int(tx.execute(select(func.count()).select_from(nodes)).scalar_one())
    if tx.info.get(_ADDED) is not tx.get_transaction():  # what is not committed yet may still be taken back
        tx.info[_COUNT] = counted, now
    return counted


def by_standing(tx: Transaction, scope: Scope) -> dict[tuple[str, Standing], int]:
    """Count by (site, standing)."""
    statement = select(nodes.c.site, nodes.c.standing, func.count()).group_by(nodes.c.site, nodes.c.standing)
    return {
        (row[0], row[1]): row[2]
        for row in tx.execute(statement.where(within(scope, nodes.c.site, nodes.c.node)))
    }


def connected(tx: Transaction, scope: Scope) -> int:
    """Nodes with an open session."""
    there = (
        select(func.count())
        .select_from(nodes)
        .where(nodes.c.connected, within(scope, nodes.c.site, nodes.c.node))
    )
    return int(tx.execute(there).scalar_one())


def drifting(tx: Transaction, site: str, *, since: float, without: str, limit: int) -> int:
    """Other nodes of the site that drifted after `since`; counted no further than `limit`."""
    some = (
        select(nodes.c.node)
        .where(nodes.c.site == site, nodes.c.last_drift_at > since, nodes.c.node != without)
        .limit(limit)
        .subquery()
    )
    return int(tx.execute(select(func.count()).select_from(some)).scalar_one())
