"""Rows of events: what happened, once each, in the order in which it became known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import Row, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert

from contract.messages import Event, Severity
from controller.permissions import Scope
from controller.records import EventView
from controller.store import Transaction, notices
from controller.store.schema import events
from controller.store.scoped import within

_CURSOR_LOCK = 0x52464556
_decode_detail = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.encode

_ADD = insert(events)
_ADD_NEW_SQLITE = insert(events).prefix_with("OR IGNORE", dialect="sqlite")
_ADD_NEW_POSTGRESQL = postgresql_insert(events).on_conflict_do_nothing(index_elements=["node", "seq", "at"])


def _lock_cursor(tx: Transaction) -> None:
    # PostgreSQL gives ids before it commits: without this a reader could pass a lower id that appears later.
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CURSOR_LOCK})
        notices.rang(tx)


def add_agents(tx: Transaction, node: str, site: str, said: Sequence[Event], now: float) -> None:
    """Store a node's events; those that are here already stay as they are."""
    _lock_cursor(tx)
    rows = [
        {
            "at": event.at,
            "stored_at": now,
            "source": "agent",
            "node": node,
            "site": site,
            "seq": event.seq,
            "kind": event.kind,
            "severity": event.severity,
            "summary": event.summary,
            "detail": _encode(event.detail).decode(),
        }
        for event in said
    ]
    tx.execute(_ADD_NEW_POSTGRESQL if tx.dialect.name == "postgresql" else _ADD_NEW_SQLITE, rows)


def add(
    tx: Transaction,
    kind: str,
    severity: Severity,
    summary: str,
    *,
    now: float,
    node: str | None = None,
    site: str | None = None,
    detail: dict[str, str] | None = None,
) -> int:
    """Store something that the controller saw or did; return its id."""
    _lock_cursor(tx)
    made = tx.execute(
        _ADD.returning(events.c.id),
        {
            "at": now,
            "stored_at": now,
            "source": "controller",
            "node": node,
            "site": site,
            "seq": None,
            "kind": kind,
            "severity": severity,
            "summary": summary,
            "detail": _encode(detail or {}).decode(),
        },
    )
    return int(made.scalar_one())


def said_since(tx: Transaction, kind: str, node: str | None, since: float) -> bool:
    """Whether the same kind about the same node was stored after `since`."""
    found = tx.execute(
        select(events.c.id)
        .where(events.c.node == node, events.c.kind == kind, events.c.stored_at > since)
        .limit(1)
    )
    return found.first() is not None


def _view(row: Row[tuple[object, ...]]) -> EventView:
    values = dict(row._mapping)
    values["detail"] = _decode_detail(values["detail"])
    return EventView(**values)


def read(
    tx: Transaction,
    *,
    after: int,
    limit: int,
    node: str | None,
    scope: Scope,
    order: Literal["up", "down"],
) -> list[EventView]:
    """Up: ids above `after`. Down: ids below it, or from the end when it is 0."""
    statement = select(*events.c).where(within(scope, events.c.site, events.c.node)).limit(limit)
    if node is not None:
        statement = statement.where(events.c.node == node)
    if order == "up":
        statement = statement.where(events.c.id > after).order_by(events.c.id)
    else:
        statement = statement.order_by(events.c.id.desc())
        if after:
            statement = statement.where(events.c.id < after)
    return [_view(row) for row in tx.execute(statement)]


def last_id(tx: Transaction, scope: Scope) -> int:
    """The cursor of the newest event; 0 when there is none."""
    newest = select(func.coalesce(func.max(events.c.id), 0)).where(
        within(scope, events.c.site, events.c.node)
    )
    return int(tx.execute(newest).scalar_one())
