"""`ringfence-controller`: init, serve, token. Everything about a fleet is done by `ringfence`, over the API.

Exit codes: 0 done, 1 refused (the reason and the cure are on stderr), 2 wrong usage, 70 a fault of the program.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import NoReturn

import click

from contract.errors import Rejected
from contract.names import checked_name
from controller.api.entry import token_digest
from controller.api.tokens import make_token
from controller.app import Controller, server_names, store_url
from controller.config import CONFIG_NAME, Config, load_config, parse_config
from controller.faults import log_fault
from controller.fleet.people import People
from controller.heap import short_pauses
from controller.keys import CA_COPY_NAME, create, load
from controller.permissions import ON_THE_MACHINE, ROLES, Right, Role
from controller.rootscheck import ek_roots
from controller.store import Store, StoreUnavailable, migrate
from controller.upkeep import backup, confirm_restore, migrate_to, restore

DEFAULT_DIRECTORY = "/var/lib/ringfence-controller"

_TEMPLATE = """\
# The controller's configuration. Strict: a wrong key or type is refused with its line.
# Relative paths are relative to this folder.
name = {name}

# How agents and admins reach this controller. The certificate carries these hosts.
node_url = {node_url}
admin_url = {admin_url}

[nodes]
listen = {node_listen}

[admins]
listen = {admin_listen}

[store]
# Empty: SQLite beside this file. For several controllers: "postgresql://user@host/name"
url = {store_url}

[certificates]
node_hours = 72
# Further names and addresses for the listeners' certificate.
names = {names}

[enrolment]
# Folder of certificates: the authorities whose TPM endorsement certificates are trusted.
# "ringfence-controller ek-roots check" says what is there and what is missing.
ek_roots = "ek-roots"
retry_s = {retry_s}
"""

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Folder of the controller: configuration, keys, database.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ringfence", prog_name="ringfence-controller")
def cli() -> None:
    """The Ringfence controller."""


@cli.command()
@directory_option
@click.option("--name", default="ringfence", show_default=True, help="Name of this controller.")
@click.option("--node-url", default="https://localhost:8440", show_default=True, help="How agents reach it.")
@click.option("--admin-url", default="https://localhost:8441", show_default=True, help="How admins reach it.")
@click.option("--node-listen", default="[::]:8440", show_default=True)
@click.option("--admin-listen", default="127.0.0.1:8441", show_default=True)
@click.option("--database", default="", help="SQLAlchemy URL; empty: SQLite in the folder.")
@click.option("--also-known-as", multiple=True, help="Further name or address for the certificate.")
@click.option(
    "--enrol-retry", default=10.0, show_default=True, help="Seconds between a waiting node's questions."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Write the admin token here (0600), not to stdout."
)
def init(
    *,
    directory: Path,
    name: str,
    node_url: str,
    admin_url: str,
    node_listen: str,
    admin_listen: str,
    database: str,
    also_known_as: tuple[str, ...],
    enrol_retry: float,
    token_file: Path | None,
) -> None:
    """Make a new controller: keys, certificates, database, configuration and the first admin token.

    Writes over nothing. To undo it, delete the folder.
    """
    values = {
        "name": _toml(checked_name(name)),
        "node_url": _toml(node_url),
        "admin_url": _toml(admin_url),
        "node_listen": _toml(node_listen),
        "admin_listen": _toml(admin_listen),
        "store_url": _toml(database),
        "names": "[" + ", ".join(_toml(name) for name in also_known_as) + "]",
        "retry_s": f"{enrol_retry:g}",
    }
    text = _TEMPLATE.format(**values)
    config = parse_config(text.encode())
    if directory.exists() and any(directory.iterdir()):
        raise Rejected("init.exists", f"{directory} is not empty; choose another folder or delete it")
    if token_file is not None and token_file.exists():
        raise Rejected("init.exists", f"{token_file} is there already")
    made = not directory.exists()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        token = _initialise(directory, config, text)
    except BaseException:
        _undo(directory, made)
        raise
    _show_token(token, token_file)
    click.echo(f"controller in {directory}; agents and admins pin {directory / CA_COPY_NAME}", err=True)
    click.echo(f"start it: ringfence-controller serve --dir {directory}", err=True)


@cli.command()
@directory_option
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(directory: Path, verbose: bool) -> None:
    """Run the controller in the foreground until SIGTERM or Ctrl-C."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = load_config(directory)
    keys = load(directory / "keys", time.time())
    migrate(store_url(config, directory))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each node
    controller = Controller(config, directory, keys)
    with short_pauses():
        _run(_serve(controller))


@cli.command()
@directory_option
@click.argument("name")
@click.option("--role", type=click.Choice(tuple(ROLES)), required=True)
@click.option("--days", type=float, default=90.0, show_default=True)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Write the token here (0600), not to stdout."
)
def token(directory: Path, name: str, role: Role, days: float, token_file: Path | None) -> None:
    """Make an API token on the controller's own machine, for the whole fleet (the way back in when every token is lost)."""
    config = load_config(directory)
    made = asyncio.run(
        _add_token(store_url(config, directory), checked_name(name), role, time.time() + days * 86400)
    )
    _show_token(made, token_file)


for command in (ek_roots, backup, restore, confirm_restore, migrate_to):
    cli.add_command(command)


def main() -> NoReturn:
    """Entry point."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except Rejected as rejected:
        click.echo(f"ringfence-controller: {rejected}", err=True)
        sys.exit(1)
    except StoreUnavailable as error:
        click.echo(f"ringfence-controller: the database does not answer: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"ringfence-controller: {error.strerror}: {error.filename or ''}", err=True)
        sys.exit(1)
    except Exception as fault:  # outermost place of the program
        log_fault("ringfence-controller", fault)
        sys.exit(70)
    sys.exit(0)


def _initialise(directory: Path, config: Config, text: str) -> str:
    now = time.time()
    keys = create(directory / "keys", config.name, now)
    keys.renew(server_names(config), now)
    (directory / CA_COPY_NAME).write_bytes(keys.server_authority.pem)
    for folder in (config.enrolment.ek_roots, config.enrolment.ek_crls, config.enrolment.devid_roots):
        (directory / folder).mkdir(mode=0o755)
    url = store_url(config, directory)
    migrate(url)
    token = asyncio.run(_add_token(url, "admin", "admin", None))
    (directory / CONFIG_NAME).write_text(text)
    return token


async def _add_token(url: str, name: str, role: Role, expires_at: float | None) -> str:
    store = Store(url)
    try:
        token = make_token()
        await People(store).add_token(
            name,
            [Right(role=role, sites="all")],
            token_digest(token),
            by=ON_THE_MACHINE,
            expires_at=expires_at,
            now=time.time(),
        )
        return token
    finally:
        store.close()


def _show_token(token: str, token_file: Path | None) -> None:
    if token_file is None:
        click.echo(token)
        click.echo("This token is shown once. Log in: ringfence login", err=True)
        return
    descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")


def _undo(directory: Path, made: bool) -> None:
    for path in list(directory.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if made:
        directory.rmdir()


def _toml(text: str) -> str:
    if any(character in text for character in '"\\\n\r') or not text.isprintable():
        raise Rejected("init.value", f"{text[:64]!r} cannot stand in the configuration")
    return f'"{text}"'


def _run(work: Coroutine[None, None, None]) -> None:
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(work)
    else:
        uvloop = importlib.import_module("uvloop")
        uvloop.run(work)


async def _serve(controller: Controller) -> None:
    await controller.start()
    config = controller.services.config
    logging.getLogger("ringfence").info(
        "listening: nodes %s, admins %s", config.nodes.listen, config.admins.listen
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    duties = asyncio.create_task(controller.run_duties())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([duties, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not duties.done():
        duties.cancel()
        await asyncio.gather(duties, return_exceptions=True)
        await controller.stop()
        return
    await controller.stop()
    duties.result()
