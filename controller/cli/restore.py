"""`ringfence restore`: a database that was put back waits for a person; look at what it would do, and say that it may."""

from __future__ import annotations

import click

from controller.cli.client import Client, dry_run_option
from controller.cli.fleet import reason_option
from controller.cli.profile import load_profile
from controller.cli.show import at, items, json_option, show_facts, show_json, show_table, when

SHOWN = 50


@click.group()
def restore() -> None:
    """A restored database: show what waits, confirm."""


@restore.command()
@json_option
def show(as_json: bool) -> None:
    """Show whether a restore waits, and which nodes are ahead of it. With --json all of these."""
    with Client(load_profile()) as client:
        waiting = client.get("/restore")["waiting"]
        if as_json:
            show_json({"waiting": waiting, "nodes": list(client.pages("/restore/nodes"))})
            return
        found = items(client.get("/restore/nodes", {"limit": SHOWN})["items"])
    if waiting is None:
        click.echo("no restore waits for confirmation")
        return
    show_facts(
        {
            "restored": when(at(waiting, "restored_at")),
            "from the backup of": when(at(waiting, "backup_at")),
            "nodes ahead of it": at(waiting, "ahead"),
            "nodes not heard since": at(waiting, "unheard"),
        }
    )
    if found:
        columns = ("node", "site", "holds", "chosen")
        show_table([c.upper() for c in columns], [[at(each, c) for c in columns] for each in found])
    more = int(str(at(waiting, "ahead"))) - len(found)
    if more > 0:
        click.echo(f"and {more} more: ringfence restore show --json")


@restore.command()
@reason_option
@json_option
@dry_run_option
def confirm(reason: str, as_json: bool) -> None:
    """Let the controllers go on as usual: choose baselines, roll out, isolate by themselves."""
    with Client(load_profile()) as client:
        found = client.send("POST", "/restore/confirm", {"reason": reason})
    if as_json:
        show_json(found)
        return
    click.echo(f"confirmed; {found['ahead']} nodes were ahead and are told to take what is chosen for them")
    if found["unheard"]:
        click.echo(f"{found['unheard']} nodes have not been heard since the restore", err=True)
