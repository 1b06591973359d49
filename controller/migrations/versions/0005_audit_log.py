"""The audit log chained and hashed: numbers without gaps, leaf hashes, inner nodes, checkpoints"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from contract.audittrail import NO_LINE, Entry, encode_entry
from contract.merkle import leaf_hash, node_hash

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_ACT = ("at", "actor", "act", "target", "reason")


def _act() -> list[sa.Column]:
    return [sa.Column(name, sa.Float() if name == "at" else sa.Text(), nullable=False) for name in _ACT]


def upgrade() -> None:
    before = sa.table("audit", sa.column("id"), *(sa.column(name) for name in _ACT))
    acts = [row._mapping for row in op.get_bind().execute(sa.select(before).order_by(before.c.id))]
    op.drop_table("audit")
    audit = op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        *_act(),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )
    nodes = op.create_table(
        "audit_nodes",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "position", name=op.f("pk_audit_nodes")),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_audit_checkpoints")),
    )
    _chain(audit, nodes, acts)


def _chain(audit: sa.Table, nodes: sa.Table, acts: list) -> None:
    """Number and chain what was there, in its order."""
    leaves: list[bytes] = []
    for number, act in enumerate(acts, 1):
        said = {name: act[name] for name in _ACT}
        previous = leaves[-1].hex() if leaves else NO_LINE
        leaves.append(leaf_hash(encode_entry(Entry(number=number, previous=previous, **said))))
        op.get_bind().execute(audit.insert().values(number=number, leaf=leaves[-1], **said))
    level, hashes = 0, leaves
    while len(hashes) > 1:
        level += 1
        hashes = [node_hash(*hashes[2 * n : 2 * n + 2]) for n in range(len(hashes) // 2)]
        for position, top in enumerate(hashes):
            op.get_bind().execute(nodes.insert().values(level=level, position=position, hash=top))


def downgrade() -> None:
    now = sa.table("audit", sa.column("number"), *(sa.column(name) for name in _ACT))
    acts = [row._mapping for row in op.get_bind().execute(sa.select(now).order_by(now.c.number))]
    for table in ("audit_checkpoints", "audit_nodes", "audit"):
        op.drop_table(table)
    audit = op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        *_act(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    for act in acts:
        op.get_bind().execute(audit.insert().values(**{name: act[name] for name in _ACT}))
