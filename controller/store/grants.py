"""Rows of grants and of break-glass codes. A code's hash is here, the code is nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Row, and_, bindparam, func, insert, or_, select, update

from contract.grant import CodeHash
from controller.grant_records import CodeView, GrantContent, GrantUse
from controller.permissions import Scope
from controller.records import Record
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import break_glass_codes, grants
from controller.store.scoped import chunked, within

_decode_content = msgspec.json.Decoder(GrantContent).decode
_decode_use = msgspec.json.Decoder(GrantUse).decode
_encode = msgspec.json.encode

USED_LISTED_S = 8 * 86400.0
"""So long a used code stays in directives: what it opened lasts no longer than a week, and ends when it is left out."""


class GrantRow(Record, frozen=True, kw_only=True):
    """One grant as it is stored."""

    id: int
    node: str
    site: str
    content: GrantContent
    starts: float
    ends: float
    requested_at: float
    requested_by: str
    approved_at: float | None
    approved_by: str | None
    revoked_at: float | None
    revoked_by: str | None
    revoke_reason: str | None
    use: GrantUse


def _row(row: Row[tuple[object, ...]]) -> GrantRow:
    values = dict(row._mapping)
    values["content"] = _decode_content(values["content"])
    values["use"] = _decode_use(values["use"])
    return GrantRow(**values)


def add(
    tx: Transaction,
    *,
    node: str,
    site: str,
    content: GrantContent,
    starts: float,
    ends: float,
    actor: str,
    now: float,
) -> int:
    """Add a request and return its id; ids are never given twice."""
    made = tx.execute(
        insert(grants)
        .values(
            node=node,
            site=site,
            content=_encode(content).decode(),
            starts=starts,
            ends=ends,
            requested_at=now,
            requested_by=actor,
            use="{}",
        )
        .returning(grants.c.id)
    )
    return int(made.scalar_one())


def load(tx: Transaction, grant: int, *, lock: bool = False) -> GrantRow | None:
    """One grant."""
    statement = select(*grants.c).where(grants.c.id == grant)
    row = tx.execute(statement.with_for_update() if lock else statement).first()
    return None if row is None else _row(row)


def approve(tx: Transaction, grant: int, *, actor: str, now: float) -> None:
    """Note who approved it."""
    tx.execute(update(grants).where(grants.c.id == grant).values(approved_at=now, approved_by=actor))


def revoke(tx: Transaction, grant: int, *, actor: str, reason: str, now: float) -> None:
    """Note who revoked it."""
    tx.execute(
        update(grants)
        .where(grants.c.id == grant)
        .values(revoked_at=now, revoked_by=actor, revoke_reason=reason)
    )


def set_use(tx: Transaction, grant: int, use: GrantUse) -> None:
    """Note what the node has told."""
    tx.execute(update(grants).where(grants.c.id == grant).values(use=_encode(use).decode()))


_LIVE = and_(grants.c.revoked_at.is_(None))


def count_live(tx: Transaction, node: str, now: float) -> int:
    """Grants of a node that are open, or may still be."""
    statement = select(func.count()).select_from(grants)
    return int(tx.execute(statement.where(grants.c.node == node, grants.c.ends > now, _LIVE)).scalar_one())


_ANY_GRANT = Prepared(
    select(grants.c.id)
    .where(grants.c.node == bindparam("of_node"), grants.c.ends > bindparam("after"))
    .limit(1)
)


def standing(tx: Transaction, names: Sequence[str], now: float) -> dict[str, list[GrantRow]]:
    """Approved grants that have not ended, by node; most nodes have none."""
    if len(names) == 1 and _ANY_GRANT.first(tx, {"of_node": names[0], "after": now}) is None:
        return {}
    found: dict[str, list[GrantRow]] = {}
    for some in chunked(names):
        rows = tx.execute(
            select(*grants.c)
            .where(grants.c.node.in_(some), grants.c.ends > now, grants.c.approved_at.is_not(None), _LIVE)
            .order_by(grants.c.id)
        )
        for row in map(_row, rows):
            found.setdefault(row.node, []).append(row)
    return found


def page(
    tx: Transaction,
    *,
    node: str | None,
    scope: Scope,
    live_at: float | None,
    before: int | None,
    limit: int,
) -> list[GrantRow]:
    """Newest first, ids below `before`; with `live_at` only those that are or may still be open then."""
    statement = (
        select(*grants.c)
        .where(within(scope, grants.c.site, grants.c.node))
        .order_by(grants.c.id.desc())
        .limit(limit)
    )
    if node is not None:
        statement = statement.where(grants.c.node == node)
    if live_at is not None:
        statement = statement.where(grants.c.ends > live_at, _LIVE)
    if before is not None:
        statement = statement.where(grants.c.id < before)
    return [_row(row) for row in tx.execute(statement)]


# -- break-glass codes -----------------------------------------------------------------------------------


def reserve_code(tx: Transaction, *, node: str, actor: str, now: float) -> int:
    """Add a code without its hash, and return its id; `set_hash` follows in the same transaction."""
    made = tx.execute(
        insert(break_glass_codes)
        .values(node=node, salt=b"", hash=b"", created_at=now, created_by=actor)
        .returning(break_glass_codes.c.id)
    )
    return int(made.scalar_one())


def set_hash(tx: Transaction, code: CodeHash) -> None:
    """Complete a code."""
    _update_code(tx, code.id, salt=code.salt, hash=code.hash)


def code(tx: Transaction, number: int) -> CodeView | None:
    """One code."""
    row = tx.execute(select(*_SHOWN).where(break_glass_codes.c.id == number)).first()
    return None if row is None else CodeView(**row._mapping)


def codes(tx: Transaction, node: str) -> list[CodeView]:
    """All codes of a node, oldest first."""
    rows = tx.execute(
        select(*_SHOWN).where(break_glass_codes.c.node == node).order_by(break_glass_codes.c.id)
    )
    return [CodeView(**row._mapping) for row in rows]


_ANY_CODE = Prepared(
    select(break_glass_codes.c.id)
    .where(break_glass_codes.c.node == bindparam("of_node"), break_glass_codes.c.revoked_at.is_(None))
    .limit(1)
)


def listed_codes(tx: Transaction, names: Sequence[str], now: float) -> dict[str, list[CodeHash]]:
    """What nodes are told: codes that are not revoked and not used long ago, by node."""
    if len(names) == 1 and _ANY_CODE.first(tx, {"of_node": names[0]}) is None:
        return {}
    table = break_glass_codes.c
    found: dict[str, list[CodeHash]] = {}
    for some in chunked(names):
        rows = tx.execute(
            select(table.node, table.id, table.salt, table.hash)
            .where(
                table.node.in_(some),
                table.revoked_at.is_(None),
                or_(table.used_at.is_(None), table.noted_at > now - USED_LISTED_S),
            )
            .order_by(table.id)
        )
        for node, number, salt, hash_ in rows:
            found.setdefault(node, []).append(CodeHash(id=number, salt=salt, hash=hash_))
    return found


def note_used(tx: Transaction, number: int, *, at: float, now: float) -> None:
    """The node has told that a code was used."""
    _update_code(tx, number, used_at=at, noted_at=now)


def revoke_code(tx: Transaction, number: int, *, actor: str, now: float) -> None:
    """A code works no more, and what it opened ends."""
    _update_code(tx, number, revoked_at=now, revoked_by=actor)


def _update_code(tx: Transaction, number: int, **values: object) -> None:
    tx.execute(update(break_glass_codes).where(break_glass_codes.c.id == number).values(values))


_SHOWN = [
    break_glass_codes.c[name]
    for name in ("id", "node", "created_at", "created_by", "used_at", "revoked_at", "revoked_by")
]
