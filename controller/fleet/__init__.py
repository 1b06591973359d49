"""The use cases: everything that reads or changes what the controller knows, one transaction each.

Refuses to do: SQL (controller.store), judging (controller.judge), signing, clocks, sockets. Directives come out
unsigned; `now` comes in. Every method raises `contract.errors.Rejected` for what the caller asked wrongly, with
the refusal already recorded as an event where it matters, and `controller.store.StoreUnavailable` when the
database cannot answer: then nothing was done and nothing is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contract.directive import Directive
from contract.errors import Rejected
from controller.fleet import (
    baselines,
    boots,
    incidents,
    isolation,
    nodes,
    relabelling,
    reports,
    sessions,
    sites,
    subjects,
)
from controller.fleet.editing import Editing
from controller.fleet.enrolling import Enrolling
from controller.fleet.granting import Granting
from controller.fleet.inventories import Inventories
from controller.fleet.outlets import Outlets
from controller.fleet.referencing import Referencing
from controller.fleet.replicating import Replicating
from controller.fleet.responding import Responding
from controller.fleet.restoring import Restoring
from controller.fleet.rolling import Rolling
from controller.fleet.subjects import Subject
from controller.permissions import Scope
from controller.policy import SitePolicy
from controller.presented import Presented
from controller.records import (
    AuditView,
    BaselineView,
    Change,
    ChangeTrust,
    EventView,
    Evidence,
    FleetCounts,
    HoldView,
    IncidentView,
    Issue,
    IssuedCertificate,
    NodeDetail,
    NodeView,
    Outcome,
    Page,
    Relabel,
    Sections,
    SessionRecord,
    SiteView,
    Standing,
    StandingChange,
)
from controller.selector import Selector
from controller.store import Transaction, audit
from controller.store.selecting import SortKey


class Fleet(
    Editing,
    Enrolling,
    Referencing,
    Granting,
    Rolling,
    Outlets,
    Replicating,
    Restoring,
    Responding,
    Inventories,
):
    """All use cases over one store. Lists take `after` (the cursor of the page before) and `limit` (1 to 500)."""

    # -- sites ---------------------------------------------------------------------------------------------

    async def create_site(self, site: str, policy: SitePolicy, *, actor: str, now: float) -> SiteView:
        """Raises Rejected `name.invalid`, `site.exists`."""
        return await self._store.run(lambda tx: sites.create(tx, site, policy, actor=actor, now=now))

    async def set_policy(
        self, site: str, policy: SitePolicy, *, actor: str, reason: str, now: float
    ) -> SiteView:
        """Raises Rejected `site.unknown`, `reason.missing`."""
        return await self._store.run(
            lambda tx: sites.set_policy(tx, site, policy, actor=actor, reason=reason, now=now)
        )

    async def list_sites(self, *, scope: Scope, after: str | None = None, limit: int = 100) -> Page[SiteView]:
        """By name."""
        return await self._store.run(lambda tx: sites.list_(tx, scope=scope, after=after, limit=limit))

    async def site(self, site: str) -> SiteView:
        """Raises Rejected `site.unknown`."""
        return await self._store.run(lambda tx: sites.get(tx, site))

    # -- sessions and evidence -----------------------------------------------------------------------------

    async def open_session(self, node: str, certificate_sha256: bytes, *, now: float) -> SessionRecord:
        """Raises Rejected `session.unknown-node`, `session.certificate` (b04, b09): recorded."""
        return await self._store.run(
            lambda tx: sessions.open_session(tx, node, certificate_sha256, own=self._store.identity, now=now)
        )

    async def check_certificate(self, node: str, certificate_sha256: bytes) -> None:
        """For the file routes: raises Rejected as open_session does, records nothing."""
        await self._store.run(lambda tx: sessions.check_certificate(tx, node, certificate_sha256))

    async def session(self, node: str) -> SessionRecord:
        """Read again what a session holds, after a Change named the node. Raises Rejected `session.unknown-node`."""
        return await self._store.run(lambda tx: sessions.session(tx, node))

    async def boot_reference(self, node: str) -> bytes | None:
        """The boot that a node is held to, encoded; None until one was accepted."""
        return await self._store.run(lambda tx: boots.reference(tx, node))

    async def sections(self, name: str, version: int) -> Sections:
        """What a baseline says of attestation. Raises Rejected `baseline.unknown`."""
        return await self._store.run(lambda tx: baselines.sections(tx, name, version))

    async def take_report(
        self,
        node: str,
        evidence: Evidence,
        *,
        now: float,
        presented: Presented | None = None,
        over: bytes | None = None,
    ) -> Outcome:
        """Judge verified evidence, store it, and say what follows: one transaction. `presented`: as it came; `over`: the
        SHA-256 of its session's certificate. Raises Rejected `session.certificate` where that is no longer bound."""
        return await self._store.run(
            lambda tx: reports.take(
                tx, self._settings, node, evidence, now=now, presented=presented, over=over
            )
        )

    async def reject_evidence(
        self,
        node: str,
        rejected: Rejected,
        *,
        now: float,
        presented: Presented | None = None,
        over: bytes | None = None,
    ) -> Outcome:
        """Record evidence that did not verify (c07). For a failure of our own use code `verification.failed`. `over` as
        for `take_report`: what comes over a void session is not held against the node."""
        return await self._store.run(
            lambda tx: reports.reject_evidence(
                tx, self._settings, node, rejected, now=now, presented=presented, over=over
            )
        )

    async def renew_certificate(
        self, node: str, csr: bytes, issue: Issue, *, now: float, over: bytes | None = None
    ) -> IssuedCertificate:
        """Issue and bind a new certificate; the old one stays good until a session opens with the new one. `over` as for
        `take_report`."""
        return await self._store.run(
            lambda tx: sessions.renew_certificate(tx, node, csr, issue, now=now, over=over)
        )

    async def directive_for(self, node: str, *, now: float) -> Directive:
        """A new directive with the next number. Raises Rejected `session.unknown-node`."""
        made = await self.directives_for([node], now=now)
        if node not in made:
            raise Rejected("session.unknown-node", node)
        return made[node]

    async def directives_for(self, nodes_: Sequence[str], *, now: float) -> dict[str, Directive]:
        """New directives for these nodes, in one transaction; unknown nodes are left out."""
        return await self._store.run(lambda tx: isolation.directives(tx, self._settings, nodes_, now=now))

    async def accept_boot(self, node: str, *, actor: str, reason: str, now: float) -> Change:
        """Take the boot seen last as the node's reference. Raises Rejected `node.unknown`, `boot.no-candidate`,
        `reason.missing`. The caller reloads the session record and sends a Challenge."""
        return await self._store.run(
            lambda tx: boots.accept_boot(tx, node, actor=actor, reason=reason, now=now)
        )

    async def sweep(self, *, now: float) -> list[StandingChange]:
        """Judge silence (a05). Call a few times an interval, and once at start."""
        changes: list[StandingChange] = []
        while True:
            some = await self._store.run(lambda tx: nodes.sweep(tx, self._settings, now=now))
            changes += some
            if len(some) < nodes.SWEEP_NODES:
                return changes

    # -- isolation -----------------------------------------------------------------------------------------

    async def isolate_node(self, node: str, *, actor: str, reason: str, now: float) -> Change:
        """Raises Rejected `node.unknown`, `reason.missing`, `hold.exists`."""
        return await self._store.run(
            lambda tx: isolation.isolate(tx, node=node, site=None, actor=actor, reason=reason, now=now),
            urgent=True,
        )

    async def isolate_site(self, site: str, *, actor: str, reason: str, now: float) -> Change:
        """Raises Rejected `site.unknown`, `reason.missing`, `hold.exists`."""
        return await self._store.run(
            lambda tx: isolation.isolate(tx, node=None, site=site, actor=actor, reason=reason, now=now),
            urgent=True,
        )

    async def release_node(self, node: str, *, actor: str, reason: str, now: float) -> Change:
        """Raises Rejected `node.unknown`, `reason.missing`, `hold.none`. Leaves a hold on its site in force."""
        return await self._store.run(
            lambda tx: isolation.release(tx, node=node, site=None, actor=actor, reason=reason, now=now)
        )

    async def release_site(self, site: str, *, actor: str, reason: str, now: float) -> Change:
        """Raises Rejected `site.unknown`, `reason.missing`, `hold.none`. Leaves holds on single nodes in force."""
        return await self._store.run(
            lambda tx: isolation.release(tx, node=None, site=site, actor=actor, reason=reason, now=now)
        )

    async def list_holds(
        self,
        *,
        scope: Scope,
        active: bool = True,
        site: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[HoldView]:
        """Newest first; `active=False` lists released ones too."""
        return await self._store.run(
            lambda tx: isolation.list_(tx, scope=scope, active=active, site=site, after=after, limit=limit)
        )

    # -- baselines and trust files -------------------------------------------------------------------------

    async def change_trust(self, change: ChangeTrust, *, actor: str, now: float) -> list[BaselineView]:
        """Run `change` over all trust files and store what it returns, whole or not at all: pushing a baseline,
        refreshing the timestamp. Raises what `change` raises, and Rejected `baseline.changed` when a stored
        name and version would get other content."""
        return await self._store.run(lambda tx: baselines.change_trust(tx, change, actor=actor, now=now))

    async def trust_file(self, path: str) -> bytes | None:
        """One file of the repository, or None."""
        return await self._store.run(lambda tx: baselines.trust_file(tx, path))

    async def trust_files(self) -> dict[str, bytes]:
        """The whole repository, as it is stored."""
        return await self._store.look(baselines.trust_files)

    async def assign_baseline(
        self, site: str, name: str, version: int | None, *, actor: str, reason: str, now: float
    ) -> Change:
        """Choose a baseline for a site; version None is the newest. Raises Rejected `site.unknown`,
        `baseline.unknown`, `baseline.older` (than the one of that name assigned now), `reason.missing`."""
        return await self._store.run(
            lambda tx: baselines.assign(tx, site, name, version, actor=actor, reason=reason, now=now)
        )

    async def list_baselines(
        self, *, scope: Scope, after: str | None = None, limit: int = 100
    ) -> Page[BaselineView]:
        """By name, then version. All of them, each with the sites of the scope that use it."""
        return await self._store.run(lambda tx: baselines.list_(tx, scope=scope, after=after, limit=limit))

    # -- reading -------------------------------------------------------------------------------------------

    async def list_nodes(
        self,
        *,
        scope: Scope,
        site: str | None = None,
        standing: Standing | None = None,
        selector: Selector | None = None,
        sort: SortKey = "node",
        descending: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[NodeView]:
        """By name, or as `sort` says; then by name."""
        return await self._store.run(
            lambda tx: nodes.list_(
                tx,
                scope=scope,
                site=site,
                standing=standing,
                selector=selector,
                sort=sort,
                descending=descending,
                after=after,
                limit=limit,
            )
        )

    async def set_labels(
        self, node: str, labels: Mapping[str, str], *, actor: str, reason: str, now: float
    ) -> NodeView:
        """Replace all labels of a node. Raises Rejected `node.unknown`, `label.invalid`, `reason.missing`."""
        return await self._store.run(
            lambda tx: nodes.set_labels(tx, node, labels, actor=actor, reason=reason, now=now)
        )

    async def relabel(
        self, wanted: Relabel, *, scope: Scope, actor: str, now: float
    ) -> list[tuple[str, NodeView | Rejected]]:
        """Change labels of many nodes, each on its own; by name. Raises Rejected `selector.*`, `reason.missing`."""
        return await self._store.run(
            lambda tx: relabelling.relabel(tx, wanted, scope=scope, actor=actor, now=now)
        )

    async def node(self, node: str) -> NodeDetail:
        """Raises Rejected `node.unknown`."""
        return await self._store.run(lambda tx: nodes.detail(tx, node))

    async def list_incidents(
        self,
        *,
        scope: Scope,
        state: str | None = None,
        site: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[IncidentView]:
        """Newest first: those that reach the site; of one that reaches beyond the scope, what is within."""
        return await self._store.run(
            lambda tx: incidents.list_(tx, scope=scope, state=state, site=site, after=after, limit=limit)
        )

    async def incident(self, incident: int, *, scope: Scope) -> IncidentView:
        """What of it is within the scope. Raises Rejected `incident.unknown`."""
        return await self._store.run(lambda tx: incidents.get(tx, incident, scope))

    async def close_incident(self, incident: int, *, actor: str, reason: str, now: float) -> IncidentView:
        """Raises Rejected `incident.unknown`, `incident.closed`, `reason.missing`."""
        return await self._store.run(
            lambda tx: incidents.close(tx, incident, actor=actor, reason=reason, now=now)
        )

    async def list_events(
        self,
        *,
        scope: Scope,
        after: int = 0,
        limit: int = 100,
        node: str | None = None,
        site: str | None = None,
        newest_first: bool = False,
    ) -> list[EventView]:
        """Oldest first from the cursor `after` (exclusive); with `newest_first`, downwards from `after` (0: the end)."""
        return await self._store.run(
            lambda tx: incidents.events(
                tx,
                scope=scope,
                after=after,
                limit=limit,
                node=node,
                site=site,
                newest_first=newest_first,
            )
        )

    async def counts(self, *, scope: Scope) -> FleetCounts:
        """For metrics and status; walks the index, not the rows."""
        return await self._store.run(lambda tx: nodes.counts(tx, scope))

    # -- who may ask ---------------------------------------------------------------------------------------

    async def check_scope(self, wanted: Sequence[Subject], scope: Scope, *, act: bool) -> None:
        """Raises Rejected `*.unknown` for what is out of scope as for what is not there, `scope.insufficient` where an act
        would reach beyond it, `enrolment.reserved` and `enrolment.ek-in-use` for a claimed name that is another site's."""

        def job(tx: Transaction) -> None:
            for subject in wanted:
                subjects.check(tx, subject, scope, act=act)

        await self._store.run(job)

    async def list_audit(self, *, after: int = 0, limit: int = 100) -> list[AuditView]:
        """Oldest first from the cursor."""
        return await self._store.run(lambda tx: audit.notes(tx, after=after, limit=limit))
