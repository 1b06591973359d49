"""Use cases of drills: what isolating a site would do, and writing down that it was rehearsed.

Refuses to do: place a hold, or give a directive away. The directives written here are counted and dropped, unsigned.
"""

from __future__ import annotations

from controller.breaker import may_isolate_site, window_start
from controller.drill_records import DrillPlan, DrillView
from controller.fleet import acts, isolation, sites
from controller.policy import FleetSettings
from controller.records import HoldView
from controller.store import Transaction, holds, neighbours, nodes


def plan(tx: Transaction, settings: FleetSettings, site: str, *, now: float) -> DrillPlan:
    """See Fleet.plan_drill."""
    sites.known(tx, site)
    of_site = nodes.of_site(tx, site)
    around = neighbours.of_site(tx, site)
    active = holds.active_of_site(tx, site)
    imagined = HoldView(
        id=0,
        node=None,
        site=site,
        reason="drill",
        actor="drill",
        automatic=False,
        incident=None,
        placed_at=now,
        released_at=None,
        released_by=None,
        release_reason=None,
    )
    written = [
        isolation.written(settings, row, [*active, imagined], around, floor=0, now=now, granted=([], []))
        for row in of_site
    ]
    wanted = {row.baseline for row in of_site if row.baseline is not None}
    placed = holds.automatic_since(tx, window_start(settings.breaker, now), sites=True)
    held = [row.node for row in of_site if isolation.posture_of(row.node, active) == "isolated"]
    return DrillPlan(
        site=site,
        would_isolate=[row.node for row in of_site if row.node not in set(held)],
        isolated_already=held,
        orders=len(written),
        fenced_addresses=len({a for one in written for r in one.responses for a in r.addresses}),
        baselines=sorted(wanted, key=lambda each: (each.name, each.version)),
        without_baseline=[row.node for row in of_site if row.baseline is None],
        breaker=may_isolate_site(settings.breaker, placed_in_window=placed),
    )


def record(tx: Transaction, view: DrillView, *, actor: str, reason: str, now: float) -> DrillView:
    """See Fleet.record_drill."""
    why = acts.checked_reason(reason)
    site, slowest = view.plan.site, view.answered_ms[-1] if view.answered_ms else 0.0
    acts.record(
        tx,
        "site.drilled",
        f"drill of site {site}: {len(view.plan.would_isolate)} nodes would be isolated, {len(view.connected)} at once"
        f" ({len(view.answered_ms)} answered, the slowest in {slowest:.0f} ms; {len(view.silent)} did not),"
        f" {len(view.away)} when they come back",
        actor=actor,
        target=f"site {site}",
        reason=why,
        now=now,
        site=site,
    )
    return view
