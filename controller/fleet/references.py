"""Use cases of reference values: announcing an update before it comes, and accepting one that nobody announced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from contract.bootpolicy import KEYS_PCR, REVOCATION
from contract.bootreference import Change as BootChange
from contract.bootreference import Reference, differences
from contract.claims import Claims
from contract.errors import Rejected
from contract.references import MAX_SETS, Expected, ReferenceSet, expected_at
from contract.wire import decode
from controller.fleet import acts, boots, incidents, subjects
from controller.fleet.paging import cut, number
from controller.fleet.relabelling import each
from controller.fleet.subjects import Subject
from controller.permissions import EVERYWHERE, Scope
from controller.records import MAX_REFERENCE_BYTES, Page
from controller.reference_records import Accepted, BootView, ReferenceView
from controller.store import Transaction, nodes
from controller.store import boots as boot_rows
from controller.store import incidents as incident_rows
from controller.store import references as rows

ACCEPTED_FOR_S: Final = 30 * 86400.0
"""So long a value that was accepted on some nodes is expected on the others of their sites."""
MAX_ACCEPTED_NODES: Final = 1000
"""In one act; the rest is left and said so."""
MAX_SPREAD: Final = 256
"""Digests of one stage."""
_BOOT_KEYS: Final = ("finding:boot.unannounced:", "finding:boot.pcr:")
"""What accepting may settle. Anything else that is said of a node needs a look at the node."""
_SPREAD_STAGES: Final = frozenset({"boot-loader", "kernel", "initrd"})


def announce(
    tx: Transaction, sets: Sequence[ReferenceSet], *, scope: Scope, actor: str, reason: str, now: float
) -> list[ReferenceView | Rejected]:
    """See Fleet.announce."""
    why = acts.checked_reason(reason)
    there: dict[str, int] = {}
    for site in sorted({one.site for one in sets}):
        rows.lock_site(tx, site)
        there[site] = len(rows.of_site(tx, site))

    def announced(one: ReferenceSet) -> ReferenceView:
        subjects.check(tx, Subject("site", one.site), scope, act=True)
        if there[one.site] >= MAX_SETS:
            detail = f"{one.site}: at most {MAX_SETS}; withdraw what has had its day"
            raise Rejected("reference.too-many", detail)
        view = _announce(tx, one, actor=actor, why=why, now=now)
        there[one.site] += 1
        return view

    results = each(tx, sets, announced)
    for site in sorted({done.reference.site for done in results if isinstance(done, ReferenceView)}):
        rows.settle(tx, site)
    return results


def _announce(tx: Transaction, one: ReferenceSet, *, actor: str, why: str, now: float) -> ReferenceView:
    made = rows.add(tx, one, reason=why, actor=actor, now=now)
    acts.record(
        tx,
        "reference.announced",
        f"reference {made} announced for site {one.site}: {_told(one)}"[:2048],
        actor=actor,
        target=f"reference {made}",
        reason=why,
        now=now,
        site=one.site,
    )
    return _known(tx, made)


def _told(one: ReferenceSet) -> str:
    parts = [f"{stage} {', '.join(digests)}" for stage, digests in one.values.items()]
    return "; ".join([*parts, one.note] if one.note else parts)


def _known(tx: Transaction, reference: int) -> ReferenceView:
    view = rows.load(tx, reference)
    if view is None:
        raise Rejected("reference.unknown", str(reference))
    return view


def withdraw(tx: Transaction, reference: int, *, actor: str, reason: str, now: float) -> ReferenceView:
    """See Fleet.withdraw_reference."""
    view = _known(tx, reference)
    why = acts.checked_reason(reason)
    site = view.reference.site
    rows.lock_site(tx, site)
    if view.withdrawn_at is not None:
        raise Rejected("reference.closed", f"withdrawn by {view.withdrawn_by}")
    rows.withdraw(tx, reference, actor=actor, now=now)
    rows.settle(tx, site)
    acts.record(
        tx,
        "reference.withdrawn",
        f"reference {reference} of site {site} withdrawn by {actor}: {why}"[:2048],
        actor=actor,
        target=f"reference {reference}",
        reason=why,
        now=now,
        site=site,
    )
    return _known(tx, reference)


def list_(
    tx: Transaction, *, scope: Scope, site: str | None, withdrawn: bool, after: str | None, limit: int
) -> Page[ReferenceView]:
    """See Fleet.list_references."""
    page = rows.page(
        tx, scope=scope.narrowed(site), withdrawn=withdrawn, before=number(after), limit=limit + 1
    )
    return cut(list(page), limit, lambda view: str(view.id))


def expected(tx: Transaction, site: str, now: float) -> Expected:
    """See Fleet.expected."""
    return expected_at([view.reference for view in rows.of_site(tx, site)], now)


def boot(tx: Transaction, node: str) -> BootView:
    """See Fleet.boot."""
    row = nodes.load(tx, node)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    raw, said = boot_rows.reference(tx, node), boot_rows.claims(tx, node)
    if raw is None or row.reference_at is None:
        raise Rejected("boot.unknown", f"no boot of {node} was accepted yet")
    return BootView(
        node=node,
        accepted_at=row.reference_at,
        is_last=said is not None and boot_rows.candidate(tx, node) is None and row.tier == "affirming",
        reference=_reference(raw),
        claims=Claims() if said is None else decode(said.claims, Claims, max_bytes=MAX_REFERENCE_BYTES),
    )


def _reference(raw: bytes) -> Reference:
    return decode(raw, Reference, max_bytes=MAX_REFERENCE_BYTES)


def accept(
    tx: Transaction, incident: int, *, own_values: bool, actor: str, reason: str, now: float
) -> Accepted:
    """See Fleet.accept_incident.

    1. only what `boot.unannounced` and `boot.pcr` say can be accepted for many nodes at once
    2. a node is left as it is when anything else is said of it, in this incident or in another
    3. nor does one hide behind the others with a value that only it shows, unless `own_values`
    4. the boots are accepted one by one, each as a person accepts one
    5. the new values are announced for the sites of these nodes
    """
    view = incidents.get(tx, incident)
    why = acts.checked_reason(reason)
    if view.state == "closed":
        raise Rejected("incident.closed", f"by {view.closed_by}")
    shown = [(n, key) for n, key in incident_rows.active(tx, incident) if key.startswith(_BOOT_KEYS)]  # 1
    named = sorted({node for node, _ in shown})
    if not named:
        raise Rejected("incident.none", f"incident {incident} is about no boot that could be accepted")
    nodes_with = Counter(key for _, key in shown)
    alone = {node for node, key in shown if nodes_with[key] == 1 and len(named) > 1 and not own_values}
    left: dict[str, str] = {}
    affected: list[str] = []
    values: dict[str, dict[str, Counter[str]]] = {}
    for node in named:
        if len(affected) == MAX_ACCEPTED_NODES:
            left[node] = "accept the incident once more"
            continue
        why_not, site = _stands_against(tx, node, incident)  # 2
        if not why_not and node in alone:  # 3
            why_not = "it shows a value that no other node shows; look at the node"
        if why_not:
            left[node] = why_not
            continue
        _collect(tx, node, values.setdefault(site, {}))
        boots.accept_boot(tx, node, actor=actor, reason=f"incident {incident}: {why}"[:1024], now=now)  # 4
        affected.append(node)
    note = f"accepted with incident {incident}"
    least = 1 if len(affected) == 1 else 2
    sets = [
        ReferenceSet(site=site, values=spread, valid_from=now, valid_until=now + ACCEPTED_FOR_S, note=note)  # type: ignore[arg-type]
        for site, of_site in sorted(values.items())
        if (spread := _spread(of_site, least))
    ]
    told = f"{note}: {why}"[:1024]
    results = announce(tx, sets, scope=EVERYWHERE, actor=actor, reason=told, now=now)  # 5
    for result in results:
        if isinstance(result, Rejected):  # accepted as one, or not at all
            raise result
    views = [result for result in results if isinstance(result, ReferenceView)]
    return Accepted(affected=affected, left=left, references=views)


def _stands_against(tx: Transaction, node: str, incident: int) -> tuple[str, str]:
    """Return why a node's boot is not accepted with the others, and the node's site."""
    row = nodes.load(tx, node)
    if row is None:
        return "there is no such node any more", ""
    if boot_rows.candidate(tx, node) is None:
        return "its last report shows no boot to accept", row.site
    for key, where in incident_rows.active_of_node(tx, node):
        if key.startswith(("finding:", "rejected:")) and not (
            where == incident and key.startswith(_BOOT_KEYS)
        ):
            code = key.split(":")[1]
            return f"{code} speaks against it as well; look at the node", row.site
    return "", row.site


def _collect(tx: Transaction, node: str, values: dict[str, Counter[str]]) -> None:
    """Count the new digests of a node's boot, by stage."""
    before, after = boot_rows.reference(tx, node), boot_rows.candidate(tx, node)
    if before is None or after is None:
        return
    old, new = _reference(before), _reference(after)
    # Never from a PCR that the log does not explain: there a node may show what it likes.
    changes: list[BootChange] = [c for pcr in new.explained for c in differences(old, new, pcr)]
    shown = {(c.stage, c.after.sha256.hex()) for c in changes if c.after and _spreads(c)}
    for stage, digest in shown:
        values.setdefault(stage, Counter())[digest] += 1


def _spreads(change: BootChange) -> bool:
    """Of lists only dbx and the SBAT level, in PCR 7: what one machine's owner allows it is nobody else's."""
    return change.stage in _SPREAD_STAGES or (change.stage == REVOCATION and change.pcr == KEYS_PCR)


def _spread(values: dict[str, Counter[str]], least: int) -> dict[str, list[str]]:
    """Return what the next node is likely to show as well: not what one machine made for itself."""
    found = {
        stage: sorted(digest for digest, nodes_with in of_stage.items() if nodes_with >= least)[:MAX_SPREAD]
        for stage, of_stage in sorted(values.items())
    }
    return {stage: digests for stage, digests in found.items() if digests}
