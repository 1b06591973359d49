"""How a plan is shown: counts first, one line for each node to which something happens; the rest with `--details`."""

from __future__ import annotations

import click

from controller.cli.show import at, harmless, items, show_facts, show_table

MAX_SHOWN = 20


def show_plan(found: dict[str, object], *, details: bool) -> None:
    """Print a plan."""
    refused = found["refused"] if isinstance(found["refused"], dict) else {}
    busy = found["in_rollout"] if isinstance(found["in_rollout"], dict) else {}
    sha256 = str(found["sha256"])
    facts: dict[str, object] = {
        "plan": found["id"],
        "baseline": f"{found['baseline']}/{found['version']} ({sha256 if details else sha256[:16]})",
        "would change": f"{_many(found['nodes'], 'node')} of {_many(len(items(found['sites'])), 'site')}",
        **_impact_facts(found["impact"]),
        "sites": _some(found["sites"]),
        "hold it already": len(items(found["already"])) or None,
        "cannot be reached now": _some(found["away"]),
        "not healthy now": _some(found["not_healthy"]),
        "cannot take it": _some([f"{name}: {why}" for name, why in refused.items()]),
        "in another rollout": _some([f"{name} (rollout {other})" for name, other in busy.items()]),
    }
    show_facts({name: value for name, value in facts.items() if value not in (None, [])})
    _show_nodes(found["impact"])
    for group in items(found["groups"]):
        _show_group(group, details=details)
    if details:
        for node in items(at(found["impact"], "nodes")):
            _show_node(node)
    click.echo()
    if not details:
        click.echo("each rule and each connection: --details")
    click.echo(f"to carry it out: ringfence rollout request {found['id']} --reason ...")


def _impact_facts(impact: object) -> dict[str, object]:
    if not isinstance(impact, dict):
        return {"open connections": "not looked at"}
    sites = items(impact["cut_sites"])
    isolated = impact["would_isolate"] if isinstance(impact["would_isolate"], dict) else {}
    unknown = items(impact["unknown"])
    told = f"of {_many(impact['known'], 'node')} that told"
    cut = f"{_many(impact['cut'], 'open connection')} on {_many(impact['cut_nodes'], 'node')}"
    if impact["cut"]:
        cut += f" of {_many(len(sites), 'site')}"
    known = impact["known"] or not unknown
    none = "not known" if not known else "none that told" if unknown else "none"
    return {
        "would be cut": f"{cut}, {told}" if known else "not known",
        "perhaps cut": f"{impact['unsure']}: only the node could say" if impact["unsure"] else None,
        "not looked at": f"{impact['not_looked_at']}: more than a node tells"
        if impact["not_looked_at"]
        else None,
        "not known of": [f"{_many(at(each, 'count'), 'node')}: {at(each, 'why')}" for each in unknown],
        "would lose the controller": _some(impact["lose_controller"]) or none,
        "would isolate themselves": _some([f"{name}: {why}" for name, why in isolated.items()]) or none,
    }


def _show_nodes(impact: object) -> None:
    nodes = items(at(impact, "nodes"))
    if not nodes:
        return
    click.echo()
    show_table(
        ("NODE", "SITE", "CUT", "UNSURE", "OF", "CONTROLLER", "SERVICES CLOSED"),
        [
            (
                at(node, "node"),
                at(node, "site"),
                at(node, "cut"),
                at(node, "unsure"),
                at(node, "looked_at"),
                at(node, "controller"),
                _some(at(node, "closed")),
            )
            for node in nodes[:MAX_SHOWN]
        ],
    )
    left = len(nodes) - MAX_SHOWN
    more = at(impact, "nodes_left_out")
    if left > 0:
        click.echo(f"and {left + (more if isinstance(more, int) else 0)} more nodes: --json")


def _show_group(group: object, *, details: bool) -> None:
    click.echo()
    names = items(at(group, "nodes"))
    changes = items(at(group, "changes"))
    before = at(group, "before") or "no baseline"
    click.echo(harmless(f"from {before}, {_many(len(names), 'node')}: {', '.join(_some(names))}"))
    if not details:
        counted = [f"{at(each, 'section')} ({len(items(at(each, 'lines')))})" for each in changes]
        click.echo(harmless(f"  sections that change, with lines: {', '.join(counted) or 'none'}"))
        return
    for change in changes:
        click.echo(harmless(f"  [{at(change, 'section')}] {at(change, 'change')}"))
        for line in items(at(change, "lines")):
            click.echo(harmless(f"    {line}"))


def _show_node(node: object) -> None:
    click.echo()
    click.echo(harmless(f"{at(node, 'node')}: {at(node, 'cut')} cut, {at(node, 'unsure')} unsure"))
    shown = items(at(node, "shown"))
    for one in shown:
        peer = f"{at(one, 'peer')} port {at(one, 'peer_port')}"
        way = f"{peer} to own port {at(one, 'local_port')}" if at(one, "begun") == "there" else f"to {peer}"
        who = at(one, "unit") or at(one, "program") or "unknown program"
        click.echo(harmless(f"  {at(one, 'verdict')}: {at(one, 'protocol')} {way} ({who}): {at(one, 'why')}"))
    cut, unsure = at(node, "cut"), at(node, "unsure")
    left = (cut + unsure if isinstance(cut, int) and isinstance(unsure, int) else 0) - len(shown)
    if left > 0:
        click.echo(f"  and {left} more")


def _some(names: object) -> list[str]:
    listed = [str(name) for name in items(names)]
    return (
        listed if len(listed) <= MAX_SHOWN else [*listed[:MAX_SHOWN], f"and {len(listed) - MAX_SHOWN} more"]
    )


def _many(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
