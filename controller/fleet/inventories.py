"""Use cases of inventories: what nodes say they consist of. Taken in, compared with what was so before, shown, swept.

The node's own word, named by a quoted report (`contract.inventory`): nothing here reaches a verdict. Times are the controller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from contract.errors import Rejected
from contract.inventory import Fact, Facts, Kind
from controller.fleet.paging import cut, number
from controller.inventory_records import FactView, HolderView, InventoryView
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import Page
from controller.store import Store, Transaction, events, places
from controller.store import inventories as rows
from controller.store.inventories import InventoryRow

MAX_ENDED = 20_000
"""Of what a node said once so many are kept, whatever their age: a node that says another thing each time fills nothing."""
STEP = 1000
"""Rows that one transaction writes: some 10 ms."""
MIN_GAP_S = 30.0
"""Between two inventories of a node."""
REFUSED_AGAIN_S = 3600.0


class Inventories:
    """Inventories over one store. A part of `controller.fleet.Fleet`, which see."""

    _store: Store
    _settings: FleetSettings

    async def inventory_wanted(self, node: str, sha256: bytes) -> bool:
        """Whether an inventory with this digest is not the newest one here."""
        return await self._store.run(lambda tx: not _is_newest(tx, node, sha256))

    async def take_inventory(self, node: str, sha256: bytes, said: Facts, *, now: float) -> bool:
        """Compare with what was so before, and store what is new and what ended; False: too soon after the one before. The
        caller has checked that a quoted report of this node named `sha256`."""
        change: _Change | bool = await self._store.run(lambda tx: _compared(tx, node, sha256, said, now))
        if isinstance(change, bool):
            return change
        # In steps, so that nobody's report waits for 20,000 rows. Killed in between, it is asked for again: the digest comes last.
        for at in range(0, len(change.gone), STEP):
            await self._store.run(partial(rows.end, facts=change.gone[at : at + STEP], now=now))
        for at in range(0, len(change.new), STEP):
            await self._store.run(partial(_begin, node=node, facts=change.new[at : at + STEP], now=now))
        await self._store.run(lambda tx: _save(tx, node, InventoryRow(sha256, now, said.left_out)))
        if change.gone:
            while await self._store.run(partial(rows.keep_newest, node=node, count=MAX_ENDED)):
                pass
        return True

    async def refuse_inventory(self, node: str, rejected: Rejected, *, now: float) -> None:
        """Tell that a node brought something else than what its report named; once an hour."""
        await self._store.run(lambda tx: _refuse(tx, node, rejected, now))

    async def inventory(
        self,
        node: str,
        *,
        at: float | None = None,
        kind: Kind | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> InventoryView:
        """What the node consists of, or did at a moment; in the order in which it became known. Raises Rejected `node.unknown`,
        `cursor.invalid`."""
        return await self._store.run(lambda tx: _view(tx, node, at=at, kind=kind, after=after, limit=limit))

    async def inventory_history(
        self, node: str, *, kind: Kind | None = None, after: str | None = None, limit: int = 100
    ) -> Page[FactView]:
        """All that is and was so, what changed last first. Raises as `inventory` does."""
        return await self._store.run(lambda tx: _history(tx, node, kind=kind, after=after, limit=limit))

    async def package_holders(
        self, name: str, *, version: str | None, scope: Scope, after: str | None = None, limit: int = 100
    ) -> Page[HolderView]:
        """Which nodes say that they have a package now, by name. Raises Rejected `cursor.invalid`."""
        return await self._store.run(
            lambda tx: _holders(tx, name, version=version, scope=scope, after=after, limit=limit)
        )

    async def prune_inventories(self, *, now: float) -> int:
        """Forget what ended long ago, some at a time; return how much that was."""
        older_than = now - self._settings.inventory_days * 86400.0
        gone = 0
        while some := await self._store.run(lambda tx: rows.prune(tx, older_than)):
            gone += some
        while await self._store.run(_prune_items):
            pass
        return gone


class _Change(NamedTuple):
    """What differs from what was so before."""

    new: list[Fact]
    gone: list[int]
    """Rows."""


def _is_newest(tx: Transaction, node: str, sha256: bytes) -> bool:
    row = rows.load(tx, node)
    return row is not None and row.sha256 == sha256


def _compared(tx: Transaction, node: str, sha256: bytes, said: Facts, now: float) -> _Change | bool:
    """Return what differs; True where nothing is to be done, False where it is too soon."""
    before = rows.load(tx, node)
    if before is not None and before.sha256 == sha256:
        return True
    if before is not None and 0 <= now - before.since < MIN_GAP_S:
        return False
    there = rows.present(tx, node)
    facts = set(said.facts)
    return _Change(
        new=[fact for fact in said.facts if fact not in there],
        gone=[row for fact, row in there.items() if fact not in facts],
    )


def _begin(tx: Transaction, *, node: str, facts: Sequence[Fact], now: float) -> None:
    rows.lock(tx)
    rows.begin(tx, node, facts, now)


def _save(tx: Transaction, node: str, row: InventoryRow) -> None:
    rows.lock(tx)
    rows.save(tx, node, row, new=rows.load(tx, node) is None)


def _prune_items(tx: Transaction) -> int:
    rows.lock(tx)
    return rows.prune_items(tx)


def _refuse(tx: Transaction, node: str, rejected: Rejected, now: float) -> None:
    place = places.place_of(tx, node=node)
    if place is None or events.said_since(tx, "inventory.refused", node, now - REFUSED_AGAIN_S):
        return
    events.add(
        tx,
        "inventory.refused",
        "warning",
        f"{node}: inventory refused: {rejected.code}",
        now=now,
        node=node,
        site=place.site,
        detail={"code": rejected.code[:256], "detail": rejected.detail[:2048]},
    )


def _view(
    tx: Transaction, node: str, *, at: float | None, kind: Kind | None, after: str | None, limit: int
) -> InventoryView:
    _known(tx, node)
    row = rows.load(tx, node)
    found = rows.at(tx, node, moment=at, kind=kind, after=number(after) or 0, limit=limit + 1)
    page = cut(found, limit, lambda fact: str(fact.id))
    return InventoryView(
        node=node,
        sha256="" if row is None else row.sha256.hex(),
        since=None if row is None else row.since,
        left_out=0 if row is None else row.left_out,
        items=page.items,
        next=page.next,
    )


def _history(
    tx: Transaction, node: str, *, kind: Kind | None, after: str | None, limit: int
) -> Page[FactView]:
    _known(tx, node)
    found = rows.history(tx, node, kind=kind, before=_moment(after), limit=limit + 1)
    page = cut(found, limit, lambda one: f"{one[0].hex()}:{one[1].id}")
    return Page(items=[fact for _, fact in page.items], next=page.next)


def _known(tx: Transaction, node: str) -> None:
    if places.place_of(tx, node=node) is None:
        raise Rejected("node.unknown", node)


def _moment(cursor: str | None) -> tuple[float, int] | None:
    if cursor is None:
        return None
    moment, _, id_ = cursor.partition(":")
    try:
        return float.fromhex(moment), number(id_) or 0
    except (ValueError, OverflowError):
        raise Rejected("cursor.invalid", "wanted the `next` of the page before") from None


def _holders(
    tx: Transaction, name: str, *, version: str | None, scope: Scope, after: str | None, limit: int
) -> Page[HolderView]:
    node, _, id_ = (after or "").partition(":")
    since = (node, (number(id_) or 0) if after else 0)
    found = rows.holders(tx, name, version=version, scope=scope, after=since, limit=limit + 1)
    return cut(found, limit, lambda one: f"{one.node}:{one.id}")
