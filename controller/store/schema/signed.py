"""Signed baselines and the files of their repository. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, LargeBinary, Table, Text

from controller.store.schema.base import metadata

baselines = Table(
    "baselines",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("boot_section", LargeBinary, nullable=False),
    Column("ima_section", LargeBinary),
    Column("pushed_at", Float, nullable=False),
    Column("pushed_by", Text, nullable=False),
)

trust_files = Table(
    "trust_files",
    metadata,
    Column("path", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)
