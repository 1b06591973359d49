"""Where nodes are: their site and their labels, which is what scopes are about."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from controller.permissions import Placed
from controller.store import Transaction
from controller.store.schema import nodes

_decode_labels = msgspec.json.Decoder(dict[str, str]).decode
_CHUNK = 500


def placed(site: str, labels: str) -> Placed:
    """Return a place of the columns of a node's row."""
    return Placed(site, _decode_labels(labels))


def place_of(tx: Transaction, *, node: str | None = None, ek_id: str | None = None) -> Placed | None:
    """Where the node with this name, or with this EK, is; None where there is no such node."""
    named = nodes.c.ek_id == ek_id if node is None else nodes.c.node == node
    row = tx.execute(select(nodes.c.site, nodes.c.labels).where(named)).first()
    return None if row is None else placed(row.site, row.labels)


def places_of(tx: Transaction, names: Sequence[str]) -> tuple[Placed, ...]:
    """Where these nodes are, each place once."""
    found: dict[tuple[str, str], Placed] = {}
    for begin in range(0, len(names), _CHUNK):
        chunk = select(nodes.c.site, nodes.c.labels).where(nodes.c.node.in_(names[begin : begin + _CHUNK]))
        for row in tx.execute(chunk.distinct()):
            found[row.site, row.labels] = placed(row.site, row.labels)
    return tuple(found.values())
