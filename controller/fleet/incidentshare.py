"""What of an incident is shown to whom it is only partly about."""

from __future__ import annotations

import msgspec

from controller.judge import key_of
from controller.permissions import Reach, Scope
from controller.records import IncidentView
from controller.store import Transaction
from controller.store import incidents as rows


def share(tx: Transaction, view: IncidentView, scope: Scope) -> IncidentView:
    """Return what of an incident is about the sites of a scope, and nothing of what it is about elsewhere.

    A finding is kept where a node in scope shows the very same; a line of what was done, where it is about such a node, or a site
    that is wholly in scope; how many others there are is not told.
    """
    if scope.everywhere or scope.holds(rows.reach(tx, view.id) or Reach()):
        return view
    members = rows.members(tx, view.id, scope)
    names = list(dict.fromkeys(node for node, _, _ in members))
    keys = {key for _, _, key in members}
    own = {site for _, site, _ in members} or {view.site}
    findings = [finding for finding in view.findings if key_of(finding) in keys]
    about = (*(f"{name}: " for name in names), *(f"node {name} " for name in names))
    whole = [f"site {site} " for site in own if scope.holds(Reach(frozenset({site})))]
    return msgspec.structs.replace(
        view,
        site=view.site if view.site in own else min(own),
        title=f"{findings[0].code}: {findings[0].detail}"[:200] if findings else view.kind,
        nodes=names[: rows.SHOWN_NODES],
        nodes_total=len(names),
        findings=findings,
        findings_nodes=[],
        done=[line for line in view.done if line.startswith((*about, *whole))],
    )
