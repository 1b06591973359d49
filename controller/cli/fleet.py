"""`ringfence status, node, sites, site, incidents, isolate, release, accept-boot`."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from contract.errors import Rejected
from controller.cli.client import Client, dry_run_option, segment
from controller.cli.profile import load_profile
from controller.cli.show import (
    ago,
    at,
    baseline_of,
    items,
    json_option,
    labels_of,
    show_facts,
    show_json,
    show_table,
    tpm_of,
    when,
)
from controller.cli.watch import watch_option

STANDINGS = ("healthy", "overdue", "unreachable", "untrusted", "isolated")
SHOWN_STAGES = ("boot-loader", "kernel", "initrd")
reason_option = click.option("--reason", required=True, help="Why; kept for ever.")


@click.command()
@watch_option
@json_option
def status(as_json: bool) -> None:
    """The fleet in figures."""
    with Client(load_profile()) as client:
        found = client.get("/status")
    if as_json:
        show_json(found)
        return
    nodes = at(found, "fleet", "nodes")
    counts = nodes if isinstance(nodes, dict) else {}
    show_facts(
        {
            "controller": found["controller"],
            **{standing: counts.get(standing, 0) for standing in STANDINGS},
            "connected": at(found, "fleet", "connected"),
            "sites": at(found, "fleet", "sites"),
            "sites isolated": at(found, "fleet", "sites_isolated"),
            "open incidents": at(found, "fleet", "incidents_open"),
            "needing a person": at(found, "fleet", "incidents_needing_a_person"),
            "enrolments waiting": at(found, "fleet", "enrolments_waiting"),
        }
    )


def _baseline(found: dict[str, object]) -> str:
    """What is in force and since when; and what is wanted where that is another."""
    here, wanted = (at(found, "summary", key) for key in ("baseline", "wanted_baseline"))
    text = baseline_of(here)
    if here is not None:
        text += f" since {when(at(found, 'summary', 'baseline_since'))}"
    if baseline_of(here) != baseline_of(wanted):
        text += f" (wanted {baseline_of(wanted)})"
    return text + (", chosen for this node" if at(found, "summary", "own_baseline") else "")


def _boot_facts(found: dict[str, object]) -> dict[str, object]:
    """What the firmware log says of the boot, in short; the API has all of it."""
    lines, claims = found["ima_lines"], found["boot_claims"]
    facts: dict[str, object] = {"IMA": "not wanted" if lines is None else f"{lines} lines agreed"}
    if claims is None:
        return facts
    loaded = [each for each in items(at(claims, "loaded")) if at(each, "stage") in SHOWN_STAGES]
    facts |= {
        "Secure Boot": at(claims, "secure_boot"),
        "firmware": at(claims, "firmware_version"),
        "SBAT level": at(claims, "sbat_level"),
        "kernel command line": at(claims, "kernel_command_line"),
        "lockdown": at(claims, "lockdown"),
        "signed by": items(at(claims, "signers")),
    }
    return facts | {
        f"loaded: {at(each, 'stage')}": f"{at(each, 'name')} {at(each, 'sha256')}" for each in loaded
    }


@click.command()
@click.argument("name")
@watch_option
@json_option
def node(name: str, as_json: bool) -> None:
    """Look at one node."""
    with Client(load_profile()) as client:
        found = client.get(f"/nodes/{segment(name)}")
    if as_json:
        show_json(found)
        return
    now = time.time()
    show_facts(
        {
            "node": at(found, "summary", "node"),
            "site": at(found, "summary", "site"),
            "standing": at(found, "summary", "standing"),
            "since": when(at(found, "summary", "standing_since")),
            "tier": at(found, "summary", "tier"),
            "last report": ago(at(found, "summary", "last_report_at"), now),
            "operating system": found["os_release"] or "not said",
            "posture": f"{at(found, 'summary', 'posture')} (wanted {at(found, 'summary', 'wanted_posture')})",
            "baseline": _baseline(found),
            "labels": labels_of(at(found, "summary", "labels")),
            "EK": f"{found['ek_id']} ({at(found, 'summary', 'ek_trust')})",
            "TPM": tpm_of(at(found, "tpm")),
            "device identity": [
                f"{at(d, 'kind')} {at(d, 'serial')} ({at(d, 'issuer')})"
                for d in items(at(found, "tpm", "devids"))
            ],
            "noted of the TPM": items(at(found, "tpm", "notes")),
            "certificate until": when(found["certificate_not_after"]),
            "addresses": found["addresses"],
            "fences": found["fenced"],
            "boot to accept": found["boot_candidate"],
            "approved": f"{when(found['approved_at'])} by {found['approved_by']}",
            **_boot_facts(found),
        }
    )
    if items(found["findings"]):
        elsewhere = items(found["findings_elsewhere"])
        show_table(
            ("FINDING", "OTHERS", "DETAIL"),
            [
                (at(f, "code"), _others(others), at(f, "detail"))
                for f, others in zip(items(found["findings"]), elsewhere, strict=True)
            ],
        )
    if items(found["drifts"]):
        rows = [
            (at(d, "section"), at(d, "key"), at(d, "wanted"), at(d, "found"), at(d, "culprit"))
            for d in items(found["drifts"])
        ]
        show_table(("SECTION", "KEY", "WANTED", "FOUND", "BY"), rows)
    _show_holds(items(found["holds"]))


@click.command()
@watch_option
@json_option
def sites(as_json: bool) -> None:
    """List sites."""
    with Client(load_profile()) as client:
        found = list(client.pages("/sites"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("SITE", *(standing.upper() for standing in STANDINGS), "BASELINE", "ISOLATED"),
        [
            (
                s["site"],
                *(at(s["nodes"], standing) or 0 for standing in STANDINGS),
                baseline_of(s["baseline"]),
                at(s["hold"], "reason") if s["hold"] else "no",
            )
            for s in found
        ],
    )


@click.group()
def site() -> None:
    """One site: make it, set its policy."""


@site.command()
@click.argument("name")
@click.option("--policy", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TOML file.")
@json_option
@dry_run_option
def create(name: str, policy: Path | None, as_json: bool) -> None:
    """Make a site. Without --policy it gets the strict defaults."""
    body: dict[str, object] = {"site": name}
    if policy is not None:
        body["policy"] = _policy(policy)
    with Client(load_profile()) as client:
        found = client.send("POST", "/sites", body)
    show_json(found) if as_json else click.echo(f"site {name} made")


@site.command("policy")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@reason_option
@json_option
@dry_run_option
def set_policy(name: str, file: Path, reason: str, as_json: bool) -> None:
    """Replace the policy of a site by the one in FILE (TOML)."""
    body = {"policy": _policy(file), "reason": reason}
    with Client(load_profile()) as client:
        path = f"/sites/{segment(name)}/policy"
        found = client.send("PUT", path, body, match=client.whole(path).tag)
    show_json(found) if as_json else click.echo(f"policy of {name} replaced")


@click.command()
@click.option("--node", "node_", help="This node.")
@click.option("--site", "site_", help="Every node of this site.")
@reason_option
@json_option
@dry_run_option
def isolate(node_: str | None, site_: str | None, reason: str, as_json: bool) -> None:
    """Isolate a node or a site: only the controller stays reachable."""
    _act("isolate", node_, site_, reason, as_json)


@click.command()
@click.option("--node", "node_", help="This node.")
@click.option("--site", "site_", help="This site.")
@reason_option
@json_option
@dry_run_option
def release(node_: str | None, site_: str | None, reason: str, as_json: bool) -> None:
    """Release a node or a site."""
    _act("release", node_, site_, reason, as_json)


@click.command("accept-boot")
@click.argument("name")
@reason_option
@json_option
@dry_run_option
def accept_boot(name: str, reason: str, as_json: bool) -> None:
    """Take the boot that node NAME showed last as the one to hold it to."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/nodes/{segment(name)}/accept-boot", {"reason": reason})
    show_json(found) if as_json else click.echo(f"boot of {name} accepted; it is asked to report")


@click.command()
@click.argument("number", type=click.IntRange(1), required=False)
@click.option("--state", type=click.Choice(("open", "needs-person", "resolved", "closed")))
@click.option("--site", help="Only of this site.")
@click.option("--close", "close_reason", help="Close incident NUMBER, with this reason.")
@watch_option
@json_option
@dry_run_option
def incidents(
    number: int | None, state: str | None, site: str | None, close_reason: str | None, as_json: bool
) -> None:
    """List incidents, or look at NUMBER."""
    if close_reason is not None and click.get_current_context().params.get("watch"):
        raise click.UsageError("--watch looks and --close acts: one of them")
    if number is None:
        if close_reason is not None:
            raise click.UsageError("--close needs the NUMBER of one incident")
        _list_incidents(state, site, as_json)
        return
    with Client(load_profile()) as client:
        if close_reason is None:
            found = client.get(f"/incidents/{number}")
        else:
            found = client.send("POST", f"/incidents/{number}/close", {"reason": close_reason})
    if as_json:
        show_json(found)
        return
    keys = ("id", "title", "severity", "state", "kind", "site", "nodes_total", "nodes")
    show_facts({**{key: found[key] for key in keys}, "opened": when(found["opened_at"])})
    counts = [count or "-" for count in items(found["findings_nodes"])]
    rows = [
        (at(f, "code"), count, at(f, "detail"))
        for f, count in zip(items(found["findings"]), counts, strict=True)
    ]
    show_table(("FINDING", "NODES", "DETAIL"), rows)
    show_table(("DONE",), [(done,) for done in items(found["done"])])


def _others(count: object) -> str:
    """Say how many other nodes show the same, which most likely tells an update from an attack."""
    if not isinstance(count, int) or count < 1:
        return "none"
    return f"{count} other node{'s report' if count > 1 else ' reports'} the same"


def _list_incidents(state: str | None, site: str | None, as_json: bool) -> None:
    with Client(load_profile()) as client:
        found = list(client.pages("/incidents", {"state": state, "site": site}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "OPENED", "SEVERITY", "STATE", "SITE", "NODES", "TITLE"),
        [
            (
                i["id"],
                when(i["opened_at"]),
                i["severity"],
                i["state"],
                i["site"],
                i["nodes_total"],
                i["title"],
            )
            for i in found
        ],
    )


def _act(act: str, node_: str | None, site_: str | None, reason: str, as_json: bool) -> None:
    """Isolate or release exactly one named thing: nothing named never means everything (c16)."""
    if (node_ is None) == (site_ is None):
        raise click.UsageError("name exactly one of --node and --site")
    path = f"/nodes/{segment(node_)}" if node_ is not None else f"/sites/{segment(site_ or '')}"
    with Client(load_profile()) as client:
        found = client.send("POST", f"{path}/{act}", {"reason": reason})
    if as_json:
        show_json(found)
        return
    affected = items(found["affected"])
    click.echo(f"{act}d {node_ or site_}: {len(affected)} nodes told")


def _show_holds(holds: list[object]) -> None:
    if holds:
        show_table(
            ("SINCE", "WHAT", "BY", "REASON", "RELEASED"),
            [
                (
                    when(at(h, "placed_at")),
                    "fenced" if at(h, "fence_only") else "isolated",
                    at(h, "actor"),
                    at(h, "reason"),
                    when(at(h, "released_at")),
                )
                for h in holds
            ],
        )


def _policy(file: Path) -> object:
    try:
        return msgspec.toml.decode(file.read_bytes())
    except (msgspec.DecodeError, ValueError, OSError) as error:
        raise Rejected("policy.syntax", f"{file}: {error}") from None
