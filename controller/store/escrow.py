"""Rows of keys in escrow. A revoked key's content is overwritten: what is left says who revoked it, and opens nothing."""

from __future__ import annotations

from sqlalchemy import Update, insert, select, update

from contract.messages import SealedKey
from contract.wire import decode, encode
from controller.escrow_records import LeastTier
from controller.records import Record
from controller.store import Transaction
from controller.store.schema import escrow_keys

MAX_SEALED_BYTES = 16 * 1024


class KeyRow(Record, frozen=True, kw_only=True):
    """One key in escrow."""

    node: str
    name: str
    version: int
    """Rises with every put under this name."""
    ak_name: str
    """Hex; of the AK it is sealed to."""
    sealed: bytes
    share: bytes
    least_tier: LeastTier
    put_at: float
    put_by: str
    releases: int
    released_at: float | None
    revoked_at: float | None
    revoked_by: str | None

    def content(self) -> SealedKey:
        """Return the sealed key. Raises Rejected `escrow.damaged`."""
        return decode(self.sealed, SealedKey, max_bytes=MAX_SEALED_BYTES, code="escrow.damaged")


def get(tx: Transaction, node: str, name: str) -> KeyRow | None:
    """One key."""
    row = tx.execute(
        select(*escrow_keys.c).where(escrow_keys.c.node == node, escrow_keys.c.name == name)
    ).first()
    return None if row is None else KeyRow(**row._mapping)


def of_node(tx: Transaction, node: str) -> list[KeyRow]:
    """All keys of a node, by name."""
    rows = tx.execute(select(*escrow_keys.c).where(escrow_keys.c.node == node).order_by(escrow_keys.c.name))
    return [KeyRow(**row._mapping) for row in rows]


def put(
    tx: Transaction,
    *,
    node: str,
    name: str,
    version: int,
    ak_name: str,
    sealed: SealedKey,
    share: bytes,
    least_tier: LeastTier,
    actor: str,
    now: float,
) -> None:
    """Store a key; one of the same name is replaced. `version` 1 makes a new row."""
    values = {
        "version": version,
        "ak_name": ak_name,
        "sealed": encode(sealed),
        "share": share,
        "least_tier": least_tier,
        "put_at": now,
        "put_by": actor,
        "releases": 0,
        "released_at": None,
        "revoked_at": None,
        "revoked_by": None,
    }
    if version == 1:
        tx.execute(insert(escrow_keys).values(node=node, name=name, **values))
    else:
        tx.execute(_row(node, name).values(**values))


def released(tx: Transaction, row: KeyRow, now: float) -> None:
    """Note a release."""
    tx.execute(_row(row.node, row.name).values(releases=row.releases + 1, released_at=now))


def revoke(tx: Transaction, node: str, name: str, *, actor: str, now: float) -> None:
    """Overwrite the content and note who did it."""
    tx.execute(_row(node, name).values(sealed=b"", share=b"", revoked_at=now, revoked_by=actor))


def _row(node: str, name: str) -> Update:
    return update(escrow_keys).where(escrow_keys.c.node == node, escrow_keys.c.name == name)
