"""The use cases of reference values: what is expected, and what is accepted after the fact; one transaction each.

A part of `controller.fleet.Fleet`, which see for what every use case keeps to.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import Rejected
from contract.references import Expected, ReferenceSet
from controller.fleet import references
from controller.permissions import Scope
from controller.records import Page
from controller.reference_records import Accepted, BootView, ReferenceView
from controller.store import Store


class Referencing:
    """Reference values over one store."""

    _store: Store

    async def announce(
        self, sets: Sequence[ReferenceSet], *, scope: Scope, actor: str, reason: str, now: float
    ) -> list[ReferenceView | Rejected]:
        """Expect these values, each on its own: one that is refused (`site.unknown`, `scope.insufficient`, `reference.too-many`)
        does not fail the rest. Raises Rejected `reason.missing`."""
        return await self._store.run(
            lambda tx: references.announce(tx, sets, scope=scope, actor=actor, reason=reason, now=now)
        )

    async def withdraw_reference(
        self, reference: int, *, actor: str, reason: str, now: float
    ) -> ReferenceView:
        """Expect a set no more; boots that were accepted by it stay accepted. Raises Rejected `reference.unknown`,
        `reference.closed`, `reason.missing`."""
        return await self._store.run(
            lambda tx: references.withdraw(tx, reference, actor=actor, reason=reason, now=now)
        )

    async def list_references(
        self,
        *,
        scope: Scope,
        site: str | None = None,
        withdrawn: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[ReferenceView]:
        """Newest first."""
        return await self._store.run(
            lambda tx: references.list_(
                tx, scope=scope, site=site, withdrawn=withdrawn, after=after, limit=limit
            )
        )

    async def expected(self, site: str, *, now: float) -> Expected:
        """What is announced for a site at this time; nothing for an unknown one."""
        return await self._store.run(lambda tx: references.expected(tx, site, now))

    async def boot(self, node: str) -> BootView:
        """The boot that a node is held to. Raises Rejected `node.unknown`, `boot.unknown`."""
        return await self._store.run(lambda tx: references.boot(tx, node))

    async def accept_incident(
        self, incident: int, *, own_values: bool = False, actor: str, reason: str, now: float
    ) -> Accepted:
        """Accept the boots of all nodes of an incident, and expect their new values at their sites. Raises Rejected
        `incident.unknown`, `incident.closed`, `incident.none`, `reason.missing`. The caller reloads the session records
        and sends a Challenge to each node affected."""
        return await self._store.run(
            lambda tx: references.accept(
                tx, incident, own_values=own_values, actor=actor, reason=reason, now=now
            )
        )
