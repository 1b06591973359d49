"""Delivery: every event to every outlet, in order, at least once, however long a receiver is away.

A cursor for each outlet is in the store, and moves only after the receiver has a batch. What a receiver refuses for good is tried
once alone and then laid aside as a dead letter with the reason, so that one event cannot stop all that follow. Failures wait
longer and longer, up to LONGEST_PAUSE_S; the first one and the end of it are events themselves.

With several controllers the one that holds an outlet's lease sends; when it dies, another takes over after LEASE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence

from controller.bell import Bell
from controller.outlets import SEVERITIES, Outlet, Settings, Unavailable, Unwanted
from controller.permissions import EVERYWHERE
from controller.records import EventView
from controller.store import Duplicate, Store, StoreUnavailable, Transaction, events
from controller.store import outlets as rows
from controller.store.outlets import OutletRow

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
LEASE_S = 30.0
GATHER_S = 0.2
LOOK_AGAIN_S = 2.0
"""Another controller rings this bell too (controller.replica); a ring may be lost while the database is away."""


class Delivery:
    """One outlet's sender: `run` until cancelled."""

    def __init__(self, store: Store, bell: Bell, settings: Settings, outlet: Outlet) -> None:
        """Sends nothing yet."""
        self._store = store
        self._bell = bell
        self._settings = settings
        self._outlet = outlet
        self._holder = secrets.token_hex(8)

    async def run(self) -> None:
        """Send what there is and wait for more, for ever."""
        try:
            while True:
                bell = self._bell.listen()
                pause_s = await self._turn()
                if pause_s:
                    await asyncio.wait([bell], timeout=pause_s)
                    await asyncio.sleep(GATHER_S)  # what rings often comes in batches
        finally:
            await self._outlet.close()
            with contextlib.suppress(StoreUnavailable):
                await self._store.run(lambda tx: rows.release(tx, self._settings.name, self._holder))

    async def _turn(self) -> float:
        """Send one batch; returns how long to wait before the next look."""
        try:
            row = await self._store.run(self._lease)
            if row is None:
                return LOOK_AGAIN_S
            if (left_s := row.next_at - time.time()) > 0:
                return min(left_s, LEASE_S / 3)
            batch = await self._store.run(lambda tx: self._batch(tx, row.cursor))
            if not batch:
                return LOOK_AGAIN_S
            await self._deliver(row, batch)
        except (StoreUnavailable, Duplicate):  # the latter: another controller has just made the row
            return LOOK_AGAIN_S
        return 0.0

    async def _deliver(self, row: OutletRow, batch: Sequence[EventView]) -> None:
        wanted = [event for event in batch if _wanted(event, self._settings)]
        try:
            if wanted:
                await self._outlet.send(wanted)
        except Unavailable as error:
            await self._fail(row, str(error))
            return
        except Unwanted as error:
            if not await self._one_by_one(row, wanted, str(error)):
                return
            wanted = []
        await self._go_on(row, batch[-1].id, len(wanted))

    async def _one_by_one(self, row: OutletRow, wanted: Sequence[EventView], why: str) -> bool:
        """Find out which of a refused batch are refused, lay those aside and send the others; False: try again later."""
        for event in wanted:
            refused = why if len(wanted) == 1 else ""
            try:
                if not refused:
                    await self._outlet.send([event])
            except Unavailable as error:
                await self._fail(row, str(error))
                return False
            except Unwanted as error:
                refused = str(error)
            if refused:
                await self._lay_aside(row, event.id, refused)
            await self._go_on(row, event.id, 0 if refused else 1)
        return True

    async def _fail(self, row: OutletRow, why: str) -> None:
        await self._store.run(lambda tx: self._failed(tx, row, why))

    async def _go_on(self, row: OutletRow, cursor: int, count: int) -> None:
        await self._store.run(lambda tx: self._delivered(tx, row, cursor, count))

    async def _lay_aside(self, row: OutletRow, event: int, why: str) -> None:
        await self._store.run(lambda tx: rows.lay_aside(tx, row.name, event, why, time.time()))

    # -- in the store's thread

    def _lease(self, tx: Transaction) -> OutletRow | None:
        return rows.lease(
            tx, self._settings.name, self._settings.kind, holder=self._holder, for_s=LEASE_S, now=time.time()
        )

    def _batch(self, tx: Transaction, cursor: int) -> list[EventView]:
        return events.read(
            tx, after=cursor, limit=self._settings.batch, node=None, scope=EVERYWHERE, order="up"
        )

    def _failed(self, tx: Transaction, row: OutletRow, why: str) -> None:
        now = time.time()
        attempts = (rows.load(tx, row.name) or row).attempts + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (attempts - 1), LONGEST_PAUSE_S)
        rows.failed(tx, row.name, attempts=attempts, next_at=now + pause_s, why=why, now=now)
        if attempts == 1:
            text = f"outlet {row.name} does not take events: {why}; they are kept and sent later"
            events.add(tx, "outlet.failing", "warning", text[:2048], now=now)

    def _delivered(self, tx: Transaction, row: OutletRow, cursor: int, count: int) -> None:
        now = time.time()
        before = rows.load(tx, row.name) or row
        rows.delivered(tx, row.name, cursor=cursor, count=count, now=now)
        if before.failing_since is not None and count:
            text = f"outlet {row.name} takes events again after {now - before.failing_since:.0f} s"
            events.add(tx, "outlet.recovered", "info", text, now=now)


def _wanted(event: EventView, settings: Settings) -> bool:
    return SEVERITIES.index(event.severity) >= SEVERITIES.index(settings.least)
