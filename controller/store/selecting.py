"""Nodes by selector, filter and order, and their labels. What is asked for becomes bound values, never text of a statement.

Relies on `controller.selector.matches` to mean the same: a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, insert, not_, or_, select, true, update
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
    """Nodes in this order, after the node that the cursor names, wherever it stands by now."""
    conditions = [within(scope, nodes.c.site, nodes.c.node)]
    if standing is not None:
        conditions.append(nodes.c.standing == standing)
    if selector is not None:
        conditions.append(condition(selector))
    column = nodes.c[sort]
    key = func.coalesce(column, 0.0) if sort == "last_report_at" else column
    if after is not None:
        # A cursor outside the scope is none: where a page begins after it would tell how it stands.
        inside = within(scope, nodes.c.site, nodes.c.node)
        at = select(key).where(nodes.c.node == after, inside).scalar_subquery()
        beyond = key < at if descending else key > at
        conditions.append(or_(beyond, and_(key == at, nodes.c.node > after)))
    order = (key.desc() if descending else key, nodes.c.node)
    return rows_of(tx, and_(true(), *conditions), order, limit)


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
