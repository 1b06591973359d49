"""`ringfence tokens`: list, new, scope, renew, revoke."""

from __future__ import annotations

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.rights import rights_option, shown
from controller.cli.show import at, items, json_option, show_json, show_table, when

days_option = click.option("--days", type=float, default=90.0, show_default=True, help="How long it is good.")


@click.group()
def tokens() -> None:
    """API tokens: of programs, and of one's own."""


@tokens.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List tokens, without the tokens."""
    with Client(load_profile()) as client:
        found = items(client.get("/tokens")["items"])
    if as_json:
        show_json(found)
        return
    rows = [
        (
            at(t, "name"),
            at(t, "user"),
            shown(at(t, "rights")),
            when(at(t, "created_at")),
            at(t, "created_by"),
            when(at(t, "expires_at")),
            when(at(t, "used_at")),
        )
        for t in found
    ]
    show_table(("NAME", "OF", "RIGHTS", "MADE", "BY", "EXPIRES", "LAST USED"), rows)


@tokens.command("new")
@click.argument("name")
@rights_option
@days_option
@click.option("--own", is_flag=True, help="A token of your own; without it, one of a program.")
@json_option
@dry_run_option
def new_token(
    name: str, rights: tuple[dict[str, object], ...], days: float, own: bool, as_json: bool
) -> None:
    """Make a token. It is shown this once, and can do no more than you."""
    body = {"name": name, "rights": list(rights), "days": days}
    with Client(load_profile()) as client:
        found = client.send("POST", "/me/tokens" if own else "/tokens", body)
    show_json(found) if as_json else click.echo(found["token"])


@tokens.command("scope")
@click.argument("name")
@rights_option
@click.option("--reason", required=True)
@json_option
@dry_run_option
def scope(name: str, rights: tuple[dict[str, object], ...], reason: str, as_json: bool) -> None:
    """Replace all rights of a token."""
    body = {"rights": list(rights), "reason": reason}
    with Client(load_profile()) as client:
        path = f"/tokens/{segment(name)}/rights"
        found = client.send("PUT", path, body, match=client.whole(path).tag)
    show_json(found) if as_json else click.echo(f"{name}: {shown(found['rights'])}")


@tokens.command("renew")
@click.argument("name")
@days_option
@json_option
@dry_run_option
def renew(name: str, days: float, as_json: bool) -> None:
    """Make a new secret for a token: the one before is worthless at once. It is shown this once."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/tokens/{segment(name)}/renew", {"days": days})
    show_json(found) if as_json else click.echo(found["token"])


@tokens.command("revoke")
@click.argument("name")
@json_option
@dry_run_option
def revoke_token(name: str, as_json: bool) -> None:
    """Revoke a token at once. Its name is not given again."""
    with Client(load_profile()) as client:
        client.send("DELETE", f"/tokens/{segment(name)}")
    show_json({"revoked": name}) if as_json else click.echo(f"revoked {name}")
