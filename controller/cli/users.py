"""`ringfence users`: list, new, scope, disable, enable, reset, unlock, end-sessions."""

from __future__ import annotations

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.rights import rights_option, shown
from controller.cli.show import at, items, json_option, show_json, show_table, when

reason_option = click.option("--reason", required=True, help="Why; kept for ever.")


@click.group()
def users() -> None:
    """People who log in here with password and code."""


@users.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List people."""
    with Client(load_profile()) as client:
        found = items(client.get("/users")["items"])
    if as_json:
        show_json(found)
        return
    rows = [
        (
            at(u, "name"),
            at(u, "state"),
            shown(at(u, "rights")),
            when(at(u, "last_login_at")),
            at(u, "recovery_codes"),
            _waits(at(u, "wait_s")),
            at(u, "created_by"),
        )
        for u in found
    ]
    show_table(("NAME", "STATE", "RIGHTS", "LAST LOGIN", "RECOVERY CODES", "LOCKED", "MADE BY"), rows)


def _waits(seconds: object) -> str:
    return f"{seconds:.0f} s" if isinstance(seconds, int | float) and seconds > 0 else ""


@users.command()
@click.argument("name")
@rights_option
@json_option
@dry_run_option
def new(name: str, rights: tuple[dict[str, object], ...], as_json: bool) -> None:
    """Make a person, and print the code with which they set themselves up, this once."""
    with Client(load_profile()) as client:
        found = client.send("POST", "/users", {"name": name, "rights": list(rights)})
    _show_invited(found, name, as_json)


@users.command()
@click.argument("name")
@rights_option
@reason_option
@json_option
@dry_run_option
def scope(name: str, rights: tuple[dict[str, object], ...], reason: str, as_json: bool) -> None:
    """Replace all rights of a person; they hold with the next command."""
    body = {"rights": list(rights), "reason": reason}
    with Client(load_profile()) as client:
        path = f"/users/{segment(name)}/rights"
        found = client.send("PUT", path, body, match=client.whole(path).tag)
    show_json(found) if as_json else click.echo(f"{name}: {shown(found['rights'])}")


@users.command()
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def disable(name: str, reason: str, as_json: bool) -> None:
    """Shut a person out at once, with every session and token of their own."""
    _act("disable", name, reason, as_json)


@users.command()
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def enable(name: str, reason: str, as_json: bool) -> None:
    """Let a disabled person log in again."""
    _act("enable", name, reason, as_json)


@users.command()
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def unlock(name: str, reason: str, as_json: bool) -> None:
    """Forget the wrong tries under a person's name."""
    _act("unlock", name, reason, as_json)


@users.command()
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def reset(name: str, reason: str, as_json: bool) -> None:
    """Forget password, authenticator and sessions of a person; print the code to set them up anew, this once."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/users/{segment(name)}/reset", {"reason": reason})
    _show_invited(found, name, as_json)


@users.command("end-sessions")
@click.argument("person")
@reason_option
@json_option
@dry_run_option
def end_sessions(person: str, reason: str, as_json: bool) -> None:
    """End every session of PERSON: a user, or oidc:NAME whom an issuer vouches for."""
    with Client(load_profile()) as client:
        found = client.send("POST", "/sessions/end", {"person": person, "reason": reason})
    show_json(found) if as_json else click.echo(f"{found['ended']} sessions of {person} ended")


def _act(verb: str, name: str, reason: str, as_json: bool) -> None:
    with Client(load_profile()) as client:
        found = client.send("POST", f"/users/{segment(name)}/{verb}", {"reason": reason})
    show_json(found) if as_json else click.echo(f"{name}: {found['state']}")


def _show_invited(found: dict[str, object], name: str, as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    click.echo(found["setup"])
    click.echo(
        f"good until {when(found['expires_at'])}; {name} runs: ringfence login --user {name} --setup",
        err=True,
    )
