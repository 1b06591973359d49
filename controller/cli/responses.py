"""`ringfence response, suppress, suppressions, drill`: what is done by itself, what is kept quiet, rehearsing the worst."""

from __future__ import annotations

from pathlib import Path

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.fleet import reason_option
from controller.cli.inputs import read_own
from controller.cli.nodes import SELECTOR_HELP
from controller.cli.profile import load_profile
from controller.cli.references import Moment
from controller.cli.show import (
    at,
    baseline_of,
    harmless,
    items,
    json_option,
    show_facts,
    show_json,
    show_table,
    when,
)
from controller.response import MAX_RULES_BYTES, parse_responses
from controller.selector import parse_selector

FILE = click.Path(path_type=Path, dir_okay=False)
MAX_SHOWN = 20


@click.group()
def response() -> None:
    """Response rules: show, check, set, history, undo."""


@response.command()
@json_option
def show(as_json: bool) -> None:
    """Print the rules in force, as TOML."""
    with Client(load_profile()) as client:
        found = client.get("/responses")
    if as_json:
        show_json(found)
    elif found["version"] == 0:
        click.echo("# no rules were ever set: the policy of each site decides")
    else:
        click.echo(
            f"# version {found['version']}, set {when(found['set_at'])} by {harmless(str(found['set_by']))}"
        )
        click.echo(f"# {harmless(str(found['reason']))}")
        click.echo("\n".join(harmless(line) for line in str(found["document"]).splitlines()))


@response.command()
@click.argument("file", type=FILE)
@click.option("--offline", is_flag=True, help="Do not ask the controller what its sites' policies say.")
def check(file: Path, offline: bool) -> None:
    """Check FILE, and say where it and the policies of sites pull in different directions. Stores nothing."""
    document = _checked(file)
    if not offline:
        with Client(load_profile()) as client:
            _notes(_put(client, document, "check", rehearse=True))
    click.echo(f"{file}: {document.count('[[rule]]')} rules, no fault")


@response.command("set")
@click.argument("file", type=FILE)
@reason_option
@json_option
@dry_run_option
def set_(file: Path, reason: str, as_json: bool) -> None:
    """Put the rules of FILE in force, in place of all that are."""
    document = _checked(file)
    with Client(load_profile()) as client:
        found = _put(client, document, reason)
    if as_json:
        show_json(found)
        return
    _notes(found)
    click.echo(
        f"response rules version {found['version']} in force; back: ringfence response undo --reason ..."
    )


@response.command()
@json_option
def history(as_json: bool) -> None:
    """List versions, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages("/responses/history"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("VERSION", "SET", "BY", "REASON"),
        [(v["version"], when(v["set_at"]), v["set_by"], v["reason"]) for v in found],
    )


@response.command()
@click.option("--to", type=click.IntRange(1), help="This version. Default: the one before.")
@reason_option
@json_option
@dry_run_option
def undo(to: int | None, reason: str, as_json: bool) -> None:
    """Put an earlier version in force again, as a new one."""
    with Client(load_profile()) as client:
        body: dict[str, object] = {"replaces": client.get("/responses")["version"], "reason": reason}
        if to is not None:
            body["to"] = to
        found = client.send("POST", "/responses/undo", body)
    show_json(found) if as_json else click.echo(
        f"response rules version {found['version']}: {found['reason']}"
    )


@click.command()
@click.option("--selector", "-l", required=True, help=SELECTOR_HELP)
@click.option(
    "--kind",
    required=True,
    help="drift, update, untrusted, or a code: drift.firewall, boot.*, event.usb.refused.",
)
@click.option("--until", type=Moment(), required=True, help="2026-11-23T22:00; at most 30 days from now.")
@click.option("--acts", is_flag=True, help="Nothing is isolated or fenced by itself for it either.")
@reason_option
@json_option
@dry_run_option
def suppress(*, selector: str, kind: str, until: float, acts: bool, reason: str, as_json: bool) -> None:
    """Keep incidents and alerts of a kind quiet on some nodes, for a while. Tiers and findings stay as they are."""
    parse_selector(selector)
    body = {"selector": selector, "kind": kind, "until": until, "acts": acts, "reason": reason}
    with Client(load_profile()) as client:
        found = client.send("POST", "/suppressions", body)
    if as_json:
        show_json(found)
        return
    click.echo(
        f"suppression {found['id']} until {when(found['until'])}; end it: ringfence suppressions end {found['id']}"
    )


@click.group()
def suppressions() -> None:
    """Suppressions: list, end."""


@suppressions.command("list")
@click.option("--all", "all_", is_flag=True, help="Ended ones too.")
@json_option
def list_(all_: bool, as_json: bool) -> None:
    """List suppressions, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages("/suppressions", {"all": all_}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "NODES", "KIND", "ACTS TOO", "UNTIL", "BY", "REASON", "ENDED"),
        [
            (
                s["id"],
                s["selector"],
                s["kind"],
                s["acts"],
                when(s["until"]),
                s["created_by"],
                s["reason"],
                when(s["ended_at"]),
            )
            for s in found
        ],
    )


@suppressions.command()
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@dry_run_option
def end(number: int, reason: str, as_json: bool) -> None:
    """End suppression NUMBER before its time."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/suppressions/{number}/end", {"reason": reason})
    show_json(found) if as_json else click.echo(f"suppression {number} ended")


@click.group()
def drill() -> None:
    """Rehearse: everything but the last step."""


@drill.command("isolate")
@click.argument("site")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0.1, 30),
    default=10.0,
    show_default=True,
    help="Seconds for answers.",
)
@reason_option
@json_option
@dry_run_option
def drill_isolate(site: str, wait_s: float, reason: str, as_json: bool) -> None:
    """Rehearse the isolation of SITE. No order is sent and no posture changes."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/sites/{segment(site)}/drill", {"reason": reason, "wait_s": wait_s})
    if as_json:
        show_json(found)
        return
    took = [float(str(each)) for each in items(found["answered_ms"])]
    show_facts(
        {
            "would be isolated": f"{len(items(at(found, 'plan', 'would_isolate')))} nodes",
            "isolated already": _some(at(found, "plan", "isolated_already")),
            "orders": f"{at(found, 'plan', 'orders')}, {len(items(found['connected']))} at once",
            "get it when they come back": _some(found["away"]),
            "connected and silent": _some(found["silent"]),
            "facts and orders": f"{float(str(found['planned_ms'])):.0f} ms",
            "challenge to judged report": f"{took[len(took) // 2]:.0f} ms median, {took[-1]:.0f} ms at most"
            if took
            else "no answer",
            "stays reachable": [
                "the controller",
                *(
                    f"what {baseline_of(b)} allows isolated nodes"
                    for b in items(at(found, "plan", "baselines"))
                ),
            ],
            "packaged lock-down rules": _some(at(found, "plan", "without_baseline")),
            "by itself": at(found, "plan", "breaker") or "the breaker would allow it now",
        }
    )
    click.echo(f"the last step: ringfence isolate --site {site} --reason ...")


def _checked(file: Path) -> str:
    content = read_own(file, MAX_RULES_BYTES)
    parse_responses(content, file=str(file))
    return content.decode()


def _put(client: Client, document: str, reason: str, *, rehearse: bool = False) -> dict[str, object]:
    replaces = client.get("/responses")["version"]
    body = {"document": document, "replaces": replaces, "reason": reason}
    return client.send("PUT", "/responses", body, rehearse=rehearse)


def _notes(found: dict[str, object]) -> None:
    for note in items(found["notes"]):
        click.echo(harmless(f"note: {note}"), err=True)


def _some(names: object) -> list[str]:
    listed = [str(name) for name in items(names)]
    more = len(listed) - MAX_SHOWN
    return listed if more <= 0 else [*listed[:MAX_SHOWN], f"and {more} more"]
