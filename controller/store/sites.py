"""Rows of sites, baselines and the files of the signed repository."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, func, insert, select, tuple_, update

from contract.directive import WantedBaseline
from controller.permissions import EVERYWHERE, Scope
from controller.policy import SitePolicy
from controller.records import BaselineView, NewBaseline, Record, Sections
from controller.store import Transaction
from controller.store.nodes import policy_of
from controller.store.schema import baselines, sites, trust_files
from controller.store.scoped import within


class SiteRow(Record, frozen=True, kw_only=True):
    """A site and the baseline chosen for it."""

    site: str
    policy: SitePolicy
    created_at: float
    baseline: WantedBaseline | None


_SELECT = select(
    sites.c.site,
    sites.c.policy,
    sites.c.created_at,
    sites.c.baseline_name,
    sites.c.baseline_version,
    baselines.c.sha256,
).outerjoin(
    baselines,
    (baselines.c.name == sites.c.baseline_name) & (baselines.c.version == sites.c.baseline_version),
)


def _row(values: Sequence[object]) -> SiteRow:
    site, policy, created_at, name, version, sha256 = values
    chosen = None
    if name is not None:
        chosen = WantedBaseline(name=name, version=version, sha256=sha256)  # type: ignore[arg-type]
    return SiteRow(
        site=site,  # type: ignore[arg-type]
        policy=policy_of(str(policy)),
        created_at=created_at,  # type: ignore[arg-type]
        baseline=chosen,
    )


def load(tx: Transaction, site: str) -> SiteRow | None:
    """One site."""
    row = tx.execute(_SELECT.where(sites.c.site == site)).first()
    return None if row is None else _row(row)


def lock(tx: Transaction, site: str) -> None:
    """Until this transaction ends nobody else changes the site's row."""
    tx.execute(select(sites.c.site).where(sites.c.site == site).with_for_update())


def exists(tx: Transaction, site: str) -> bool:
    """Whether there is such a site."""
    return tx.execute(select(sites.c.site).where(sites.c.site == site)).first() is not None


def page(tx: Transaction, *, scope: Scope, after: str | None, limit: int) -> list[SiteRow]:
    """By name, after the cursor."""
    statement = _SELECT.where(within(scope, sites.c.site)).order_by(sites.c.site).limit(limit)
    if after is not None:
        statement = statement.where(sites.c.site > after)
    return [_row(row) for row in tx.execute(statement)]


def policies(tx: Transaction) -> dict[str, SitePolicy]:
    """The policy of every site."""
    return {row.site: policy_of(row.policy) for row in tx.execute(select(sites.c.site, sites.c.policy))}


def add(tx: Transaction, site: str, policy: SitePolicy, now: float) -> None:
    """Raises the database's own integrity error when it exists."""
    tx.execute(
        insert(sites).values(
            site=site,
            policy=msgspec.json.encode(policy).decode(),
            interval_s=policy.interval_s,
            created_at=now,
        )
    )


def set_policy(tx: Transaction, site: str, policy: SitePolicy) -> None:
    """Replace the policy."""
    tx.execute(
        update(sites)
        .where(sites.c.site == site)
        .values(policy=msgspec.json.encode(policy).decode(), interval_s=policy.interval_s)
    )


def choose_baseline(tx: Transaction, site: str, name: str, version: int) -> None:
    """Assign a baseline."""
    tx.execute(update(sites).where(sites.c.site == site).values(baseline_name=name, baseline_version=version))


def count(tx: Transaction, scope: Scope) -> int:
    """Sites there are."""
    statement = select(func.count()).select_from(sites).where(within(scope, sites.c.site))
    return int(tx.execute(statement).scalar_one())


# -- baselines -------------------------------------------------------------------------------------------


def _baseline_views(tx: Transaction, rows: Sequence[Sequence[object]], scope: Scope) -> list[BaselineView]:
    used: dict[tuple[object, object], list[str]] = {}
    named = [(row[0], row[1]) for row in rows]
    assigned = select(sites.c.baseline_name, sites.c.baseline_version, sites.c.site).order_by(sites.c.site)
    of_these = tuple_(sites.c.baseline_name, sites.c.baseline_version).in_(named)
    for name, version, site in tx.execute(assigned.where(of_these, within(scope, sites.c.site))):
        used.setdefault((name, version), []).append(site)
    return [
        BaselineView(
            name=row[0],  # type: ignore[arg-type]
            version=row[1],  # type: ignore[arg-type]
            sha256=row[2],  # type: ignore[arg-type]
            summary=row[3],  # type: ignore[arg-type]
            pushed_at=row[4],  # type: ignore[arg-type]
            pushed_by=row[5],  # type: ignore[arg-type]
            sites=used.get((row[0], row[1]), []),
        )
        for row in rows
    ]


_BASELINES = select(
    baselines.c.name,
    baselines.c.version,
    baselines.c.sha256,
    baselines.c.summary,
    baselines.c.pushed_at,
    baselines.c.pushed_by,
)


def baseline_page(
    tx: Transaction, *, scope: Scope, after: tuple[str, int] | None, limit: int
) -> list[BaselineView]:
    """By name, then version, after the cursor. Of the sites that use one, only those in scope are named."""
    statement = _BASELINES.order_by(baselines.c.name, baselines.c.version).limit(limit)
    if after is not None:
        name, version = after
        statement = statement.where(
            (baselines.c.name > name) | ((baselines.c.name == name) & (baselines.c.version > version))
        )
    return _baseline_views(tx, tx.execute(statement).all(), scope)


def baseline(tx: Transaction, name: str, version: int | None) -> BaselineView | None:
    """One baseline; version None is the newest of the name."""
    statement = _BASELINES.where(baselines.c.name == name).order_by(baselines.c.version.desc()).limit(1)
    if version is not None:
        statement = statement.where(baselines.c.version == version)
    views = _baseline_views(tx, tx.execute(statement).all(), EVERYWHERE)
    return views[0] if views else None


def add_baseline(tx: Transaction, new: NewBaseline, *, actor: str, now: float) -> None:
    """Add a baseline that is not there yet."""
    tx.execute(
        insert(baselines).values(
            name=new.name,
            version=new.version,
            sha256=new.sha256,
            summary=new.summary,
            boot_section=new.boot_section,
            ima_section=new.ima_section or None,
            pushed_at=now,
            pushed_by=actor,
        )
    )


def sections(tx: Transaction, name: str, version: int) -> Sections | None:
    """What a baseline says of attestation."""
    row = tx.execute(
        select(baselines.c.boot_section, baselines.c.ima_section).where(
            baselines.c.name == name, baselines.c.version == version
        )
    ).first()
    return None if row is None else Sections(boot=row[0], ima=row[1] or b"")


# -- trust files -----------------------------------------------------------------------------------------


def trust_file(tx: Transaction, path: str) -> bytes | None:
    """One file."""
    return tx.execute(select(trust_files.c.content).where(trust_files.c.path == path)).scalar_one_or_none()


def all_trust_files(tx: Transaction) -> dict[str, bytes]:
    """All files, for the repository to think about; nobody else changes them until this transaction ends."""
    statement = select(trust_files.c.path, trust_files.c.content).order_by(trust_files.c.path)
    return {row[0]: row[1] for row in tx.execute(statement.with_for_update())}


def replace_trust_files(tx: Transaction, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Write what differs."""
    changed = {path for path in before if after.get(path) != before[path]}
    if changed:
        tx.execute(delete(trust_files).where(trust_files.c.path.in_(changed)))
    new = [
        {"path": path, "content": after[path]}
        for path in sorted(after)
        if path in changed or path not in before
    ]
    if new:
        tx.execute(insert(trust_files), new)
