"""`ringfence whoami, events, completion`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from controller.cli.client import Client
from controller.cli.profile import load_profile
from controller.cli.rights import shown
from controller.cli.show import at, harmless, items, json_option, show_facts, show_json, when

LONG_POLL_S = 25


@click.command()
@json_option
def whoami(as_json: bool) -> None:
    """Name and rights of the token in use."""
    with Client(load_profile()) as client:
        found = client.get("/me")
    show_json(found) if as_json else show_facts({**found, "rights": shown(found["rights"])})


@click.command()
@click.option("--follow", is_flag=True, help="Wait for new ones until Ctrl-C.")
@click.option("--after", type=click.IntRange(0), help="From this id on. Default: the last ones.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@click.option("--node", "node_", help="Only of this node.")
@click.option("--site", help="Only of this site.")
@json_option
def events(
    *, follow: bool, after: int | None, limit: int, node_: str | None, site: str | None, as_json: bool
) -> None:
    """List events, oldest first. With --json each is one line."""
    where = {"node": node_, "site": site}
    with Client(load_profile()) as client:
        if after is None:
            newest = items(client.get("/events", {**where, "limit": limit, "newest_first": True})["items"])
            found: list[object] = list(reversed(newest))
            last = at(found[-1], "id") if found else 0
        else:
            page = client.get("/events", {**where, "after": after, "limit": limit})
            found, last = items(page["items"]), page["after"]
        _print_events(found, as_json)
        while follow:
            page = client.get("/events", {**where, "after": last, "limit": 500, "wait_s": LONG_POLL_S})
            last = page["after"]
            _print_events(items(page["items"]), as_json)


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: eval "$(ringfence completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(context.find_root().command, {}, "ringfence", "_RINGFENCE_COMPLETE").source())


def _print_events(found: list[object], as_json: bool) -> None:
    for event in found:
        if as_json:
            show_json(event)
            continue
        where = at(event, "node") or at(event, "site") or "-"
        text = (
            f"{at(event, 'id')} {when(at(event, 'at'))} {at(event, 'severity')} {where} {at(event, 'kind')}: "
        )
        click.echo(harmless(text + str(at(event, "summary"))))
    sys.stdout.flush()
