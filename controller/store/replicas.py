"""Rows of controllers: who is there, whose sessions are whose. A controller is one process; another process is another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import bindparam, delete, func, insert, or_, select, text, update

from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import controller_keys, controllers, nodes

LEASE_S = 15.0
"""A controller that was not seen for so long is dead: another one ends its sessions."""
_SWEEP_LOCK = 0x52465357


def clock(tx: Transaction, now: float) -> float:
    """Return the time that all controllers over this database share."""
    if tx.dialect.name == "postgresql":
        return float(tx.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return now


def leads(tx: Transaction) -> bool:
    """Whether this transaction may sweep: one controller at a time, nobody waits."""
    if tx.dialect.name != "postgresql":
        return True
    return bool(tx.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _SWEEP_LOCK}).scalar_one())


def seen(tx: Transaction, own: str, at: float) -> bool:
    """Keep one's own lease; False where it was lost, or never taken."""
    kept = tx.execute(update(controllers).where(controllers.c.id == own).values(seen_at=at))
    return kept.rowcount == 1


def enter(tx: Transaction, own: str, name: str, at: float, addresses: Sequence[str] = ()) -> None:
    """Be there, under these addresses. On SQLite nobody else can be: whoever was is gone."""
    if tx.dialect.name != "postgresql":
        tx.execute(update(nodes).where(nodes.c.connected).values(connected=False))
        tx.execute(delete(controllers))
    text_ = msgspec.json.encode(addresses).decode()
    tx.execute(insert(controllers).values(id=own, name=name, started_at=at, seen_at=at, addresses=text_))
    _end_orphans(tx)


def leave(tx: Transaction, own: str) -> None:
    """Be gone, with every session."""
    tx.execute(update(nodes).where(nodes.c.session_holder == own, nodes.c.connected).values(connected=False))
    tx.execute(delete(controllers).where(controllers.c.id == own))


def bury(tx: Transaction, at: float) -> list[str]:
    """End the sessions of controllers that are dead; returns their names."""
    dead = tx.execute(
        delete(controllers).where(controllers.c.seen_at < at - LEASE_S).returning(controllers.c.name)
    ).all()
    if dead:
        _end_orphans(tx)
    return [str(row.name) for row in dead]


def _end_orphans(tx: Transaction) -> None:
    there = select(controllers.c.id)
    tx.execute(
        update(nodes)
        .where(
            nodes.c.connected,
            nodes.c.session_holder.not_in(there),
            # Nobody's: of a controller from before there were several, which may still run during an upgrade.
            or_(nodes.c.session_holder != "", nodes.c.standing == "unreachable"),
        )
        .values(connected=False)
    )


def addresses(tx: Transaction) -> list[str]:
    """Every address of every controller that is there."""
    rows = tx.execute(select(controllers.c.addresses))
    return sorted({each for row in rows for each in msgspec.json.decode(row.addresses, type=list[str])})


_TAKE = Prepared(
    update(nodes)
    .where(nodes.c.node == bindparam("of_node"))
    .values(
        connected=bindparam("to_connected"),
        session_holder=bindparam("to_holder"),
        session_epoch=bindparam("to_epoch"),
    )
)
_END = Prepared(
    update(nodes)
    .where(
        nodes.c.node == bindparam("of_node"),
        nodes.c.session_holder == bindparam("of_holder"),
        nodes.c.session_epoch == bindparam("of_epoch"),
    )
    .values(connected=bindparam("to_connected"))
)


def take(tx: Transaction, node: str, own: str, epoch: int) -> None:
    """Hold a node's session from now on."""
    _TAKE.run(tx, {"of_node": node, "to_connected": True, "to_holder": own, "to_epoch": epoch})


def end(tx: Transaction, node: str, own: str, epoch: int) -> None:
    """End a session, unless the node has another one by now, here or elsewhere."""
    _END.run(tx, {"of_node": node, "of_holder": own, "of_epoch": epoch, "to_connected": False})


def resume(tx: Transaction, own: str, held: Mapping[str, int]) -> None:
    """Show again what one held all the while, after one had been taken for dead."""
    for node, epoch in _held(tx, own).items():
        if held.get(node) == epoch:
            tx.execute(update(nodes).where(nodes.c.node == node).values(connected=True))


def _held(tx: Transaction, own: str) -> dict[str, int]:
    rows = tx.execute(select(nodes.c.node, nodes.c.session_epoch).where(nodes.c.session_holder == own))
    return {row.node: row.session_epoch for row in rows}


def lost(tx: Transaction, own: str, held: Mapping[str, int]) -> list[str]:
    """Which of the sessions that one holds are another's by now, or a later one's."""
    there = _held(tx, own)
    return [node for node, epoch in held.items() if there.get(node) != epoch]


def due(tx: Transaction, own: str) -> list[str]:
    """Nodes whose session one holds and whose directive is due."""
    rows = tx.execute(
        select(nodes.c.node).where(nodes.c.session_holder == own, nodes.c.directive_due, nodes.c.connected)
    )
    return [row.node for row in rows]


def count(tx: Transaction) -> int:
    """Controllers that are there."""
    return int(tx.execute(select(func.count()).select_from(controllers)).scalar_one())


def alive(tx: Transaction, now: float) -> bool:
    """Whether any controller runs on this database, as far as its lease says."""
    found = tx.execute(select(controllers.c.id).where(controllers.c.seen_at > clock(tx, now) - LEASE_S))
    return found.first() is not None


def keys(tx: Transaction) -> dict[str, str]:
    """Fingerprints of the keys that controllers over this database use."""
    return {row.name: row.sha256 for row in tx.execute(select(controller_keys)).all()}


def add_keys(tx: Transaction, new: Mapping[str, str], now: float) -> None:
    """Write down further keys. Raises the database's own integrity error when another controller was first."""
    rows: Sequence[dict[str, object]] = [{"name": n, "sha256": s, "at": now} for n, s in new.items()]
    if rows:
        tx.execute(insert(controller_keys), rows)
