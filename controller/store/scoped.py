"""How a scope becomes a condition: the one place that turns sites and labels into SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, and_, exists, false, not_, or_, true

from controller.permissions import Part, Scope, label_selector
from controller.selector import Term
from controller.store.schema import node_labels, nodes


def within(
    scope: Scope, site: ColumnElement[str], node: ColumnElement[str] | None = None
) -> ColumnElement[bool]:
    """Return that a row is in scope, by its site and, where it is about a node, by that node's labels.

    A row without a site is in no scope but the whole fleet's; one that is about no node is in whole sites only.
    """
    if scope.everywhere:
        return true()
    return or_(false(), *(_part(part, site, node) for part in scope.parts))


_CHUNK = 500


def chunked(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Return names in such pieces as one statement may hold: a driver takes no more than 32,766 or 65,535 values."""
    return (names[begin : begin + _CHUNK] for begin in range(0, len(names), _CHUNK))


def _part(part: Part, site: ColumnElement[str], node: ColumnElement[str] | None) -> ColumnElement[bool]:
    inside = true() if part.sites is None else site.in_(sorted(part.sites))
    if part.labels is None:
        return inside
    if node is None:
        return false()
    there = nodes.alias()
    terms = (labelled(term, node) for term in label_selector(part.labels).terms)
    return and_(inside, exists().where(there.c.node == node), *terms)


def labelled(term: Term, node: ColumnElement[str]) -> ColumnElement[bool]:
    """Return that the node with this name fits one term over labels."""
    of_key = (node_labels.c.node == node) & (node_labels.c.key == term.key)
    match term.operator:
        case "in":
            return exists().where(of_key & node_labels.c.value.in_(term.values))
        case "notin":
            return not_(exists().where(of_key & node_labels.c.value.in_(term.values)))
        case "has":
            return exists().where(of_key)
        case "hasnot":
            return not_(exists().where(of_key))
