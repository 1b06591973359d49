"""Rows of admin tokens."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from controller.records import ApiTokenView, Role
from controller.store import Transaction
from controller.store.schema import api_tokens

_SHOWN = (api_tokens.c.name, api_tokens.c.role, api_tokens.c.created_at, api_tokens.c.expires_at)


def add(
    tx: Transaction, name: str, role: Role, token_sha256: bytes, *, expires_at: float | None, now: float
) -> None:
    """Raises the database's own integrity error when name or token exist."""
    tx.execute(
        insert(api_tokens).values(
            name=name, role=role, token_sha256=token_sha256, created_at=now, expires_at=expires_at
        )
    )


_FIND = select(*_SHOWN)


def by_sha256(tx: Transaction, token_sha256: bytes) -> ApiTokenView | None:
    """Whose token this is."""
    row = tx.execute(_FIND.where(api_tokens.c.token_sha256 == token_sha256)).first()
    return None if row is None else ApiTokenView(**row._mapping)


def by_name(tx: Transaction, name: str) -> ApiTokenView | None:
    """The token of this name."""
    row = tx.execute(_FIND.where(api_tokens.c.name == name)).first()
    return None if row is None else ApiTokenView(**row._mapping)


def all_(tx: Transaction) -> list[ApiTokenView]:
    """By name."""
    return [ApiTokenView(**row._mapping) for row in tx.execute(_FIND.order_by(api_tokens.c.name))]


def remove(tx: Transaction, name: str) -> bool:
    """False when there is none."""
    return tx.execute(delete(api_tokens).where(api_tokens.c.name == name)).rowcount == 1
