"""The nodes of a site by no more than their names and addresses: what a fence is made of.

A directive that is due while a neighbour is held reads all of them; reading whole rows for it costs seven times as much.
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
_NAMES = select(nodes.c.node).where(nodes.c.site == bindparam("of_site")).order_by(nodes.c.node)


def of_site(tx: Transaction, site: str) -> list[Neighbour]:
    """All nodes of a site, by name."""
    return [
        Neighbour(str(node), _decode(str(state)).addresses)
        for node, state in _OF_SITE.all(tx, {"of_site": site})
    ]


def names_of_site(tx: Transaction, site: str) -> list[str]:
    """Names of the nodes of a site, in order."""
    return list(tx.execute(_NAMES, {"of_site": site}).scalars())
