"""`ringfence outlets`: whether receivers of events take them."""

from __future__ import annotations

import time

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.fleet import reason_option
from controller.cli.profile import load_profile
from controller.cli.show import ago, at, items, json_option, show_json, show_table, when
from controller.cli.watch import watch_option


@click.group()
def outlets() -> None:
    """Outlets: list, retry, dead letters."""


@outlets.command("list")
@watch_option
@json_option
def list_(as_json: bool) -> None:
    """List outlets, and since when one fails."""
    with Client(load_profile()) as client:
        found = items(client.get("/outlets")["items"])
    if as_json:
        show_json(found)
        return
    now = time.time()
    show_table(
        ("OUTLET", "KIND", "SENT", "LAST", "BEHIND", "FAILING SINCE", "TRIES", "WHY", "DEAD LETTERS"),
        [
            (
                at(o, "name"),
                at(o, "kind"),
                at(o, "delivered"),
                ago(at(o, "delivered_at"), now),
                at(o, "behind"),
                when(at(o, "failing_since")),
                at(o, "attempts"),
                at(o, "why"),
                at(o, "dead_letters"),
            )
            for o in found
        ],
    )


@outlets.command()
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def retry(name: str, reason: str, as_json: bool) -> None:
    """Try a failing receiver at once."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/outlets/{segment(name)}/retry", {"reason": reason})
    show_json(found) if as_json else click.echo(f"{name}: tried at once; {found['behind']} events behind")


@outlets.command("dead-letters")
@click.argument("name")
@json_option
def dead_letters(name: str, as_json: bool) -> None:
    """List events that a receiver refused for good. They are still events: `ringfence events --after ID`."""
    with Client(load_profile()) as client:
        found = list(client.pages(f"/outlets/{segment(name)}/dead-letters"))
    if as_json:
        show_json(found)
        return
    show_table(("EVENT", "AT", "WHY"), [(d["event"], when(d["at"]), d["why"]) for d in found])
