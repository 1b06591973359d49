"""Controllers over one database, the keys that they share, and when it was put back. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import Column, Float, Table, Text

from controller.store.schema.base import metadata

controllers = Table(
    "controllers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    # By the database's clock: controllers' own clocks may differ.
    Column("seen_at", Float, nullable=False),
    # JSON list: no node may be told to fence one of them.
    Column("addresses", Text, nullable=False),
)

controller_keys = Table(
    "controller_keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("at", Float, nullable=False),
)

restores = Table(
    "restores",
    metadata,
    Column("at", Float, primary_key=True),
    Column("backup_at", Float, nullable=False),
    Column("confirmed_at", Float),
    Column("confirmed_by", Text, nullable=False, server_default=""),
)
