"""Use cases of isolation: holds, and the directives that carry them to the nodes.

A node is held by a hold of its own or of its site. While a node has a hold of its own, every other node of the
site fences its addresses: a suspect need not obey. A directive says the whole of what is wanted and is written
anew, with a higher number, whenever anything in it changes. A hold may also only fence: the node keeps its posture.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec

from contract.directive import MAX_FENCED_ADDRESSES, Directive, Response, WantedBaseline
from contract.errors import Rejected
from contract.grant import CodeHash, Grant
from contract.messages import Posture
from controller.fleet import acts, grants, sessions, sites
from controller.fleet.paging import cut, number
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import Change, HoldView, Page
from controller.standing import standing
from controller.store import (
    Transaction,
    addressees,
    audit,
    events,
    holds,
    neighbours,
    nodes,
    replicas,
    restores,
)
from controller.store import grants as grant_rows
from controller.store.addressees import Told
from controller.store.neighbours import Neighbour
from controller.store.nodes import NodeRow
from controller.store.restores import Restore

Granted = tuple[list[Grant], list[CodeHash]]
"""What a directive lets somebody do for a while."""
Written = dict[str, Directive]
"""Directives by node."""


def place(
    tx: Transaction,
    *,
    node: str | None,
    site: str,
    reason: str,
    actor: str,
    automatic: bool,
    incident: int | None,
    now: float,
    fence_only: bool = False,
) -> tuple[HoldView, list[str]]:
    """Isolate a node, or the whole site when `node` is None; return the hold and the nodes whose directive is due.

    The caller has made sure that the target is not isolated, and holds the breaker's lock when nobody asked for it. A node
    that was only fenced is isolated in place of that. `fence_only`: the others of the site drop the node's addresses.
    """
    before = None if node is None else _hold_on(tx, site, node)
    if before is not None:
        holds.release(tx, before.id, actor=actor, reason="isolated in place of the fence", now=now)
    hold = holds.place(
        tx,
        node=node,
        site=site,
        reason=reason,
        actor=actor,
        automatic=automatic,
        incident=incident,
        now=now,
        fence_only=fence_only,
    )
    names = neighbours.names_of_site(tx, site)
    held = names if node is None else [node]
    nodes.set_due(tx, names)
    if not fence_only:
        nodes.set_posture(tx, held, "isolated", "isolated", now)
    target = f"site {site}" if node is None else f"node {node}"
    act = "fenced" if fence_only else "isolated"
    events.add(
        tx,
        f"{target.partition(' ')[0]}.{act}",
        "critical",
        f"{target} {act} by {actor}: {reason}"[:2048],
        now=now,
        node=node,
        site=site,
        detail={"actor": actor, "reason": reason, "hold": str(hold.id)},
    )
    audit.note(tx, actor=actor, act=act, target=target, reason=reason, now=now)
    return hold, names


def isolate(
    tx: Transaction, *, node: str | None, site: str | None, actor: str, reason: str, now: float
) -> Change:
    """See Fleet.isolate_node and Fleet.isolate_site. Exactly one of node and site is given: none is never all."""
    why = acts.checked_reason(reason)
    of_site, target = _target(tx, node, site)
    there = _hold_on(tx, of_site, node)
    if there is not None and not there.fence_only:
        raise Rejected("hold.exists", f"{target} is isolated already")
    hold, affected = place(
        tx, node=node, site=of_site, reason=why, actor=actor, automatic=False, incident=None, now=now
    )
    return Change(affected=affected, holds=[hold])


def release(
    tx: Transaction, *, node: str | None, site: str | None, actor: str, reason: str, now: float
) -> Change:
    """See Fleet.release_node and Fleet.release_site."""
    why = acts.checked_reason(reason)
    of_site, target = _target(tx, node, site)
    hold = _hold_on(tx, of_site, node)
    if hold is None and node is not None:
        return _release_itself(tx, node, actor=actor, why=why, now=now)
    if hold is None:
        raise Rejected("hold.none", f"{target} has no isolation of its own")
    released = holds.release(tx, hold.id, actor=actor, reason=why, now=now)
    rows = nodes.of_site(tx, of_site)
    left = holds.active_of_site(tx, of_site)
    nodes.set_due(tx, [row.node for row in rows])
    for row in rows:
        if row.wanted_posture == "isolated" and posture_of(row.node, left) == "normal":
            stands = standing(
                tier=row.tier,
                held=False,
                last_report_at=row.last_report_at,
                interval_s=row.policy.interval_s,
                now=now,
            )
            nodes.set_posture(tx, [row.node], "normal", stands, now)
    events.add(
        tx,
        "site.released" if node is None else "node.released",
        "warning",
        f"{target} released by {actor}: {why}",
        now=now,
        node=node,
        site=of_site,
        detail={"actor": actor, "reason": why, "hold": str(hold.id)},
    )
    audit.note(tx, actor=actor, act="released", target=target, reason=why, now=now)
    return Change(affected=[row.node for row in rows], holds=[released])


def _release_itself(tx: Transaction, node: str, *, actor: str, why: str, now: float) -> Change:
    """Release a node that has isolated itself: over its firewall, or because nobody answered."""
    row = sessions.known(tx, node, lock=True)
    held = posture_of(node, holds.active_of_site(tx, row.site)) == "isolated"
    if held or row.state.posture != "isolated":
        raise Rejected("hold.none", f"node {node} has no isolation of its own")
    release = max(row.directive_number, row.state.directive_accepted) + 1
    nodes.set_state(tx, node, msgspec.structs.replace(row.state, release=release))
    nodes.set_due(tx, [node])
    events.add(
        tx,
        "node.released",
        "warning",
        f"node {node}, which had isolated itself, released by {actor}: {why}",
        now=now,
        node=node,
        site=row.site,
        detail={"actor": actor, "reason": why},
    )
    audit.note(tx, actor=actor, act="released", target=f"node {node}", reason=why, now=now)
    return Change(affected=[node], holds=[])


def list_(
    tx: Transaction, *, scope: Scope, active: bool, site: str | None, after: str | None, limit: int
) -> Page[HoldView]:
    """See Fleet.list_holds."""
    page = holds.page(tx, active=active, scope=scope.narrowed(site), before=number(after), limit=limit + 1)
    return cut(page, limit, lambda view: str(view.id))


def _target(tx: Transaction, node: str | None, site: str | None) -> tuple[str, str]:
    if (node is None) == (site is None):
        raise Rejected("target.invalid", "wanted exactly one node or one site")
    if node is not None:
        row = nodes.load(tx, node, lock=True)
        if row is None:
            raise Rejected("node.unknown", node[:63])
        return row.site, f"node {node}"
    return sites.known(tx, site or "").site, f"site {site}"


def _hold_on(tx: Transaction, site: str, node: str | None) -> HoldView | None:
    return next((hold for hold in holds.active_of_site(tx, site) if hold.node == node), None)


# -- directives ------------------------------------------------------------------------------------------


def posture_of(node: str, active: Sequence[HoldView]) -> Posture:
    """Return the posture that the holds of its site leave a node."""
    return "isolated" if any(_isolates(hold, node) for hold in active) else "normal"


def _isolates(hold: HoldView, node: str) -> bool:
    return hold.node is None or (hold.node == node and not hold.fence_only)


def directives(
    tx: Transaction,
    settings: FleetSettings,
    names: Sequence[str],
    *,
    now: float,
    ours: tuple[str, Mapping[str, int]] | None = None,
    only_due: bool = False,
) -> Written:
    """See Fleet.directives_for and Fleet.directives_to. `ours`: the controller, and the epochs of its sessions; a node whose
    session is another's by now is left to that one, its directive still due."""
    made: dict[str, Directive] = {}
    restored = restores.unconfirmed(tx)
    granted = _granted(tx, names, now)
    by_site: dict[str, tuple[FleetSettings, list[HoldView], list[Neighbour]]] = {}
    for row in addressees.load(tx, sorted(set(names))):
        if only_due and not row.directive_due:
            continue
        if ours is not None and (row.session_holder, row.session_epoch) != (ours[0], ours[1].get(row.node)):
            continue
        if row.site not in by_site:
            active, around = _isolation_of(tx, row.site)
            by_site[row.site] = _sparing(tx, settings, active), active, around
        sparing, active, around = by_site[row.site]
        made[row.node] = written(
            sparing,
            row,
            active,
            around,
            floor=0,
            now=now,
            granted=granted.get(row.node, ([], [])),
            restored=restored,
        )
    addressees.set_issued(tx, {name: each.number for name, each in made.items()}, now)
    return made


def directive(tx: Transaction, settings: FleetSettings, row: NodeRow, *, floor: int, now: float) -> Directive:
    """Return a new directive for one node, numbered above what was issued and above `floor`. The caller stores the
    number."""
    active, around = _isolation_of(tx, row.site)
    settings = _sparing(tx, settings, active)
    granted = _granted(tx, [row.node], now).get(row.node, ([], []))
    restored = restores.unconfirmed(tx)
    return written(settings, row, active, around, floor=floor, now=now, granted=granted, restored=restored)


def wanted_of(row: Told, restored: Restore | None) -> WantedBaseline | None:
    """Return the baseline that a directive names. Pure. None leaves the node with the one that it has: so what a restored
    database chooses for it, unless the node has said since that it holds none that is newer, or another."""
    wanted, held = row.baseline, row.state.baseline
    if restored is None or wanted is None:
        return wanted
    heard = row.last_report_at is not None and row.last_report_at >= restored.at
    if heard and (held is None or (held.name == wanted.name and held.version <= wanted.version)):
        return wanted
    return None


def _granted(tx: Transaction, names: Sequence[str], now: float) -> dict[str, Granted]:
    standing, codes = grant_rows.standing(tx, names, now), grant_rows.listed_codes(tx, names, now)
    return {
        name: ([grants.travelling(row) for row in standing.get(name, [])], codes.get(name, []))
        for name in {*standing, *codes}
    }


def _sparing(tx: Transaction, settings: FleetSettings, active: Sequence[HoldView]) -> FleetSettings:
    """Protect the addresses of the other controllers as well, where anything is fenced."""
    if not any(hold.node for hold in active):
        return settings
    spared = dict.fromkeys([*settings.protected_addresses, *replicas.addresses(tx)])
    return msgspec.structs.replace(settings, protected_addresses=tuple(spared))


def _isolation_of(tx: Transaction, site: str) -> tuple[list[HoldView], list[Neighbour]]:
    active = holds.active_of_site(tx, site)
    return active, neighbours.of_site(tx, site) if any(hold.node for hold in active) else []


def written(
    settings: FleetSettings,
    row: Told,
    active: Sequence[HoldView],
    around: Sequence[Neighbour],
    *,
    floor: int,
    now: float,
    granted: Granted,
    restored: Restore | None = None,
) -> Directive:
    """Write a directive. Pure.

    Its number is higher than any issued before and any that the node has ever accepted, also when the database
    is older than the node remembers (ATTACKS c02).
    """
    posture = posture_of(row.node, active)
    own = [hold for hold in active if _isolates(hold, row.node)]
    reason = "; ".join(hold.reason for hold in own)[:2048]
    responses: list[Response] = []
    if posture == "isolated":
        responses.append(Response(name="isolate", reason=reason))
    suspects = {hold.node for hold in active if hold.node is not None and hold.node != row.node}
    addresses = fenced_addresses(suspects, around, settings.protected_addresses) if suspects else []
    if addresses:
        responses.append(
            Response(
                name="fence", addresses=addresses, reason=f"suspect: {', '.join(sorted(suspects))}"[:2048]
            )
        )
    return Directive(
        node=row.node,
        number=max(row.directive_number, row.state.directive_accepted, floor) + 1,
        issued=now,
        expires=now + settings.directive_lifetime_s,
        posture=posture,
        # In an order to isolate it would mean nothing: that takes the node's own isolation over.
        release=row.state.release if posture == "normal" else 0,
        reason=reason,
        baseline=wanted_of(row, restored),
        responses=responses,
        grants=granted[0],
        break_glass=granted[1],
    )


def fenced_addresses(suspects: set[str], around: Sequence[Neighbour], protected: Sequence[str]) -> list[str]:
    """Return the addresses of the suspects that may be dropped. Pure.

    A suspect names its own addresses, so it could name another's to have it cut off: what any other node of the
    site also has, what is protected, and what is no host's address at all is left out.
    """
    spared = {ipaddress.ip_address(text) for text in protected}
    claimed: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    for each in around:
        into = claimed if each.node in suspects else spared
        into.update(_addresses(each.addresses))
    usable = (
        address
        for address in claimed - spared
        if not (address.is_loopback or address.is_multicast or address.is_unspecified)
    )
    return [str(a) for a in sorted(usable, key=lambda a: (a.version, int(a)))][:MAX_FENCED_ADDRESSES]


def _addresses(
    untrusted_texts: Sequence[str],
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = []
    for text in untrusted_texts:
        try:
            found.append(ipaddress.ip_address(text.partition("/")[0].partition("%")[0]))
        except ValueError:
            continue
    return found
