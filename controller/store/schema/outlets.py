"""How far each outlet is. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, Table, Text

from controller.store.schema.base import metadata

outlets = Table(
    "outlets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("delivered", BigInteger, nullable=False),
    Column("delivered_at", Float),
    Column("attempts", Integer, nullable=False),
    Column("failing_since", Float),
    Column("next_at", Float, nullable=False),
    Column("why", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("held_until", Float, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("outlet", Text, primary_key=True),
    Column("event", BigInteger, primary_key=True, autoincrement=False),
    Column("why", Text, nullable=False),
    Column("at", Float, nullable=False),
)
