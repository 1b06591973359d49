"""`ringfence enrolments`: who wants in, who is expected, and tokens for technicians."""

from __future__ import annotations

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.show import at, json_option, show_json, show_table, when
from controller.cli.watch import watch_option

STATES = ("begun", "proved", "approved", "rejected", "expired")


@click.group(invoke_without_command=True)
@click.option("--state", type=click.Choice(STATES))
@json_option
@click.pass_context
def enrolments(context: click.Context, state: str | None, as_json: bool) -> None:
    """List enrolments; approve, reject, pre-register."""
    if context.invoked_subcommand is not None:
        return
    with Client(load_profile()) as client:
        found = list(client.pages("/enrolments", {"state": state}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ENROLMENT", "NODE", "SITE", "STATE", "TRUST", "TPM", "EK", "SINCE", "NOTE", "TO LET IT IN"),
        [
            (
                e["enrolment"],
                e["node"],
                e["site"],
                e["state"],
                e["ek_trust"],
                e["tpm_kind"],
                str(e["ek_id"])[:16],
                when(e["created_at"]),
                e["note"],
                e["approve_with"],
            )
            for e in found
        ],
    )


@enrolments.command("list")
@click.option("--state", type=click.Choice(STATES))
@watch_option
@json_option
@click.pass_context
def list_(context: click.Context, state: str | None, as_json: bool) -> None:
    """List enrolments."""
    context.invoke(enrolments, state=state, as_json=as_json)


@enrolments.command()
@click.argument("enrolment")
@click.option("--site", help="Where the node named none, or another than it named.")
@click.option(
    "--replace", is_flag=True, help="The node has come with new keys on the same TPM: revoke the old ones."
)
@json_option
@dry_run_option
def approve(enrolment: str, site: str | None, replace: bool, as_json: bool) -> None:
    """Let a node in."""
    body: dict[str, object] = {"replace": replace}
    if site is not None:
        body["site"] = site
    with Client(load_profile()) as client:
        found = client.send("POST", f"/enrolments/{segment(enrolment)}/approve", body)
    show_json(found) if as_json else click.echo(f"approved {found['node']} for {found['site']}")


@enrolments.command()
@click.argument("enrolment")
@click.option("--reason", required=True)
@json_option
@dry_run_option
def reject(enrolment: str, reason: str, as_json: bool) -> None:
    """Turn a node away."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/enrolments/{segment(enrolment)}/reject", {"reason": reason})
    show_json(found) if as_json else click.echo(f"rejected {found['node']}")


@enrolments.command()
@click.argument("ek_id")
@click.option("--site", required=True)
@click.option("--node", "node_", help="Reserve this id for it.")
@json_option
@dry_run_option
def preregister(ek_id: str, site: str, node_: str | None, as_json: bool) -> None:
    """Expect the endorsement key EK_ID (SHA-256 of its SubjectPublicKeyInfo, hex): its node is let in by itself."""
    body: dict[str, object] = {"ek_id": ek_id, "site": site}
    if node_ is not None:
        body["node"] = node_
    with Client(load_profile()) as client:
        found = client.send("POST", "/preregistrations", body)
    show_json(found) if as_json else click.echo(f"{ek_id[:16]} is expected at {site}")


@enrolments.command()
@json_option
def expected(as_json: bool) -> None:
    """List endorsement keys that are expected."""
    with Client(load_profile()) as client:
        found = list(client.pages("/preregistrations"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("EK", "NODE", "SITE", "BY", "USED"),
        [(p["ek_id"], p["node"], p["site"], p["created_by"], when(p["used_at"])) for p in found],
    )


@enrolments.command()
@click.option("--site", required=True)
@click.option("--node", "node_", help="Only for this id.")
@click.option("--hours", type=float, default=24.0, show_default=True)
@json_option
@dry_run_option
def token(site: str, node_: str | None, hours: float, as_json: bool) -> None:
    """Make a one-use token that lets one node in. It is shown this once."""
    body: dict[str, object] = {"site": site, "hours": hours}
    if node_ is not None:
        body["node"] = node_
    with Client(load_profile()) as client:
        found = client.send("POST", "/enrolment-tokens", body)
    if as_json:
        show_json(found)
        return
    click.echo(found["token"])
    click.echo(f"good until {when(at(found['about'], 'expires_at'))}", err=True)
