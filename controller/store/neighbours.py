"""The nodes of a site by no more than their names and addresses: what a fence is made of.

A directive that is due while a neighbour is held needs all of them; reading whole rows for it costs seven times as much. Reports
that share a transaction share what was read, until one of them changes it.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct
from sqlalchemy import bindparam, select

from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import nodes


class Neighbour(Struct, frozen=True):
    """A node of the site, and the addresses that it had while it was trusted."""

    node: str
    addresses: list[str]


class _Addressed(Struct, frozen=True):
    addresses: list[str] = []


_decode = msgspec.json.Decoder(_Addressed).decode
_OF_SITE = Prepared(
    select(nodes.c.node, nodes.c.state).where(nodes.c.site == bindparam("of_site")).order_by(nodes.c.node)
)
_KEPT = "ringfence.neighbours"
_NAMES = select(nodes.c.node).where(nodes.c.site == bindparam("of_site")).order_by(nodes.c.node)


def of_site(tx: Transaction, site: str) -> list[Neighbour]:
    """All nodes of a site, by name."""
    transaction = tx.get_transaction()
    kept: tuple[object, dict[str, list[Neighbour]]] | None = tx.info.get(_KEPT)
    if kept is None or kept[0] is not transaction:
        kept = tx.info[_KEPT] = (transaction, {})
    found = kept[1].get(site)
    if found is None:
        rows = _OF_SITE.all(tx, {"of_site": site})
        found = kept[1][site] = [Neighbour(str(node), _decode(str(state)).addresses) for node, state in rows]
    return found


def changed(tx: Transaction) -> None:
    """A node was added, or has other addresses: what was read in this transaction is out of date."""
    tx.info.pop(_KEPT, None)


def names_of_site(tx: Transaction, site: str) -> list[str]:
    """Names of the nodes of a site, in order."""
    return list(tx.execute(_NAMES, {"of_site": site}).scalars())
