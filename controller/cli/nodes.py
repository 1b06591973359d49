"""`ringfence nodes, label`: which nodes there are, by selector and order, and what people call them."""

from __future__ import annotations

import time

import click

from contract.errors import Rejected
from controller.cli.client import Client, dry_run_option, segment
from controller.cli.each import fail_where_refused, refusal
from controller.cli.fleet import STANDINGS, reason_option
from controller.cli.profile import load_profile
from controller.cli.show import ago, at, baseline_of, items, json_option, labels_of, show_json, show_table
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
@dry_run_option
def label(node: str, changes: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Set labels of NODE (line=3), or take them away (line-). Others stay as they are."""
    with Client(load_profile()) as client:
        path = f"/nodes/{segment(node)}/labels"
        seen = client.whole(path)
        there = seen.value["labels"]
        labels = {str(k): str(v) for k, v in there.items()} if isinstance(there, dict) else {}
        wanted = checked_labels(_changed(labels, changes))
        found = client.send("PUT", path, {"labels": wanted, "reason": reason}, match=seen.tag)
    show_json(found) if as_json else click.echo(
        f"{node}: {', '.join(labels_of(found['labels'])) or 'no labels'}"
    )


@click.command()
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY- ...")
@click.option("--selector", "-l", help=SELECTOR_HELP)
@click.option("--node", "named", multiple=True, help="This node. Several times for several.")
@reason_option
@json_option
@dry_run_option
def relabel(
    *, changes: tuple[str, ...], selector: str | None, named: tuple[str, ...], reason: str, as_json: bool
) -> None:
    """Set labels (line=3) or take them away (line-) of many nodes, each on its own. Exit code 1: one was refused."""
    if (selector is None) == (not named):
        raise click.UsageError(
            "name the nodes (--node), or say which are meant (--selector; all: every node)"
        )
    if selector is not None:
        parse_selector(selector)
    put = dict(change.split("=", 1) for change in changes if "=" in change)
    gone = [change[:-1] for change in changes if "=" not in change and change.endswith("-")]
    if len(put) + len(gone) != len(changes):
        raise click.UsageError("wanted KEY=VALUE, or KEY- to take it away; each key once")
    body: dict[str, object] = {"set": checked_labels(put), "remove": gone, "reason": reason}
    body |= {"nodes": list(named)} if named else {"selector": selector}
    with Client(load_profile()) as client:
        found = client.send("POST", "/labels", body)
    if as_json:
        show_json(found)
    else:
        show_table(
            ("NODE", "LABELS", "REFUSED"),
            [
                (at(e, "item"), labels_of(at(e, "done", "labels") or {}), refusal(e))
                for e in items(found["items"])
            ],
        )
    fail_where_refused(found)


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
