"""Nodes by selector, filter and order, and their labels. What is asked for becomes bound values, never text of a statement.

Relies on `controller.selector.matches` to mean the same: a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, get_args

import msgspec
from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.elements import KeyedColumnElement

from controller.permissions import Scope
from controller.records import Standing
from controller.selector import Selector, Term
from controller.store import Transaction, notices
from controller.store.nodes import NodeRow, rows_of
from controller.store.schema import node_labels, nodes
from controller.store.scoped import chunked, labelled, within

SortKey = Literal["node", "site", "standing", "last_report_at", "standing_since"]
"""The closed list of what nodes may be sorted by; ties go by name."""

_FIELDS: Final[Mapping[str, KeyedColumnElement[str]]] = {
    "node": nodes.c.node,
    "site": nodes.c.site,
    "standing": nodes.c.standing,
    "tier": nodes.c.tier,
    "baseline": nodes.c.reported_baseline,
    "agent": nodes.c.agent_version,
}


def condition(selector: Selector) -> ColumnElement[bool]:
    """Return the selector as a condition on `nodes`."""
    return and_(true(), *(_term(term) for term in selector.terms))


def _term(term: Term) -> ColumnElement[bool]:
    column = _FIELDS.get(term.key)
    if column is None:
        return labelled(term, nodes.c.node)
    there: ColumnElement[bool] = column != ""
    named: ColumnElement[bool] = column.in_(term.values)
    match term.operator:
        case "in":
            return named
        case "notin":
            return not_(named)
        case "has":
            return there
        case "hasnot":
            return not_(there)


def meant(tx: Transaction, selector: Selector, scope: Scope, limit: int) -> list[NodeRow]:
    """Nodes in scope that are meant, by name."""
    where = and_(condition(selector), within(scope, nodes.c.site, nodes.c.node))
    return rows_of(tx, where, (nodes.c.node,), limit)


_STANDINGS: Final = tuple(sorted(get_args(Standing)))


def page(
    tx: Transaction,
    *,
    scope: Scope,
    standing: Standing | None,
    selector: Selector | None,
    sort: SortKey,
    descending: bool,
    after: str | None,
    limit: int,
) -> list[NodeRow]:
    """Nodes in this order, after the node that the cursor names, wherever it stands by now.

    An index in that order is walked until the page is full. It holds site and standing, so that no row is read for its order, or to
    learn that it is out of scope; and it is entered at the cursor. At worst that is one pass over an index.
    """
    column = nodes.c[sort]
    key = func.coalesce(column, 0.0) if sort == "last_report_at" else column
    order = (key.desc() if descending else key, nodes.c.node)
    cursor: _Cursor | None = None
    if after is not None:
        # A cursor outside the scope is none: where a page begins after it would tell how it stands.
        inside = within(scope, nodes.c.site, nodes.c.node)
        at = tx.execute(select(key).where(nodes.c.node == after, inside)).scalar()
        if at is None:
            return []
        cursor = (at, after)
    meant = true() if selector is None else condition(selector)
    # PostgreSQL has counted how many nodes a site has; SQLite would only guess.
    counts = tx.dialect.name == "postgresql"
    by_site = sort == "site" or (sort == "node" and standing is None) or (counts and _few(scope))
    where = and_(meant, within(scope, nodes.c.site if by_site else _read(nodes.c.site), nodes.c.node))
    if sort in ("node", "site"):
        stands = _read(nodes.c.standing) if not counts and sort == "site" else nodes.c.standing
        where = and_(where, true() if standing is None else stands == standing)
        return rows_of(tx, and_(where, _beyond(column, cursor, descending)), order, limit)
    # Each of these indexes begins with the standing: one walk for each; what they find is little enough to sort.
    found: list[str] = []
    for walk in _walks(sort, (standing,) if standing else _STANDINGS, cursor, descending):
        names = select(nodes.c.node).where(walk, where)
        way = column.desc() if descending else column
        found += tx.execute(names.order_by(way, nodes.c.node).limit(limit)).scalars()
    return rows_of(tx, nodes.c.node.in_(found), order, limit) if found else []


_FEW_SITES: Final = 8


def _few(scope: Scope) -> bool:
    return (
        sum(_FEW_SITES + 1 if part.sites is None else len(part.sites) for part in scope.parts) <= _FEW_SITES
    )


_Cursor = tuple[object, str]
"""Key and name of the last node of the page before."""


def _read(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return a column as a value by which the database looks up nothing: it must not leave the order for it."""
    return column.concat("")


def _walks(
    sort: SortKey, standings: Sequence[str], cursor: _Cursor | None, descending: bool
) -> Iterator[ColumnElement[bool]]:
    for one in standings:
        of_one = nodes.c.standing == one
        if sort != "standing":
            reported = true() if sort == "standing_since" else nodes.c.last_report_at.is_not(None)
            yield and_(of_one, reported, _beyond(nodes.c[sort], cursor, descending))
        elif cursor is not None and one == cursor[0]:
            yield and_(of_one, nodes.c.node > cursor[1])
        elif cursor is None or (one < str(cursor[0])) == descending:
            yield of_one
    if sort == "last_report_at" and (cursor is None or descending or cursor[0] == 0.0):
        # Without a report: as if it had been long ago.
        later = true() if cursor is None or cursor[0] != 0.0 else nodes.c.node > cursor[1]
        yield and_(nodes.c.standing.in_(standings), nodes.c.last_report_at.is_(None), later)


def _beyond(column: ColumnElement[object], cursor: _Cursor | None, descending: bool) -> ColumnElement[bool]:
    """What comes after the cursor; names go upwards in either order. Said so that an index is entered at the cursor."""
    if cursor is None:
        return true()
    at, after = cursor
    if column is nodes.c.node:
        return column < after if descending else column > after
    if descending:
        return and_(column <= at, or_(column < at, nodes.c.node > after))
    return tuple_(column, nodes.c.node) > tuple_(literal(at), literal(after))


def set_labels(tx: Transaction, node: str, labels: Mapping[str, str]) -> None:
    """Replace all labels of a node."""
    tx.execute(delete(node_labels).where(node_labels.c.node == node))
    rows = [{"node": node, "key": key, "value": value} for key, value in labels.items()]
    if rows:
        tx.execute(insert(node_labels), rows)
    text = msgspec.json.encode(labels).decode()
    tx.execute(update(nodes).where(nodes.c.node == node).values(labels=text))


def choose_baseline(
    tx: Transaction, chosen: Sequence[str], baseline: tuple[str, int] | None, now: float
) -> None:
    """Choose a baseline for these nodes alone; None: their site's is in force again."""
    notices.due(tx, chosen)
    name, version = baseline or (None, None)
    for some in chunked(chosen):
        tx.execute(
            update(nodes)
            .where(nodes.c.node.in_(some))
            .values(baseline_name=name, baseline_version=version, baseline_since=now, directive_due=True)
        )
