"""Who brings an inventory now: those whose quoted report named one that is not here, a few at a time.

A fleet that comes back after an upgrade has all of them to bring; each is one bigger write. Refuses: what was not asked for, and
what is not what the report named. Relies on: a report being told of here only once its quote has been verified.
"""

from __future__ import annotations

import asyncio
import time

from contract.errors import Rejected
from contract.inventory import unpacked
from contract.messages import Inventory
from controller.fleet import Fleet

AT_ONCE = 4


class Stocktaking:
    """Inventories that are on their way, by node."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._named: dict[str, bytes] = {}
        """Not here yet, by node."""
        self._asked: set[str] = set()

    async def wanted(self, node: str, named: bytes) -> bool:
        """A report of this node was verified; `named` is the inventory that it names, if any. Return whether to ask for it now.
        Raises StoreUnavailable."""
        if named:
            self._named.pop(node, None)
            self._asked.discard(node)
            if await self._fleet.inventory_wanted(node, named):
                self._named[node] = named
        if node not in self._named or (node not in self._asked and len(self._asked) >= AT_ONCE):
            return False
        self._asked.add(node)
        return True

    async def take(self, node: str, message: Inventory) -> None:
        """Store what was asked for; one that is no good is told of, and not asked for again. Raises Rejected
        `inventory.unasked`, StoreUnavailable."""
        named = self._named.pop(node, None)
        asked = node in self._asked
        self._asked.discard(node)
        if named is None or not asked:
            raise Rejected("inventory.unasked", "nobody asked for it")
        try:
            said = await asyncio.to_thread(unpacked, message.packed, named)
        except Rejected as rejected:
            await self._fleet.refuse_inventory(node, rejected, now=time.time())
            return
        if not await self._fleet.take_inventory(node, named, said, now=time.time()):
            self._named[node] = named  # too soon: with a later report

    def left(self, node: str) -> None:
        """The session has ended."""
        self._named.pop(node, None)
        self._asked.discard(node)
