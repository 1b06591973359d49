"""Controllers over one database, the keys that they share, and when it was put back. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import Column, Float, LargeBinary, Table, Text

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

# What plans ask of nodes that are connected to another controller than the one that makes the plan: gone within seconds.
socket_questions = Table(
    "socket_questions",
    metadata,
    Column("question", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    # What the node told, not read yet; or in words why it told nothing. Neither: not answered.
    Column("report", LargeBinary),
    Column("why", Text),
)

restores = Table(
    "restores",
    metadata,
    Column("at", Float, primary_key=True),
    Column("backup_at", Float, nullable=False),
    Column("confirmed_at", Float),
    Column("confirmed_by", Text, nullable=False, server_default=""),
)
