"""`ringfence baseline`: sign and cosign offline, then push, list, show and assign over the API."""

from __future__ import annotations

from pathlib import Path

import click

from contract.errors import Rejected
from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.show import baseline_of, items, json_option, show_facts, show_json, show_table, when
from controller.cli.sign import cosign, sign
from controller.repository import read_bundle


@click.group()
def baseline() -> None:
    """Baselines: sign, push, assign."""


baseline.add_command(sign)
baseline.add_command(cosign)


@baseline.command()
@click.argument("repository", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
@dry_run_option
def push(repository: Path, as_json: bool) -> None:
    """Upload the signed files of an offline REPOSITORY. The controller verifies them all, or takes none."""
    content = read_bundle(repository)
    with Client(load_profile()) as client:
        found = client.upload("/baselines", content)
    if as_json:
        show_json(found)
        return
    new = items(found["new"])
    click.echo("new: " + ", ".join(baseline_of(b) for b in new) if new else "nothing new")


@baseline.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List signed baselines."""
    with Client(load_profile()) as client:
        found = list(client.pages("/baselines"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("BASELINE", "SHA-256", "PUSHED", "BY", "SITES", "SUMMARY"),
        [
            (
                baseline_of(b),
                str(b["sha256"])[:16],
                when(b["pushed_at"]),
                b["pushed_by"],
                b["sites"],
                b["summary"],
            )
            for b in found
        ],
    )


@baseline.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest.")
@json_option
def show(name: str, version: int | None, as_json: bool) -> None:
    """Look at baseline NAME."""
    with Client(load_profile()) as client:
        found = [
            b for b in client.pages("/baselines") if b["name"] == name and version in (None, b["version"])
        ]
    if not found:
        raise Rejected("baseline.unknown", name)
    newest = max(found, key=lambda b: int(str(b["version"])))
    if as_json:
        show_json(newest)
        return
    shown = {key: newest[key] for key in ("name", "version", "sha256", "summary", "pushed_by", "sites")}
    show_facts({**shown, "pushed": when(newest["pushed_at"])})


@baseline.command()
@click.argument("name")
@click.option("--site", required=True)
@click.option("--version", type=click.IntRange(1), help="Default: the newest.")
@click.option("--reason", required=True)
@json_option
@dry_run_option
def assign(name: str, site: str, version: int | None, reason: str, as_json: bool) -> None:
    """Choose baseline NAME for a site; its nodes are told at once."""
    body: dict[str, object] = {"name": name, "reason": reason}
    if version is not None:
        body["version"] = version
    with Client(load_profile()) as client:
        path = f"/sites/{segment(site)}/baseline"
        found = client.send("PUT", path, body, match=client.whole(path).tag)
    show_json(found) if as_json else click.echo(
        f"{name} for {site}: {len(items(found['affected']))} nodes told"
    )
