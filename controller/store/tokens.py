"""Rows of API tokens. A token that is revoked stays, so that its name always means the same."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Row, func, insert, or_, select, text, update

from controller.people_records import ApiTokenView
from controller.permissions import Right
from controller.store import Transaction
from controller.store.schema import api_tokens

NOTED_EVERY_S = 60.0
"""The time of the last use is written no more often."""
_PEOPLE_LOCK = 0x52465045
"""Any number, the same in every controller."""
_decode_rights = msgspec.json.Decoder(tuple[Right, ...]).decode
_encode = msgspec.json.encode


class TokenRow(ApiTokenView, frozen=True, kw_only=True):
    """A token with what is only asked inside."""

    counts_as: str


_SELECT = select(*(column for column in api_tokens.c if column.name != "token_sha256"))


def lock_people(tx: Transaction) -> None:
    """Until this transaction ends nobody else changes people or tokens: two admins cannot end each other at once."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PEOPLE_LOCK})


def _row(row: Row[tuple[object, ...]]) -> TokenRow:
    values = dict(row._mapping)
    values["rights"] = _decode_rights(values["rights"])
    return TokenRow(**values)


def add(
    tx: Transaction,
    name: str,
    rights: Sequence[Right],
    token_sha256: bytes,
    *,
    user: str | None,
    counts_as: str,
    created_by: str,
    expires_at: float | None,
    now: float,
) -> None:
    """Raises the database's own integrity error when name or token exist."""
    tx.execute(
        insert(api_tokens).values(
            name=name,
            token_sha256=token_sha256,
            rights=_encode(rights).decode(),
            user=user,
            counts_as=counts_as,
            created_at=now,
            created_by=created_by,
            expires_at=expires_at,
        )
    )


def by_sha256(tx: Transaction, token_sha256: bytes) -> TokenRow | None:
    """Whose token this is."""
    row = tx.execute(_SELECT.where(api_tokens.c.token_sha256 == token_sha256)).first()
    return None if row is None else _row(row)


def by_name(tx: Transaction, name: str) -> TokenRow | None:
    """The token of this name, revoked or not."""
    row = tx.execute(_SELECT.where(api_tokens.c.name == name)).first()
    return None if row is None else _row(row)


def all_(tx: Transaction) -> list[TokenRow]:
    """By name, without those that are revoked."""
    rows = tx.execute(_SELECT.where(api_tokens.c.revoked_at.is_(None)).order_by(api_tokens.c.name))
    return [_row(row) for row in rows]


def count_made(tx: Transaction, maker: str) -> int:
    """Tokens that somebody has made and that are not revoked."""
    made = select(func.count()).where(api_tokens.c.created_by == maker, api_tokens.c.revoked_at.is_(None))
    return int(tx.execute(made).scalar_one())


def note_use(tx: Transaction, token: TokenRow, now: float) -> None:
    """Write down that it was used, where that was not done a moment ago."""
    if token.used_at is None or now - token.used_at >= NOTED_EVERY_S:
        stale = or_(api_tokens.c.used_at.is_(None), api_tokens.c.used_at <= now - NOTED_EVERY_S)
        tx.execute(update(api_tokens).where(api_tokens.c.name == token.name, stale).values(used_at=now))


def revoke(tx: Transaction, name: str, *, actor: str, now: float) -> None:
    """Make it worthless."""
    tx.execute(update(api_tokens).where(api_tokens.c.name == name).values(revoked_at=now, revoked_by=actor))


def set_rights(tx: Transaction, name: str, rights: Sequence[Right]) -> None:
    """Give it other rights."""
    tx.execute(update(api_tokens).where(api_tokens.c.name == name).values(rights=_encode(rights).decode()))


def renew(tx: Transaction, name: str, token_sha256: bytes, expires_at: float | None) -> None:
    """Put another secret in its place."""
    tx.execute(
        update(api_tokens)
        .where(api_tokens.c.name == name)
        .values(token_sha256=token_sha256, expires_at=expires_at)
    )
