"""`ringfence grant`: time-boxed access for a named person. `ringfence breakglass`: one-use codes for a node's console."""

from __future__ import annotations

import re
import time
from typing import Literal

import click

from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.references import Moment
from controller.cli.show import at, items, json_option, show_facts, show_json, show_table, when

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
reason_option = click.option("--reason", required=True, help="Why; kept for ever.")


class Length(click.ParamType[float]):
    """A length of time: 90s, 30m, 4h, 2d."""

    name = "length"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,6})([smhd])", str(value))
        if found is None or not int(found[1]):
            self.fail(f"{value!r}: wanted a number and s, m, h or d, such as 4h", param, ctx)
        return float(int(found[1]) * _UNITS[found[2]])


def opening(text: str, direction: Literal["in", "out"]) -> dict[str, object]:
    """Return what `tcp/22,443@198.51.100.7,2001:db8::/64` says. Raises UsageError."""
    found = re.fullmatch(r"(tcp|udp)/([0-9]+(?:,[0-9]+)*)@([^@]+)", text)
    if found is None:
        raise click.UsageError(f"{text!r}: wanted tcp/PORTS@ADDRESSES, such as tcp/22@198.51.100.7")
    ports = [int(port) for port in found[2].split(",")]
    return {"direction": direction, "protocol": found[1], "ports": ports, "peers": found[3].split(",")}


@click.group()
def grant() -> None:
    """Time-boxed access for a named person: ask, approve, look, revoke."""


@grant.command()
@click.argument("node")
@click.option("--who", required=True, help="The person who comes.")
@click.option("--company", required=True)
@click.option("--evidence", required=True, help="Why this person may: contract or training reference.")
@click.option("--in", "inbound", multiple=True, metavar="tcp/PORTS@ADDRESSES", help="May reach the node.")
@click.option("--out", "outbound", multiple=True, metavar="tcp/PORTS@ADDRESSES", help="The node may reach.")
@click.option("--usb", multiple=True, metavar="VENDOR:PRODUCT", help="As lsusb prints it.")
@click.option("--account", "accounts", multiple=True, help="A user on the node.")
@click.option("--door", "doors", multiple=True, help="A physical door: recorded, opened by people.")
@click.option("--from", "starts", type=Moment(), help="'now' or 2026-11-23T22:00. Default: now.")
@click.option("--until", "ends", type=Moment(), help="Until when.")
@click.option("--for", "length_s", type=Length(), help="Or for how long: 90s, 30m, 4h, 2d.")
@reason_option
@json_option
@dry_run_option
def request(
    *,
    node: str,
    who: str,
    company: str,
    evidence: str,
    inbound: tuple[str, ...],
    outbound: tuple[str, ...],
    usb: tuple[str, ...],
    accounts: tuple[str, ...],
    doors: tuple[str, ...],
    starts: float | None,
    ends: float | None,
    length_s: float | None,
    reason: str,
    as_json: bool,
) -> None:
    """Ask for access to NODE. Opens nothing until somebody approves it; the node's signed baseline bounds it."""
    if (ends is None) == (length_s is None):
        raise click.UsageError("say until when: --until or --for")
    openings = [opening(each, "in") for each in inbound] + [opening(each, "out") for each in outbound]
    access = {"openings": openings, "usb": list(usb), "accounts": list(accounts), "doors": list(doors)}
    if not any(access.values()):
        raise click.UsageError("name what is to be opened: --in, --out, --usb, --account or --door")
    begin = time.time() if starts is None else starts
    body = {
        "node": node,
        "who": who,
        "company": company,
        "evidence": evidence,
        "access": access,
        "starts": starts,
        "ends": begin + length_s if length_s is not None else ends,
        "reason": reason,
    }
    with Client(load_profile()) as client:
        found = client.send("POST", "/grants", body)
    show_json(found) if as_json else click.echo(
        f"grant {found['id']} for {found['node']} until {when(found['ends'])}: somebody must approve it"
    )


@grant.command()
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@dry_run_option
def approve(number: int, reason: str, as_json: bool) -> None:
    """Let grant NUMBER open at its time."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/grants/{number}/approve", {"reason": reason})
    show_json(found) if as_json else click.echo(
        f"grant {number} approved; {at(found, 'grant', 'node')} is told"
    )


@grant.command()
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@dry_run_option
def revoke(number: int, reason: str, as_json: bool) -> None:
    """End grant NUMBER now, or turn the request down."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/grants/{number}/revoke", {"reason": reason})
    show_json(found) if as_json else click.echo(
        f"grant {number} revoked; {at(found, 'grant', 'node')} is told"
    )


@grant.command("list")
@click.option("--node", help="Only of this node.")
@click.option("--site", help="Only of this site.")
@click.option("--all", "all_", is_flag=True, help="Those that are over too.")
@json_option
def list_(node: str | None, site: str | None, all_: bool, as_json: bool) -> None:
    """List grants, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages("/grants", {"node": node, "site": site, "all": all_}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "NODE", "STATE", "WHO", "COMPANY", "FROM", "UNTIL", "ASKED", "APPROVED", "WHAT"),
        [
            (
                g["id"],
                g["node"],
                g["state"],
                at(g, "content", "who"),
                at(g, "content", "company"),
                when(g["starts"]),
                when(g["ends"]),
                g["requested_by"],
                g["approved_by"],
                "; ".join(_what(at(g, "content", "access"))),
            )
            for g in found
        ],
    )


@grant.command()
@click.argument("number", type=click.IntRange(1))
@json_option
@dry_run_option
def show(number: int, as_json: bool) -> None:
    """Look at grant NUMBER: who, what, and what the node told of its use."""
    with Client(load_profile()) as client:
        found = client.get(f"/grants/{number}")
    if as_json:
        show_json(found)
        return
    show_facts(
        {
            "grant": f"{found['id']} ({found['state']})",
            "node": f"{found['node']} at {found['site']}",
            "who": f"{at(found, 'content', 'who')} of {at(found, 'content', 'company')}",
            "evidence": at(found, "content", "evidence"),
            "what": _what(at(found, "content", "access")),
            "reason": at(found, "content", "reason"),
            "from": when(found["starts"]),
            "until": when(found["ends"]),
            "asked for": f"{when(found['requested_at'])} by {found['requested_by']}",
            "approved": _act(found, "approved"),
            "revoked": _act(found, "revoked"),
            "refused by the node": at(found, "use", "refused"),
            "opened": when(at(found, "use", "opened_at")),
            "first used": when(at(found, "use", "used_at")),
            "used by": items(at(found, "use", "sources")),
            "bytes": at(found, "use", "bytes_carried"),
            "closed": f"{when(at(found, 'use', 'closed_at'))} {at(found, 'use', 'closed_why')}",
        }
    )


def _act(found: dict[str, object], act: str) -> str:
    who = found[f"{act}_by"]
    return "-" if who is None else f"{when(found[f'{act}_at'])} by {who}"


def _what(access: object) -> list[str]:
    out = []
    for each in items(at(access, "openings")):
        ports = ",".join(str(port) for port in items(at(each, "ports")))
        peers = ",".join(str(peer) for peer in items(at(each, "peers")))
        out.append(f"{at(each, 'direction')} {at(each, 'protocol')}/{ports}@{peers}")
    for key, name in (("usb", "USB"), ("accounts", "account"), ("doors", "door")):
        out += [f"{name} {each}" for each in items(at(access, key))]
    return out


@click.group()
def breakglass() -> None:
    """One-use codes for a node's console: they work without the controller, within its signed baseline."""


@breakglass.command()
@click.argument("node")
@click.option("--count", type=click.IntRange(1, 16), default=5, show_default=True)
@reason_option
@json_option
@dry_run_option
def issue(node: str, count: int, reason: str, as_json: bool) -> None:
    """Make codes for NODE and print them, this once. Keep them where the node is, under lock and key."""
    with Client(load_profile()) as client:
        path = f"/nodes/{segment(node)}/break-glass"
        found = client.send("POST", path, {"count": count, "reason": reason})
    if as_json:
        show_json(found)
        return
    show_table(("ID", "CODE"), [(at(each, "id"), at(each, "code")) for each in items(found["items"])])
    click.echo(f"good for {node} once it has its next directive; nobody can show them again", err=True)


@breakglass.command("list")
@click.argument("node")
@json_option
def list_codes(node: str, as_json: bool) -> None:
    """List NODE's codes: who made them, and which were used."""
    with Client(load_profile()) as client:
        found = client.get(f"/nodes/{segment(node)}/break-glass")
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "MADE", "BY", "USED", "REVOKED"),
        [
            (
                at(c, "id"),
                when(at(c, "created_at")),
                at(c, "created_by"),
                when(at(c, "used_at")),
                when(at(c, "revoked_at")),
            )
            for c in items(found["items"])
        ],
    )


@breakglass.command("revoke")
@click.argument("node")
@click.argument("code", type=click.IntRange(1))
@reason_option
@json_option
@dry_run_option
def revoke_code(node: str, code: int, reason: str, as_json: bool) -> None:
    """Make code number CODE of NODE useless, and end what it opened."""
    with Client(load_profile()) as client:
        path = f"/nodes/{segment(node)}/break-glass/{code}/revoke"
        found = client.send("POST", path, {"reason": reason})
    show_json(found) if as_json else click.echo(f"code {code} of {node} is revoked")
