"""`ringfence inventory`: what a node says it consists of, since when, and which nodes have a package."""

from __future__ import annotations

from datetime import datetime

import click

from contract.inventory import KINDS
from controller.cli.client import Client, segment
from controller.cli.profile import load_profile
from controller.cli.show import json_option, show_csv, show_json, show_table, when

csv_option = click.option("--csv", "as_csv", is_flag=True, help="CSV for spreadsheets.")


class _NodeFirst(click.Group):
    """`inventory NODE` is `inventory show NODE`; a node that is named like a command needs the long form."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_NodeFirst)
def inventory() -> None:
    """What nodes say they consist of: `inventory NODE`, `inventory find package NAME`. Their own word."""


@inventory.command()
@click.argument("node")
@click.option("--history", is_flag=True, help="All that is and was so, what changed last first.")
@click.option("--at", type=click.DateTime(), help="As it was at this moment, local time.")
@click.option("--kind", type=click.Choice(KINDS), help="Only of this kind.")
@json_option
@csv_option
def show(
    *, node: str, history: bool, at: datetime | None, kind: str | None, as_json: bool, as_csv: bool
) -> None:
    """Look at the inventory of NODE."""
    if history and at is not None:
        raise click.UsageError("--history tells of every moment: leave out --at")
    path = f"/nodes/{segment(node)}/inventory"
    with Client(load_profile()) as client:
        if history:
            found = list(client.pages(f"{path}/history", {"kind": kind}))
        else:
            moment = None if at is None else at.timestamp()
            head = client.get(path, {"limit": 1})
            found = list(client.pages(path, {"kind": kind, "at": moment}))
    if not history:
        found.sort(key=lambda fact: (KINDS.index(fact["kind"]), fact["name"], fact["value"]))
    if as_json:
        show_json(found if history else {**head, "items": found, "next": None})
        return
    columns = ("KIND", "NAME", "VALUE", "SEEN FROM", *(("SEEN UNTIL",) if history or at else ()))
    rows = [
        (f["kind"], f["name"], f["value"], when(f["seen_from"]), _until(f["seen_until"]))[: len(columns)]
        for f in found
    ]
    (show_csv if as_csv else show_table)(columns, rows)
    if not history and head["left_out"] and not as_csv:
        click.echo(f"and {head['left_out']} more, for which there was no room")
    if not history and head["since"] is None and not as_csv:
        click.echo(f"{node} has sent no inventory yet")


@inventory.group()
def find() -> None:
    """Which nodes have something."""


@find.command("package")
@click.argument("name")
@click.argument("version", required=False)
@json_option
@csv_option
def find_package(*, name: str, version: str | None, as_json: bool, as_csv: bool) -> None:
    """List the nodes that say they have package NAME, in VERSION or in any. Both exactly as on the node."""
    with Client(load_profile()) as client:
        found = list(client.pages("/inventory/packages", {"name": name, "version": version}))
    if as_json:
        show_json(found)
        return
    rows = [(f["node"], f["site"], f["name"], f["version"], when(f["since"])) for f in found]
    (show_csv if as_csv else show_table)(("NODE", "SITE", "PACKAGE", "VERSION", "SINCE"), rows)


def _until(value: object) -> str:
    return "now" if value is None else when(value)
