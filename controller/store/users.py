"""Rows of people who log in here."""

from __future__ import annotations

from sqlalchemy import select

from controller.store import Transaction
from controller.store.schema import users


def exists(tx: Transaction, name: str) -> bool:
    """Whether there is such a user, also a disabled one."""
    return tx.execute(select(users.c.name).where(users.c.name == name)).first() is not None
