"""`ringfence nodes, label`: which nodes there are, by selector and order, and what people call them."""

from __future__ import annotations

import time

import click

from contract.errors import Rejected
from controller.cli.client import Client, segment
from controller.cli.fleet import STANDINGS, reason_option
from controller.cli.profile import load_profile
from controller.cli.show import ago, at, baseline_of, json_option, labels_of, show_json, show_table
from controller.cli.watch import watch_option
from controller.selector import checked_labels, parse_selector

SORTS = ("node", "site", "standing", "last_report_at", "standing_since")
SELECTOR_HELP = "Which nodes: site=lyon,line in (3,4),!retired; `all` is every node."


@click.command()
@click.option("--site", help="Only of this site.")
@click.option("--standing", type=click.Choice(STANDINGS), help="Only with this standing.")
@click.option("--selector", "-l", help=SELECTOR_HELP)
@click.option("--sort", type=click.Choice(SORTS), default="node", show_default=True)
@click.option("--descending", is_flag=True, help="Last ones first.")
@watch_option
@json_option
def nodes(
    *,
    site: str | None,
    standing: str | None,
    selector: str | None,
    sort: str,
    descending: bool,
    as_json: bool,
) -> None:
    """List nodes."""
    if selector is not None:
        parse_selector(selector)  # a clear word before anything is sent
    wanted = {
        "site": site,
        "standing": standing,
        "selector": selector,
        "sort": sort,
        "descending": descending,
    }
    with Client(load_profile()) as client:
        found = list(client.pages("/nodes", wanted))
    if as_json:
        show_json(found)
        return
    now = time.time()
    show_table(
        (
            "NODE",
            "SITE",
            "STANDING",
            "TIER",
            "POSTURE",
            "BASELINE",
            "DRIFTS",
            "REPORT",
            "CONNECTED",
            "LABELS",
        ),
        [
            (
                n["node"],
                n["site"],
                n["standing"],
                n["tier"],
                n["posture"],
                baseline_of(n["baseline"]),
                n["drifts"],
                ago(n["last_report_at"], now),
                n["connected"],
                labels_of(n["labels"]),
            )
            for n in found
        ],
    )


@click.command()
@click.argument("node")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY- ...")
@reason_option
@json_option
def label(node: str, changes: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Set labels of NODE (line=3), or take them away (line-). Others stay as they are."""
    with Client(load_profile()) as client:
        there = at(client.get(f"/nodes/{segment(node)}"), "summary", "labels")
        labels = {str(k): str(v) for k, v in there.items()} if isinstance(there, dict) else {}
        wanted = checked_labels(_changed(labels, changes))
        found = client.send("PUT", f"/nodes/{segment(node)}/labels", {"labels": wanted, "reason": reason})
    show_json(found) if as_json else click.echo(
        f"{node}: {', '.join(labels_of(found['labels'])) or 'no labels'}"
    )


def _changed(labels: dict[str, str], changes: tuple[str, ...]) -> dict[str, str]:
    after = dict(labels)
    for change in changes:
        key, there, value = change.partition("=")
        if there:
            after[key] = value
        elif change.endswith("-"):
            if after.pop(change[:-1], None) is None:
                raise Rejected("label.unknown", f"there is no label {change[:-1]}")
        else:
            raise click.UsageError(f"{change}: wanted KEY=VALUE, or KEY- to take it away")
    return after
