"""The use case of a database that was put back to an earlier day: nothing that it alone believes reaches a node until a person has
looked. Until then rollouts stand still, no baseline is chosen for a node that may hold a newer one, and what would be isolated by
itself is recommended. Isolations in force, and those that people order, are carried out as ever: they only close."""

from __future__ import annotations

from contract.errors import Rejected
from controller.fleet import acts
from controller.fleet.paging import cut
from controller.records import Page
from controller.restore_records import AheadNode, RestoreView, WaitingRestore
from controller.store import Store, Transaction, events, restores
from controller.store.restores import Restore


class Restoring:
    """Restores over one store. A part of `controller.fleet.Fleet`, which see."""

    _store: Store

    async def restore(self) -> RestoreView:
        """Whether one waits for a person."""
        return RestoreView(waiting=await self._store.run(_waiting))

    async def ahead(self, *, after: str | None = None, limit: int = 100) -> Page[AheadNode]:
        """Nodes that have reported a newer baseline than the one chosen for them, or another one; none where no restore waits."""
        return await self._store.run(lambda tx: _ahead(tx, after=after, limit=limit))

    async def confirm_restore(self, *, actor: str, reason: str, now: float) -> WaitingRestore:
        """Go on as usual; returns what stood against it. Nodes that are ahead are now told to take what is chosen for them.
        Raises Rejected `reason.missing`, `restore.none`."""
        return await self._store.run(lambda tx: _confirm(tx, actor=actor, reason=reason, now=now))


def _waiting(tx: Transaction) -> WaitingRestore | None:
    restore = restores.unconfirmed(tx)
    if restore is None:
        return None
    return WaitingRestore(
        restored_at=restore.at,
        backup_at=restore.backup_at,
        ahead=restores.count_ahead(tx),
        unheard=restores.count_unheard(tx, restore.at),
    )


def _ahead(tx: Transaction, *, after: str | None, limit: int) -> Page[AheadNode]:
    if restores.unconfirmed(tx) is None:
        return Page(items=[], next=None)
    return cut(restores.ahead(tx, after=after, limit=limit + 1), limit, lambda found: found.node)


def _confirm(tx: Transaction, *, actor: str, reason: str, now: float) -> WaitingRestore:
    why = acts.checked_reason(reason)
    found = _waiting(tx)
    if found is None or not restores.confirm(tx, actor=actor, now=now):
        raise Rejected("restore.none", "no restore waits for confirmation")
    acts.record(
        tx,
        "restore.confirmed",
        f"restore confirmed by {actor}: {why}"[:2048],
        actor=actor,
        target="controller",
        reason=why,
        now=now,
        severity="warning",
    )
    return found


def tell(tx: Transaction, restore: Restore, now: float) -> None:
    """Say at each start that a person is waited for."""
    text = (
        "the database was restored: rollouts, older baselines and automatic isolation wait for `ringfence restore confirm`, "
        "or for `ringfence-controller confirm-restore` on the controller's machine"
    )
    events.add(
        tx, "restore.waiting", "critical", text, now=now, detail={"backup_at": f"{restore.backup_at:.0f}"}
    )
