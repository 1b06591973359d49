"""Use cases of outlets: how far they are, try again now, what they refused."""

from __future__ import annotations

from contract.errors import Rejected
from controller.fleet import acts
from controller.fleet.paging import cut, number
from controller.outlet_records import DeadLetter, OutletView
from controller.permissions import EVERYWHERE
from controller.records import Page
from controller.store import Store, Transaction, events
from controller.store import outlets as rows


class Outlets:
    """Outlets over one store. A part of `controller.fleet.Fleet`, which see."""

    _store: Store

    async def list_outlets(self) -> list[OutletView]:
        """By name; those that were configured once stay listed."""
        return await self._store.run(_views)

    async def retry_outlet(self, name: str, *, actor: str, reason: str, now: float) -> OutletView:
        """Try a failing receiver at once. Raises Rejected `outlet.unknown`, `reason.missing`."""
        return await self._store.run(lambda tx: _retry(tx, name, actor=actor, reason=reason, now=now))

    async def list_dead_letters(
        self, name: str, *, after: str | None = None, limit: int = 100
    ) -> Page[DeadLetter]:
        """Oldest first. Raises Rejected `outlet.unknown`."""
        return await self._store.run(lambda tx: _dead(tx, name, after=after, limit=limit))


def _views(tx: Transaction) -> list[OutletView]:
    newest, dead = events.last_id(tx, EVERYWHERE), rows.count_dead(tx)
    return [
        OutletView(
            name=row.name,
            kind=row.kind,
            delivered=row.delivered,
            delivered_at=row.delivered_at,
            behind=max(0, newest - row.cursor),
            failing_since=row.failing_since,
            attempts=row.attempts,
            next_at=row.next_at or None,
            why=row.why,
            dead_letters=dead.get(row.name, 0),
        )
        for row in rows.all_(tx)
    ]


def _retry(tx: Transaction, name: str, *, actor: str, reason: str, now: float) -> OutletView:
    why = acts.checked_reason(reason)
    if not rows.retry(tx, name):
        raise Rejected("outlet.unknown", name[:63])
    acts.record(
        tx,
        "outlet.retried",
        f"outlet {name} is tried at once",
        actor=actor,
        target=f"outlet {name}",
        reason=why,
        now=now,
    )
    return next(view for view in _views(tx) if view.name == name)


def _dead(tx: Transaction, name: str, *, after: str | None, limit: int) -> Page[DeadLetter]:
    if rows.load(tx, name) is None:
        raise Rejected("outlet.unknown", name[:63])
    found = rows.dead(tx, name, after=number(after) or 0, limit=limit + 1)
    return cut(found, limit, lambda letter: str(letter.event))
