"""The use case of a database that was put back to an earlier day: nothing that it alone believes reaches a node until a person has
looked. Until then rollouts stand still, no baseline is chosen for a node that may hold a newer one, and what would be isolated by
itself is recommended. Isolations in force, and those that people order, are carried out as ever: they only close."""

from __future__ import annotations

from contract.errors import Rejected
from controller.fleet import acts
from controller.store import Store, Transaction, events, nodes, restores
from controller.store.restores import Restore


class Restoring:
    """Restores over one store. A part of `controller.fleet.Fleet`, which see."""

    _store: Store

    async def restore(self) -> Restore | None:
        """The restore that waits for a person."""
        return await self._store.run(restores.unconfirmed)

    async def confirm_restore(self, *, actor: str, reason: str, now: float) -> list[str]:
        """Go on as usual; returns the nodes that hold a newer baseline than the one chosen for them, which are now told to take
        that one. Raises Rejected `reason.missing`, `restore.none`."""
        return await self._store.run(lambda tx: _confirm(tx, actor=actor, reason=reason, now=now))

    async def ahead(self) -> list[str]:
        """Nodes that have reported a newer baseline than the one chosen for them, or another one."""
        return await self._store.run(_ahead)


def _ahead(tx: Transaction) -> list[str]:
    found = []
    for row in nodes.every(tx):
        wanted, held = row.baseline, row.state.baseline
        if wanted and held and (held.name != wanted.name or held.version > wanted.version):
            found.append(
                f"{row.node}: holds {held.name} {held.version}, chosen is {wanted.name} {wanted.version}"
            )
    return found


def _confirm(tx: Transaction, *, actor: str, reason: str, now: float) -> list[str]:
    why = acts.checked_reason(reason)
    if restores.unconfirmed(tx) is None:
        raise Rejected("restore.none", "no restore waits for confirmation")
    found = _ahead(tx)
    restores.confirm(tx, actor=actor, now=now)
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
    text = "the database was restored: rollouts, older baselines and automatic isolation wait for ringfence-controller confirm-restore"
    events.add(
        tx, "restore.waiting", "critical", text, now=now, detail={"backup_at": f"{restore.backup_at:.0f}"}
    )
