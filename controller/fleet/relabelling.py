"""Labels of many nodes at once, each on its own: what is refused for one is refused for that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from contract.errors import Rejected
from controller.fleet import acts, nodes, subjects
from controller.fleet.subjects import Subject
from controller.permissions import Scope
from controller.records import NodeView, Relabel
from controller.selector import parse_selector
from controller.store import Transaction, selecting
from controller.store import nodes as rows

T = TypeVar("T")
R = TypeVar("R")
MAX_NODES = 1000


def each(tx: Transaction, items: Sequence[T], do: Callable[[T], R]) -> list[R | Rejected]:
    """Do something with each, in their order; of one that is refused nothing is left, and the others are done."""
    results: list[R | Rejected] = []
    for item in items:
        attempt = tx.begin_nested()
        try:
            done = do(item)
        except Rejected as rejected:
            attempt.rollback()
            results.append(rejected)
        else:
            attempt.commit()
            results.append(done)
    return results


def relabel(
    tx: Transaction, wanted: Relabel, *, scope: Scope, actor: str, now: float
) -> list[tuple[str, NodeView | Rejected]]:
    """See Fleet.relabel."""
    acts.checked_reason(wanted.reason)
    names = _meant(tx, wanted, scope)

    def one(node: str) -> NodeView:
        subjects.check(tx, Subject("node", node), scope, act=True)
        row = rows.load(tx, node, lock=True)
        if row is None:
            raise Rejected("node.unknown", node)
        labels = msgspec.json.decode(row.labels, type=dict[str, str])
        after = {key: value for key, value in labels.items() if key not in wanted.remove} | wanted.set
        return nodes.set_labels(tx, node, after, actor=actor, reason=wanted.reason, now=now)

    return list(zip(names, each(tx, names, one), strict=True))


def _meant(tx: Transaction, wanted: Relabel, scope: Scope) -> list[str]:
    """Return the nodes by name: nothing named never means everything (c16)."""
    if (wanted.nodes is None) == (wanted.selector is None):
        raise Rejected("selector.missing", "wanted either nodes or a selector; `all` is every node in scope")
    if wanted.selector is None:
        return sorted(set(wanted.nodes or ()))  # in one order: two at once do not wait for each other
    found = selecting.meant(tx, parse_selector(wanted.selector), scope, MAX_NODES + 1)
    if not found:
        raise Rejected("selector.nobody", f"no node is meant by {wanted.selector}")
    if len(found) > MAX_NODES:
        raise Rejected("selector.too-many", f"more than {MAX_NODES} nodes are meant")
    return [row.node for row in found]
