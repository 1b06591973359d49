"""Use cases of sites."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contract.errors import Rejected
from contract.names import checked_name
from controller.fleet import acts
from controller.fleet.paging import cut
from controller.permissions import Scope, at_sites
from controller.policy import SitePolicy
from controller.records import Page, SiteView
from controller.store import Transaction, counting, holds
from controller.store import sites as rows
from controller.store.sites import SiteRow


def known(tx: Transaction, site: str) -> SiteRow:
    """Return the site. Raises Rejected `site.unknown`."""
    row = rows.load(tx, site)
    if row is None:
        raise Rejected("site.unknown", site[:63])
    return row


def create(tx: Transaction, site: str, policy: SitePolicy, *, actor: str, now: float) -> SiteView:
    """See Fleet.create_site."""
    checked_name(site, "site")
    if rows.load(tx, site) is not None:
        raise Rejected("site.exists", site)
    rows.add(tx, site, policy, now)
    acts.record(
        tx, "site.created", f"site {site} created", actor=actor, target=site, reason="", now=now, site=site
    )
    return get(tx, site)


def set_policy(
    tx: Transaction, site: str, policy: SitePolicy, *, actor: str, reason: str, now: float
) -> SiteView:
    """See Fleet.set_policy."""
    known(tx, site)
    why = acts.checked_reason(reason)
    rows.set_policy(tx, site, policy)
    wanted = msgspec.json.encode(policy).decode()
    acts.record(
        tx,
        "site.policy-changed",
        f"policy of site {site} is now {wanted}",
        actor=actor,
        target=site,
        reason=why,
        now=now,
        severity="warning",
        site=site,
    )
    return get(tx, site)


def get(tx: Transaction, site: str) -> SiteView:
    """See Fleet.site."""
    return _views(tx, [known(tx, site)])[0]


def list_(tx: Transaction, *, scope: Scope, after: str | None, limit: int) -> Page[SiteView]:
    """See Fleet.list_sites."""
    page = rows.page(tx, scope=scope, after=after, limit=limit + 1)
    return cut(_views(tx, page), limit, lambda view: view.site)


def _views(tx: Transaction, of: Sequence[SiteRow]) -> list[SiteView]:
    these = at_sites(*(row.site for row in of))
    counted = counting.by_standing(tx, these)
    held = holds.active_on_sites(tx, these)
    return [
        SiteView(
            site=row.site,
            policy=row.policy,
            baseline=row.baseline,
            nodes={standing: n for (site, standing), n in counted.items() if site == row.site},
            hold=held.get(row.site),
            created_at=row.created_at,
        )
        for row in of
    ]
