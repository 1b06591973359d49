"""The use cases of several controllers over one database. A part of `controller.fleet.Fleet`, which see.

A controller is a process with a lease in the database. Whose lease has run out is dead, and another one ends its sessions;
one that was only cut off from the database comes back, and shows its sessions again.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.fleet import isolation, restoring
from controller.fleet.isolation import Written
from controller.policy import FleetSettings
from controller.store import Store, Transaction, events, replicas, restores


class Replicating:
    """This controller among others over one store."""

    _store: Store
    _settings: FleetSettings

    async def start(self, *, name: str = "", now: float) -> None:
        """Call once before listening: enter the list of controllers, and say where a restore waits for a person."""
        await self._store.run(lambda tx: _enter(tx, self._store.identity, self._settings, name, now))

    async def leave(self) -> None:
        """End every session and leave the list. Others need not wait for the lease to run out."""
        await self._store.run(lambda tx: replicas.leave(tx, self._store.identity))

    async def beat(self, held: Mapping[str, int], *, name: str = "", now: float) -> list[str]:
        """Keep the lease, bury who is dead, and return the nodes of ours whose directive is due.

        `held`: epochs of the sessions that are open here, by node.
        """
        return await self._store.run(
            lambda tx: _beat(tx, self._store.identity, self._settings, held, name=name, now=now)
        )

    async def lost_sessions(self, held: Mapping[str, int]) -> list[str]:
        """Which of these sessions are another controller's by now."""
        return await self._store.run(lambda tx: replicas.lost(tx, self._store.identity, held))

    async def end_session(self, node: str, *, epoch: int) -> None:
        """The socket is gone; silence is judged by `sweep`. A later session of the node, anywhere, stays."""
        await self._store.run(lambda tx: replicas.end(tx, node, self._store.identity, epoch))

    async def directives_to(
        self, held: Mapping[str, int], *, now: float, only_due: bool = False, urgent: bool = False
    ) -> Written:
        """New directives for those of these sessions (node to epoch) that are still ours, in one transaction."""
        return await self._store.run(
            lambda tx: isolation.directives(
                tx,
                self._settings,
                list(held),
                now=now,
                ours=(self._store.identity, held),
                only_due=only_due,
            ),
            urgent=urgent,
        )


def _enter(tx: Transaction, own: str, settings: FleetSettings, name: str, now: float) -> None:
    replicas.enter(tx, own, name, replicas.clock(tx, now), settings.protected_addresses)
    restore = restores.unconfirmed(tx)
    if restore is not None:
        restoring.tell(tx, restore, now)


def _beat(
    tx: Transaction, own: str, settings: FleetSettings, held: Mapping[str, int], *, name: str, now: float
) -> list[str]:
    at = replicas.clock(tx, now)
    if not replicas.seen(tx, own, at):
        replicas.enter(tx, own, name, at, settings.protected_addresses)
        replicas.resume(tx, own, held)
    for dead in replicas.bury(tx, at):
        text = f"controller {dead or 'without a name'} was not seen for {replicas.LEASE_S:g} s: its nodes go to others"
        events.add(tx, "controller.lost", "warning", text[:2048], now=now)
    return [node for node in replicas.due(tx, own) if node in held]
