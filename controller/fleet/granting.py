"""The use cases of grants and break-glass codes, one transaction each.

A part of `controller.fleet.Fleet`, which see for what every use case keeps to.
"""

from __future__ import annotations

from controller.fleet import grants
from controller.fleet.grants import Codes
from controller.grant_records import CodeView, GrantChange, GrantRequest, GrantView
from controller.permissions import Scope
from controller.records import Change, Page
from controller.store import Store


class Granting:
    """Grants over one store."""

    _store: Store

    async def request_grant(self, wanted: GrantRequest, *, actor: str, now: float) -> GrantView:
        """Ask for access; opens nothing. Raises Rejected `node.unknown`, `grant.over`, `grant.invalid`,
        `grant.too-many`."""
        return await self._store.run(lambda tx: grants.request(tx, wanted, actor=actor, now=now))

    async def approve_grant(self, grant: int, *, actor: str, reason: str, now: float) -> GrantChange:
        """Let it travel with the node's next directive. Raises Rejected `grant.unknown`, `grant.decided`,
        `grant.over`, `grant.same-person`, `reason.missing`."""
        return await self._store.run(
            lambda tx: grants.approve(tx, grant, actor=actor, reason=reason, now=now)
        )

    async def revoke_grant(self, grant: int, *, actor: str, reason: str, now: float) -> GrantChange:
        """End it before its time, or turn a request down. Raises Rejected `grant.unknown`, `grant.decided`,
        `reason.missing`."""
        return await self._store.run(lambda tx: grants.revoke(tx, grant, actor=actor, reason=reason, now=now))

    async def grant(self, grant: int, *, now: float) -> GrantView:
        """One grant. Raises Rejected `grant.unknown`."""
        return await self._store.run(lambda tx: grants.get(tx, grant, now=now))

    async def list_grants(
        self,
        *,
        scope: Scope,
        node: str | None = None,
        site: str | None = None,
        ended: bool = False,
        after: str | None = None,
        limit: int = 100,
        now: float,
    ) -> Page[GrantView]:
        """Newest first; with `ended` those that are over too."""
        return await self._store.run(
            lambda tx: grants.list_(
                tx, scope=scope, node=node, site=site, ended=ended, after=after, limit=limit, now=now
            )
        )

    async def issue_codes(
        self, node: str, count: int, make: Codes, *, actor: str, reason: str, now: float
    ) -> Change:
        """Give a node so many new break-glass codes, hashed by `make`. Raises Rejected `node.unknown`,
        `break-glass.too-many`, `reason.missing`."""
        return await self._store.run(
            lambda tx: grants.issue_codes(tx, node, count, make, actor=actor, reason=reason, now=now)
        )

    async def list_codes(self, node: str) -> list[CodeView]:
        """All codes of a node, oldest first. Raises Rejected `node.unknown`."""
        return await self._store.run(lambda tx: grants.list_codes(tx, node))

    async def revoke_code(self, node: str, code: int, *, actor: str, reason: str, now: float) -> Change:
        """Make a code useless and end what it opened. Raises Rejected `node.unknown`, `break-glass.unknown`,
        `break-glass.decided`, `reason.missing`."""
        return await self._store.run(
            lambda tx: grants.revoke_code(tx, node, code, actor=actor, reason=reason, now=now)
        )
