"""Rows of response rules with their history, of what they have counted, and of suppressions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sqlalchemy import Row, delete, func, insert, select, text, update

from controller.response_records import ResponseView, SuppressionView
from controller.store import Transaction
from controller.store.schema import response_hits, response_policies, suppressions

_POLICY_LOCK = 0x52465250


def lock(tx: Transaction) -> None:
    """Until this transaction ends nobody else changes the rules."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POLICY_LOCK})


def _rules(row: Row[tuple[object, ...]]) -> ResponseView:
    return ResponseView(**row._mapping)


def document(tx: Transaction) -> str:
    """The rules in force; empty while none were ever set."""
    found = tx.execute(
        select(response_policies.c.document).order_by(response_policies.c.version.desc()).limit(1)
    ).scalar_one_or_none()
    return "" if found is None else str(found)


def version(tx: Transaction, wanted: int | None = None) -> ResponseView | None:
    """One version, or the newest."""
    statement = select(*response_policies.c).order_by(response_policies.c.version.desc()).limit(1)
    if wanted is not None:
        statement = statement.where(response_policies.c.version == wanted)
    row = tx.execute(statement).first()
    return None if row is None else _rules(row)


def history(tx: Transaction, *, before: int | None, limit: int) -> list[ResponseView]:
    """Newest first, versions below `before`."""
    statement = select(*response_policies.c).order_by(response_policies.c.version.desc()).limit(limit)
    if before is not None:
        statement = statement.where(response_policies.c.version < before)
    return [_rules(row) for row in tx.execute(statement)]


def add(tx: Transaction, made: ResponseView) -> None:
    """Store a version."""
    tx.execute(
        insert(response_policies).values(
            version=made.version,
            document=made.document,
            set_at=made.set_at,
            set_by=made.set_by,
            reason=made.reason,
        )
    )


# -- counting --------------------------------------------------------------------------------------------


def hit(tx: Transaction, rule: str, *, site: str, node: str, times: int, now: float, within_s: float) -> None:
    """Count what a rule has seen on a node, and forget what is too old to count."""
    tx.execute(
        delete(response_hits).where(response_hits.c.rule == rule, response_hits.c.at <= now - within_s)
    )
    row = {"rule": rule, "site": site, "node": node, "at": now}
    tx.execute(insert(response_hits), [row] * times)


def counted(tx: Transaction, rule: str, *, site: str, node: str | None, since: float) -> tuple[int, int]:
    """Return how often and on how many nodes of a site (or of one node only) a rule has seen something after `since`."""
    statement = select(func.count(), func.count(response_hits.c.node.distinct())).where(
        response_hits.c.rule == rule, response_hits.c.site == site, response_hits.c.at > since
    )
    if node is not None:
        statement = statement.where(response_hits.c.node == node)
    row = tx.execute(statement).one()
    return int(row[0]), int(row[1])


def forget(tx: Transaction, rule: str, *, site: str, node: str | None) -> None:
    """A rule has spoken: it counts from the beginning."""
    statement = delete(response_hits).where(response_hits.c.rule == rule, response_hits.c.site == site)
    if node is not None:
        statement = statement.where(response_hits.c.node == node)
    tx.execute(statement)


# -- suppressions ----------------------------------------------------------------------------------------


def _suppression(row: Row[tuple[object, ...]]) -> SuppressionView:
    return SuppressionView(**row._mapping)


def suppress(tx: Transaction, made: SuppressionView) -> int:
    """Store one and return its id."""
    return int(
        tx.execute(
            insert(suppressions)
            .values(
                selector=made.selector,
                kind=made.kind,
                acts=made.acts,
                until=made.until,
                reason=made.reason,
                created_at=made.created_at,
                created_by=made.created_by,
            )
            .returning(suppressions.c.id)
        ).scalar_one()
    )


def suppression(tx: Transaction, number: int) -> SuppressionView | None:
    """One of them."""
    row = tx.execute(select(*suppressions.c).where(suppressions.c.id == number)).first()
    return None if row is None else _suppression(row)


def end(tx: Transaction, number: int, *, actor: str, now: float) -> None:
    """End one before its time."""
    tx.execute(update(suppressions).where(suppressions.c.id == number).values(ended_at=now, ended_by=actor))


def in_force(tx: Transaction, now: float) -> list[SuppressionView]:
    """Those that are in force, oldest first."""
    rows = tx.execute(
        select(*suppressions.c)
        .where(suppressions.c.until > now, suppressions.c.ended_at.is_(None))
        .order_by(suppressions.c.id)
    )
    return [_suppression(row) for row in rows]


def page(
    tx: Transaction,
    *,
    all_: bool,
    now: float,
    before: int | None,
    limit: int,
    wanted: Callable[[SuppressionView], bool],
) -> list[SuppressionView]:
    """Newest first, ids below `before`, those that are wanted; `all_`: ended ones too."""
    statement = select(*suppressions.c).order_by(suppressions.c.id.desc())
    if not all_:
        statement = statement.where(suppressions.c.until > now, suppressions.c.ended_at.is_(None))
    if before is not None:
        statement = statement.where(suppressions.c.id < before)
    return list(itertools.islice(filter(wanted, map(_suppression, tx.execute(statement))), limit))
