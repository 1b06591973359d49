"""Rows of boots: the reference a node is held to, the candidate seen last, the claims of the log seen last.

Apart from the nodes' own rows, for none of it is read while nothing changes.
"""

from __future__ import annotations

from sqlalchemy import insert, select, update

from controller.records import Record
from controller.store import Transaction
from controller.store.schema import boot_claims, boot_references


class ClaimsRow(Record, frozen=True, kw_only=True):
    """What the log of a node's last boot claimed."""

    claims: bytes
    """Encoded contract.claims.Claims."""
    recorded_at: float


def reference(tx: Transaction, node: str) -> bytes | None:
    """The boot that the node is held to, encoded."""
    return tx.execute(
        select(boot_references.c.reference).where(boot_references.c.node == node)
    ).scalar_one_or_none()


def candidate(tx: Transaction, node: str) -> bytes | None:
    """The boot seen last that is not the reference, encoded."""
    return tx.execute(
        select(boot_references.c.candidate).where(boot_references.c.node == node)
    ).scalar_one_or_none()


def set_reference(
    tx: Transaction, node: str, *, reference: bytes | None, accepted_at: float | None, candidate: bytes | None
) -> None:
    """Store reference and candidate; None for a reference leaves the one there is."""
    values: dict[str, object] = {"candidate": candidate}
    if reference is not None:
        values |= {"reference": reference, "accepted_at": accepted_at}
    done = tx.execute(update(boot_references).where(boot_references.c.node == node).values(values))
    if done.rowcount == 0:
        tx.execute(insert(boot_references).values(node=node, **values))


def claims(tx: Transaction, node: str) -> ClaimsRow | None:
    """What the log seen last claimed."""
    row = tx.execute(
        select(boot_claims.c.claims, boot_claims.c.recorded_at).where(boot_claims.c.node == node)
    ).first()
    return None if row is None else ClaimsRow(claims=row[0], recorded_at=row[1])


def set_claims(tx: Transaction, node: str, claims: bytes, now: float) -> None:
    """Replace what is known of the node's boot."""
    values: dict[str, object] = {"claims": claims, "recorded_at": now}
    done = tx.execute(update(boot_claims).where(boot_claims.c.node == node).values(values))
    if done.rowcount == 0:
        tx.execute(insert(boot_claims).values(node=node, **values))
