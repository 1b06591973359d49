"""`ringfence login, logout, password`: with a token, by name, or with an issuer; and the first time.

What is secret is asked for without being shown, or read from a file; it is never an argument, which other users of the machine
could read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from controller.cli.client import Client
from controller.cli.oidc import vouched
from controller.cli.profile import Profile, load_profile, save_profile
from controller.cli.rights import shown
from controller.cli.show import harmless, items, json_option, show_json, when

_FILE = click.Path(path_type=Path, allow_dash=True)
password_option = click.option(
    "--password-file", type=_FILE, help="File with the password; '-' is stdin. Default: ask."
)


@click.command()
@click.option("--url", required=True, help="https://host:port of the admin listener.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The controller's controller-ca.pem.",
)
@click.option("--token-file", type=_FILE, help="File with a token; '-' is stdin. Default: ask.")
@click.option("--user", help="Log in by name, with password and code, in place of a token.")
@click.option("--setup", is_flag=True, help="For the first time, with the code that was given to you.")
@click.option("--oidc", is_flag=True, help="Log in with the issuer that the controller trusts, in a browser.")
@click.option("--no-browser", is_flag=True, help="Only print the address; open it on this machine yourself.")
@password_option
@click.option("--code", help="The authenticator's code, or a recovery code. Default: ask.")
@json_option
def login(
    *,
    url: str,
    ca: Path,
    token_file: Path | None,
    user: str | None,
    setup: bool,
    oidc: bool,
    no_browser: bool,
    password_file: Path | None,
    code: str | None,
    as_json: bool,
) -> None:
    """Keep URL, authority and token for the commands that follow."""
    if setup and user is None:
        raise click.UsageError("--setup needs --user NAME")
    if oidc and (user is not None or token_file is not None):
        raise click.UsageError("--oidc goes without --user and --token-file")
    stranger = Profile(url=url.rstrip("/"), ca=ca.read_text(), token="")
    made: dict[str, object] = {}
    if user is None and not oidc:
        token = _secret("Token", token_file)
    else:
        with Client(stranger) as client:
            if user is None:
                made = vouched(client, browser=not no_browser)
            elif setup:
                made = _first(client, user, password_file)
            else:
                made = _by_name(client, user, password_file, code)
        token = str(made["token"])
    profile = Profile(url=stranger.url, ca=stranger.ca, token=token)
    with Client(profile) as client:
        found = client.get("/me")
    path = save_profile(profile)
    recovery = items(made.get("recovery_codes"))
    if as_json:
        show_json({**found, "expires_at": made.get("expires_at"), "recovery_codes": recovery})
        return
    if recovery:
        click.echo("recovery codes, each good once in place of a code; they are shown this once:")
        for each in recovery:
            click.echo(f"  {harmless(str(each))}")
    until = f" until {when(made['expires_at'])}" if "expires_at" in made else ""
    click.echo(
        f"logged in to {found['controller']} as {found['name']} ({shown(found['rights'])}){until}; kept in {path}"
    )


def _by_name(client: Client, user: str, password_file: Path | None, code: str | None) -> dict[str, object]:
    password = _secret("Password", password_file)
    code = code or click.prompt("Code")
    return client.prove("/login", {"user": user, "password": password, "code": code.strip()})


def _first(client: Client, user: str, password_file: Path | None) -> dict[str, object]:
    code = click.prompt("Setup code", hide_input=True).strip()
    offered = client.prove("/login/setup", {"user": user, "setup": code})
    click.echo(
        "Give this to your authenticator (it takes the address as a QR code or the secret as text):", err=True
    )
    click.echo(f"  {harmless(str(offered['uri']))}\n  secret: {harmless(str(offered['secret']))}", err=True)
    if password_file is None:
        password = click.prompt("New password", hide_input=True, confirmation_prompt=True)
    else:
        password = _secret("New password", password_file)
    body = {"user": user, "setup": code, "password": password, "code": click.prompt("Code").strip()}
    return client.prove("/login/setup/confirm", body)


@click.command()
def logout() -> None:
    """End the session in use. The profile stays, without worth."""
    with Client(load_profile()) as client:
        client.send("POST", "/logout")
    click.echo("logged out")


@click.command()
@password_option
@click.option("--new-password-file", type=_FILE, help="File with the new one. Default: ask, twice.")
@click.option("--code", help="The authenticator's code, or a recovery code. Default: ask.")
def password(password_file: Path | None, new_password_file: Path | None, code: str | None) -> None:
    """Replace your own password. Every session ends: log in again."""
    old = _secret("Password", password_file)
    if new_password_file is None:
        new = click.prompt("New password", hide_input=True, confirmation_prompt=True)
    else:
        new = _secret("New password", new_password_file)
    body = {"password": old, "code": (code or click.prompt("Code")).strip(), "new_password": new}
    with Client(load_profile()) as client:
        client.prove("/me/password", body, method="PUT")
    click.echo("changed; log in again")


def _secret(what: str, file: Path | None) -> str:
    """Ask for a secret, or read the first line of a file."""
    if file is None:
        return str(click.prompt(what, hide_input=True)).strip()
    if str(file) == "-":
        return sys.stdin.readline().strip()
    return file.read_text().partition("\n")[0].strip()
