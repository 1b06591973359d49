"""`ringfence-controller` backup, restore, confirm-restore, migrate-to: what is done to the database as a whole.

Keys and configuration are files of the controller's folder and are in no archive: keep a copy of `keys/` where keys are kept.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from contract.errors import Rejected
from controller.app import store_url
from controller.config import CONFIG_NAME, load_config
from controller.fleet import Fleet
from controller.policy import FleetSettings
from controller.restore_records import AheadNode, WaitingRestore
from controller.store import Store, copying

SHOWN = 20

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default="/var/lib/ringfence-controller",
    show_default=True,
    help="Folder of the controller.",
)


class _Bar:
    """Progress on a terminal: one line that is written again; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, table: str, rows: int) -> None:
        if self._shown:
            click.echo(f"\r\033[K{table}: {rows}", nl=False, err=True)

    def end(self) -> None:
        """Leave a clean line."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)


def _rows(counts: dict[str, int]) -> str:
    return f"{sum(counts.values())} rows of {len(counts)} tables"


@click.command()
@directory_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(directory: Path, file: Path) -> None:
    """Write the whole database, at one moment, to FILE (0600). Controllers go on meanwhile."""
    bar = _Bar()
    end = copying.save(
        file, copying.read(store_url(load_config(directory), directory), time.time(), progress=bar)
    )
    bar.end()
    click.echo(
        f"{file}: {_rows(end.counts)}; the keys are not in it: keep a copy of {directory / 'keys'} too"
    )


@click.command()
@directory_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def restore(directory: Path, file: Path) -> None:
    """Write a backup into the empty database that the configuration names.

    The controller starts with it, but takes no node back: rollouts, older baselines and automatic isolation wait for
    `ringfence restore confirm`, or `ringfence-controller confirm-restore` here.
    """
    bar = _Bar()
    url = store_url(load_config(directory), directory)
    counts = copying.write(url, copying.load(file), progress=bar, restored_at=time.time())
    bar.end()
    click.echo(
        f"restored {_rows(counts)}; start the controllers, let the nodes report, then look and confirm:"
    )
    click.echo("  ringfence restore show; ringfence restore confirm --reason ...")
    click.echo(f"  or here: ringfence-controller confirm-restore --dir {directory} --actor YOU --reason ...")


@click.command("confirm-restore")
@directory_option
@click.option("--actor", required=True, help="Who confirms; kept with the act.")
@click.option("--reason", required=True, help="Why it may go on; kept with the act.")
@click.option("--dry-run", is_flag=True, help="Only show which nodes are ahead of this database.")
def confirm_restore(directory: Path, actor: str, reason: str, dry_run: bool) -> None:
    """Let controllers over a restored database go on as usual: choose baselines, roll out, isolate by themselves."""
    url = store_url(load_config(directory), directory)
    waiting, ahead = asyncio.run(_confirm(url, actor, reason, dry_run))
    for found in ahead:
        click.echo(f"{found.node}: holds {found.holds}, chosen is {found.chosen}")
    if waiting.ahead > len(ahead):
        click.echo(f"and {waiting.ahead - len(ahead)} more")
    click.echo(f"{waiting.ahead} nodes hold a newer baseline than the one chosen for them, or another")
    click.echo(f"{waiting.unheard} nodes have not been heard since the restore")
    click.echo("nothing was changed" if dry_run else "confirmed")


@click.command("migrate-to")
@directory_option
@click.argument("url")
def migrate_to(directory: Path, url: str) -> None:
    """Copy everything from SQLite into the empty PostgreSQL database at URL, and verify it. Stop the controller first.

    The SQLite file stays as it is. Afterwards put URL into controller.toml ([store] url) and start again.
    """
    source = store_url(load_config(directory), directory)
    if not source.startswith("sqlite"):
        raise Rejected(
            "store.url", f"{directory / CONFIG_NAME}: [store] url is no SQLite; use backup and restore"
        )
    if not url.startswith("postgresql"):
        raise Rejected("store.url", 'wanted "postgresql://user@host/name"')
    bar = _Bar()
    frames = copying.read(source, time.time(), progress=lambda _table, _rows: None, stopped=True)
    counts = copying.write(url, frames, progress=bar)
    bar.end()
    for table, rows in counts.items():
        if rows:
            click.echo(f"{table:20} {rows}")
    click.echo(f"copied and verified: {_rows(counts)}, audit log whole")
    click.echo(f'now set [store] url = "..." in {directory / CONFIG_NAME} and start the controller')


async def _confirm(
    url: str, actor: str, reason: str, dry_run: bool
) -> tuple[WaitingRestore, Sequence[AheadNode]]:
    """Return what stood against it, and the first of the nodes that are ahead."""
    store = Store(url)
    try:
        fleet = Fleet(store, FleetSettings())
        ahead = (await fleet.ahead(limit=SHOWN)).items
        if not dry_run:
            return await fleet.confirm_restore(actor=actor, reason=reason, now=time.time()), ahead
        waiting = (await fleet.restore()).waiting
        if waiting is None:
            raise Rejected("restore.none", "no restore waits for confirmation")
        return waiting, ahead
    finally:
        store.close()
