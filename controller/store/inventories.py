"""Rows of inventories: what each node says it consists of, from when, and until when it said so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import TextClause, and_, delete, exists, insert, or_, select, text, update

from contract.inventory import Fact, Kind
from controller.inventory_records import FactView, HolderView
from controller.permissions import Scope
from controller.store import Transaction
from controller.store.schema import inventories, inventory_facts, inventory_items, nodes
from controller.store.scoped import within

_ROWS = 1000
"""SQLite takes 32,766 values in a statement."""
PRUNED_AT_ONCE = 2000
_LOCK = 0x5246494E
_FACTS, _ITEMS = inventory_facts.c, inventory_items.c
_JOINED = inventory_facts.join(inventory_items, _ITEMS.id == _FACTS.item)
_PARTS = {
    "sqlite": tuple(f"json_extract(s.value, '$[{n}]')" for n in range(3)),
    "postgresql": tuple(f"(s.value ->> {n})" for n in range(3)),
}
_FROM = {
    "sqlite": "json_each(:said) AS s",
    "postgresql": "json_array_elements(CAST(:said AS json)) AS s(value)",
}


def _beginning(dialect: str, conflict: tuple[str, str]) -> tuple[TextClause, TextClause]:
    """Return the statements that add items, and then what is said of a node, of one JSON list."""
    kind, name, value = _PARTS[dialect]
    added = f"INSERT {conflict[0]} INTO inventory_items (kind, name, value)"
    facts = (
        "INSERT INTO inventory_facts (node, item, seen_from, changed_at)"  # noqa: S608  (constants)
        f" SELECT :node, i.id, :now, :now FROM {_FROM[dialect]}"
        f" JOIN inventory_items AS i ON i.kind = {kind} AND i.name = {name} AND i.value = {value}"
        " WHERE NOT EXISTS (SELECT 1 FROM inventory_facts AS f"
        " WHERE f.node = :node AND f.item = i.id AND f.seen_until IS NULL)"
    )
    items = f"{added} SELECT {kind}, {name}, {value} FROM {_FROM[dialect]} WHERE true {conflict[1]}"  # noqa: S608
    return text(items), text(facts)


_BEGIN_SQLITE = _beginning("sqlite", ("OR IGNORE", ""))
_BEGIN_POSTGRESQL = _beginning("postgresql", ("", "ON CONFLICT DO NOTHING"))
_VIEW = select(
    _FACTS.id, _ITEMS.kind, _ITEMS.name, _ITEMS.value, _FACTS.seen_from, _FACTS.seen_until
).select_from(_JOINED)


class InventoryRow(NamedTuple):
    """The newest inventory of a node."""

    sha256: bytes
    since: float
    left_out: int


def lock(tx: Transaction) -> None:
    """Several controllers: who adds items and who removes those that nothing names wait for each other."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def load(tx: Transaction, node: str) -> InventoryRow | None:
    """The newest of a node."""
    row = tx.execute(
        select(inventories.c.sha256, inventories.c.since, inventories.c.left_out).where(
            inventories.c.node == node
        )
    ).first()
    return None if row is None else InventoryRow(*row)


def save(tx: Transaction, node: str, row: InventoryRow, *, new: bool) -> None:
    """Write which is the newest."""
    if new:
        tx.execute(insert(inventories).values(node=node, **row._asdict()))
    else:
        tx.execute(update(inventories).where(inventories.c.node == node).values(**row._asdict()))


def present(tx: Transaction, node: str) -> dict[Fact, int]:
    """What is so now, with the row of each."""
    rows = tx.execute(
        select(_ITEMS.kind, _ITEMS.name, _ITEMS.value, _FACTS.id)
        .select_from(_JOINED)
        .where(_FACTS.node == node, _FACTS.seen_until.is_(None))
    )
    return {Fact(row.kind, row.name, row.value): row.id for row in rows}


def begin(tx: Transaction, node: str, facts: Sequence[Fact], now: float) -> None:
    """These are so from now on, unless they are so already. The caller holds the lock. One statement for all: row by row it would
    take PostgreSQL ten seconds for what a node may send at once."""
    said = {"said": msgspec.json.encode(facts).decode(), "node": node, "now": now}
    add_items, add_facts = _BEGIN_POSTGRESQL if tx.dialect.name == "postgresql" else _BEGIN_SQLITE
    tx.execute(add_items, {"said": said["said"]})
    tx.execute(add_facts, said)


def end(tx: Transaction, facts: Sequence[int], now: float) -> None:
    """These rows are so no more."""
    for at in range(0, len(facts), _ROWS):
        tx.execute(
            update(inventory_facts)
            .where(_FACTS.id.in_(facts[at : at + _ROWS]), _FACTS.seen_until.is_(None))
            .values(seen_until=now, changed_at=now)
        )


def keep_newest(tx: Transaction, node: str, count: int) -> int:
    """Remove all but the newest `count` of what a node said once, at most PRUNED_AT_ONCE; return how many went."""
    beyond = (
        select(_FACTS.id)
        .where(_FACTS.node == node, _FACTS.seen_until.is_not(None))
        .order_by(_FACTS.changed_at.desc(), _FACTS.id.desc())
        .offset(count)
        .limit(PRUNED_AT_ONCE)
    )
    return int(tx.execute(delete(inventory_facts).where(_FACTS.id.in_(beyond.scalar_subquery()))).rowcount)


def prune(tx: Transaction, older_than: float) -> int:
    """Remove what ended before a moment, at most PRUNED_AT_ONCE; return how many went."""
    old = (
        select(_FACTS.id)
        .where(_FACTS.seen_until < older_than)
        .order_by(_FACTS.seen_until)
        .limit(PRUNED_AT_ONCE)
    )
    return int(tx.execute(delete(inventory_facts).where(_FACTS.id.in_(old.scalar_subquery()))).rowcount)


def prune_items(tx: Transaction) -> int:
    """Remove items that nothing names, at most PRUNED_AT_ONCE; return how many went. The caller holds the lock."""
    unused = select(_ITEMS.id).where(~exists().where(_FACTS.item == _ITEMS.id)).limit(PRUNED_AT_ONCE)
    return int(tx.execute(delete(inventory_items).where(_ITEMS.id.in_(unused.scalar_subquery()))).rowcount)


def at(
    tx: Transaction, node: str, *, moment: float | None, kind: Kind | None, after: int, limit: int
) -> list[FactView]:
    """What was so at a moment (None: is so now), in the order in which it became known."""
    statement = _VIEW.where(_FACTS.node == node, _FACTS.id > after).order_by(_FACTS.id).limit(limit)
    if kind is not None:
        statement = statement.where(_ITEMS.kind == kind)
    if moment is None:
        statement = statement.where(_FACTS.seen_until.is_(None))
    else:
        until = or_(_FACTS.seen_until.is_(None), _FACTS.seen_until > moment)
        statement = statement.where(_FACTS.seen_from <= moment, until)
    return [FactView(**row._mapping) for row in tx.execute(statement)]


def history(
    tx: Transaction, node: str, *, kind: Kind | None, before: tuple[float, int] | None, limit: int
) -> list[tuple[float, FactView]]:
    """All that is and was so, what changed last first, with the moment of that change."""
    statement = _VIEW.add_columns(_FACTS.changed_at).where(_FACTS.node == node)
    statement = statement.order_by(_FACTS.changed_at.desc(), _FACTS.id.desc()).limit(limit)
    if kind is not None:
        statement = statement.where(_ITEMS.kind == kind)
    if before is not None:
        moment, id_ = before
        below = or_(_FACTS.changed_at < moment, and_(_FACTS.changed_at == moment, _FACTS.id < id_))
        statement = statement.where(below)
    found = []
    for row in tx.execute(statement):
        values = dict(row._mapping)
        found.append((float(values.pop("changed_at")), FactView(**values)))
    return found


def holders(
    tx: Transaction, name: str, *, version: str | None, scope: Scope, after: tuple[str, int], limit: int
) -> list[HolderView]:
    """Nodes that have a package now, by name."""
    statement = (
        select(
            _FACTS.id,
            _FACTS.node,
            nodes.c.site,
            _ITEMS.name,
            _ITEMS.value.label("version"),
            _FACTS.seen_from.label("since"),
        )
        .select_from(_JOINED.join(nodes, nodes.c.node == _FACTS.node))
        .where(_ITEMS.kind == "package", _ITEMS.name == name, _FACTS.seen_until.is_(None))
        .where(within(scope, nodes.c.site, nodes.c.node))
        .where(or_(_FACTS.node > after[0], and_(_FACTS.node == after[0], _FACTS.id > after[1])))
        .order_by(_FACTS.node, _FACTS.id)
        .limit(limit)
    )
    if version is not None:
        statement = statement.where(_ITEMS.value == version)
    return [HolderView(**row._mapping) for row in tx.execute(statement)]
