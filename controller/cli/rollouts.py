"""`ringfence plan, rollout`: what a baseline would change, and letting it happen wave by wave.

Exit codes of `rollout watch`: 0 done, 1 halted or aborted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from contract.toml import convert_toml, parse_toml
from controller.cli.client import Client, dry_run_option
from controller.cli.fleet import reason_option
from controller.cli.inputs import read_own
from controller.cli.nodes import SELECTOR_HELP
from controller.cli.planshow import show_plan
from controller.cli.profile import load_profile
from controller.cli.show import (
    at,
    console,
    harmless,
    json_option,
    show_facts,
    show_json,
    show_table,
    when,
)
from controller.cli.watch import watch_option
from controller.rollout_records import Terms
from controller.selector import parse_selector

MAX_TERMS_BYTES = 64 * 1024
MAX_SHOWN = 20
STATES = ("requested", "running", "paused", "halted", "done", "aborted")
PROGRESS = ("waiting", "sent", "away", "proved", "failed", "withdrawn")
ENDED = ("done", "aborted", "halted")
POLL_S = 2.0
HALTED = 1


@click.command()
@click.argument("baseline")
@click.option("--version", "version_", type=click.IntRange(1), help="Default: the newest.")
@click.option("--selector", "-l", required=True, help=SELECTOR_HELP)
@click.option("--details", is_flag=True, help="Each rule that changes, each connection that would be cut.")
@json_option
@dry_run_option
def plan(*, baseline: str, version_: int | None, selector: str, details: bool, as_json: bool) -> None:
    """Say what the signed BASELINE would change, on which nodes, and which open connections its rules would cut.

    The nodes are asked for their connections; nothing else is sent.
    """
    parse_selector(selector)
    wanted: dict[str, object] = {"baseline": baseline, "selector": selector}
    if version_ is not None:
        wanted["version"] = version_
    with Client(load_profile()) as client:
        found = client.send("POST", "/plans", wanted)
    show_json(found) if as_json else show_plan(found, details=details)


@click.group(epilog=__doc__)
def rollout() -> None:
    """Rollouts: ask, approve, watch, pause, resume, abort."""


@rollout.command("request")
@click.argument("plan_", metavar="PLAN", type=click.IntRange(1))
@click.option(
    "--terms",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with waves, soak_s, deadline_s, max_failures, per_site, windows. Default: careful ones.",
)
@reason_option
@json_option
@dry_run_option
def request(plan_: int, terms: Path | None, reason: str, as_json: bool) -> None:
    """Ask to carry out PLAN (a number that `ringfence plan` printed)."""
    body: dict[str, object] = {"plan": plan_, "reason": reason}
    if terms is not None:
        body["terms"] = msgspec.to_builtins(_terms(terms))
    with Client(load_profile()) as client:
        found = client.send("POST", "/rollouts", body)
    if as_json:
        show_json(found)
        return
    _show(found)
    click.echo(
        f"it begins when somebody else approves it: ringfence rollout approve {found['id']} --reason ..."
    )


@rollout.command("list")
@click.option("--state", type=click.Choice(STATES))
@watch_option
@json_option
def list_(state: str | None, as_json: bool) -> None:
    """List rollouts, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages("/rollouts", {"state": state}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "BASELINE", "NODES", "STATE", "WAVE", "PROVED", "FAILED", "ASKED BY", "APPROVED BY"),
        [
            (
                r["id"],
                f"{r['baseline']}/{r['version']}",
                r["selector"],
                r["state"],
                f"{r['wave']} of {r['waves']}",
                at(r, "counts", "proved") or 0,
                at(r, "counts", "failed") or 0,
                r["requested_by"],
                r["approved_by"],
            )
            for r in found
        ],
    )


@rollout.command("show")
@click.argument("number", type=click.IntRange(1))
@json_option
def show(number: int, as_json: bool) -> None:
    """Look at one rollout and its nodes."""
    with Client(load_profile()) as client:
        found = client.get(f"/rollouts/{number}")
        nodes = list(client.pages(f"/rollouts/{number}/nodes"))
    if as_json:
        show_json({**found, "nodes": nodes})
        return
    _show(found)
    show_table(
        ("NODE", "SITE", "WAVE", "PROGRESS", "SINCE", "DETAIL"),
        [(n["node"], n["site"], n["wave"], n["progress"], when(n["since"]), n["detail"]) for n in nodes],
    )


@rollout.command()
@click.argument("number", type=click.IntRange(1))
@click.pass_context
def watch(context: click.Context, number: int) -> None:
    """Follow a rollout until it ends or halts. Ctrl-C stops watching, not the rollout."""
    with Client(load_profile()) as client:
        found = _watch(client, number)
    click.echo(harmless(f"rollout {number} is {found['state']}: {found['why']}"))
    if found["state"] != "done":
        context.exit(HALTED)


def _verb(name: str, help_: str) -> click.Command:
    @rollout.command(name, help=help_)
    @click.argument("number", type=click.IntRange(1))
    @reason_option
    @json_option
    @dry_run_option
    def act(number: int, reason: str, as_json: bool) -> None:
        with Client(load_profile()) as client:
            found = client.send("POST", f"/rollouts/{number}/{name}", {"reason": reason})
        show_json(found) if as_json else _show(found)

    return act


_verb("approve", "Let a rollout begin. Whoever asked for it cannot.")
_verb("pause", "Send nothing more until it is resumed.")
_verb("resume", "Go on with one that was paused, or that has halted: without the nodes that failed.")
_verb("abort", "End it. Nodes that have not taken the baseline keep the one from before; no node goes back.")


def _terms(path: Path) -> Terms:
    data, text = parse_toml(read_own(path, MAX_TERMS_BYTES), file=str(path), code="terms")
    return convert_toml(data, Terms, text=text, file=str(path), code="terms")


def _watch(client: Client, number: int) -> dict[str, object]:
    found = client.get(f"/rollouts/{number}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console(), disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=_total(found))
        while found["state"] not in ENDED:
            counted = found["counts"] if isinstance(found["counts"], dict) else {}
            told = ", ".join(f"{counted[name]} {name}" for name in PROGRESS if counted.get(name))
            text = f"wave {found['wave']} of {found['waves']}: {told}"
            progress.update(task, completed=counted.get("proved", 0), description=text)
            if progress.disable:
                click.echo(f"{when(time.time())} {found['state']} {text}")
            time.sleep(POLL_S)
            found = client.get(f"/rollouts/{number}")
    return found


def _total(found: dict[str, object]) -> int:
    counts = found["counts"]
    return sum(counts.values()) if isinstance(counts, dict) else 0


def _show(found: dict[str, object]) -> None:
    counts = found["counts"] if isinstance(found["counts"], dict) else {}
    show_facts(
        {
            "rollout": found["id"],
            "baseline": f"{found['baseline']}/{found['version']}",
            "nodes": found["selector"],
            "state": f"{found['state']}{': ' if found['why'] else ''}{found['why']}",
            "wave": f"{found['wave']} of {found['waves']}, since {when(found['wave_since'])}",
            "progress": [f"{counts[name]} {name}" for name in PROGRESS if counts.get(name)],
            "may change nodes now": found["window_open"],
            "asked for": f"{when(found['requested_at'])} by {found['requested_by']}: {found['reason']}",
            "approved by": found["approved_by"],
            "ended": when(found["ended_at"]),
        }
    )
