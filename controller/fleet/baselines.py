"""Use cases of baselines and of the signed repository's files."""

from __future__ import annotations

from contract.errors import Rejected
from controller.fleet import acts, sites
from controller.fleet.paging import cut, number
from controller.permissions import Scope
from controller.records import BaselineView, Change, ChangeTrust, Page, Sections
from controller.store import Transaction, neighbours, nodes
from controller.store import sites as rows


def change_trust(tx: Transaction, change: ChangeTrust, *, actor: str, now: float) -> list[BaselineView]:
    """See Fleet.change_trust."""
    before = rows.all_trust_files(tx)
    after = change(before)
    if after is None:
        return []
    rows.replace_trust_files(tx, before, after.files)
    pushed: list[BaselineView] = []
    for new in after.baselines:
        there = rows.baseline(tx, new.name, new.version)
        if there is not None and there.sha256 != new.sha256:
            raise Rejected(
                "baseline.changed", f"{new.name} {new.version} is already there with other content"
            )
        if there is None:
            rows.add_baseline(tx, new, actor=actor, now=now)
            acts.record(
                tx,
                "baseline.pushed",
                f"baseline {new.name} {new.version} pushed",
                actor=actor,
                target=f"{new.name}/{new.version}",
                reason=new.sha256,
                now=now,
            )
            there = rows.baseline(tx, new.name, new.version)
        if there is not None:
            pushed.append(there)
    return pushed


def sections(tx: Transaction, name: str, version: int) -> Sections:
    """See Fleet.sections."""
    found = rows.sections(tx, name, version)
    if found is None:
        raise Rejected("baseline.unknown", f"{name} {version}")
    return found


def trust_file(tx: Transaction, path: str) -> bytes | None:
    """See Fleet.trust_file."""
    return rows.trust_file(tx, path)


def trust_files(tx: Transaction) -> dict[str, bytes]:
    """See Fleet.trust_files."""
    return rows.all_trust_files(tx)


def assign(
    tx: Transaction, site: str, name: str, version: int | None, *, actor: str, reason: str, now: float
) -> Change:
    """See Fleet.assign_baseline."""
    row = sites.known(tx, site)
    why = acts.checked_reason(reason)
    wanted = rows.baseline(tx, name, version)
    if wanted is None:
        raise Rejected("baseline.unknown", name if version is None else f"{name} {version}")
    current = row.baseline
    if current is not None and current.name == wanted.name and wanted.version < current.version:
        raise Rejected(
            "baseline.older",
            f"{name} {current.version} is assigned, and no node goes back; sign {wanted.version}'s content anew",
        )
    rows.choose_baseline(tx, site, wanted.name, wanted.version)
    names = neighbours.names_of_site(tx, site)
    nodes.set_due(tx, names)
    acts.record(
        tx,
        "baseline.assigned",
        f"baseline {wanted.name} {wanted.version} assigned to site {site}",
        actor=actor,
        target=site,
        reason=why,
        now=now,
        site=site,
    )
    return Change(affected=names)


def list_(tx: Transaction, *, scope: Scope, after: str | None, limit: int) -> Page[BaselineView]:
    """See Fleet.list_baselines."""
    cursor = None
    if after is not None:
        name, _, version = after.rpartition("/")
        cursor = (name, number(version) or 0)
    page = rows.baseline_page(tx, scope=scope, after=cursor, limit=limit + 1)
    return cut(page, limit, lambda view: f"{view.name}/{view.version}")
