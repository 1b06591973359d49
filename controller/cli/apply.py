"""`ringfence apply -f DIR`: sites, their policies and baselines, and labels, as files that live in version control.

    [[site]]
    name = "lyon"
    baseline = "factory/3"                  # optional; leave it out where rollouts choose
    policy = { interval_s = 30, reenrol = "same-ek" }

    [[node]]
    name = "press-1"
    labels = { line = "3", area = "hall-b" }

Every *.toml file of the folder is read, and refused whole with file, line and key before anything is changed. What the files do not
name is left alone and told. Exit codes: 0 as the files say, 1 something was refused, 2 what was given cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import click
import msgspec
from msgspec import Meta

from contract.errors import Rejected
from contract.messages import Name
from contract.toml import convert_toml, parse_toml
from controller.cli.client import Client, Refused, segment
from controller.cli.fleet import reason_option
from controller.cli.inputs import Amiss, read_own
from controller.cli.profile import load_profile
from controller.cli.show import at, harmless, json_option, show_json, show_table
from controller.policy import SitePolicy
from controller.records import Strict
from controller.selector import checked_labels

MAX_FILE_BYTES = 1024 * 1024
REFUSED = 1


class SiteWanted(Strict, frozen=True, kw_only=True):
    """A site as it should be."""

    name: Name
    policy: SitePolicy = SitePolicy()
    baseline: Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,63}/[1-9][0-9]{0,15}\Z")] | None = None


class NodeWanted(Strict, frozen=True, kw_only=True):
    """What is said of a node."""

    name: Name
    labels: dict[str, str]


class Wanted(Strict, frozen=True, kw_only=True):
    """One file."""

    site: tuple[SiteWanted, ...] = ()
    node: tuple[NodeWanted, ...] = ()


class Step(NamedTuple):
    """One change: of what, from what to what, and how it is made."""

    target: str
    what: str
    before: str
    after: str
    make: Callable[[Client, str], object]


@click.command(epilog=__doc__)
@click.option(
    "-f",
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    metavar="DIR",
)
@click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")
@reason_option
@json_option
@click.pass_context
def apply(context: click.Context, *, folder: Path, dry_run: bool, reason: str, as_json: bool) -> None:
    """Make sites, policies, baselines and labels as the TOML files of DIR say."""
    wanted = read_folder(folder)
    with Client(load_profile()) as client:
        steps, others = _steps(client, wanted)
        results = [(step, "would change" if dry_run else _made(client, step, reason)) for step in steps]
    refused = any(result not in ("changed", "would change") for _, result in results)
    if as_json:
        told = [
            {"target": s.target, "what": s.what, "before": s.before, "after": s.after, "result": r}
            for s, r in results
        ]
        show_json({"changes": told, "not_in_the_files": others})
    else:
        show_table(
            ("WHAT", "KEY", "BEFORE", "AFTER", "RESULT"),
            [(s.target, s.what, s.before, s.after, result) for s, result in results],
        )
        click.echo(f"{len(results)} changes{', none made' if dry_run and results else ''}")
        if others:
            click.echo(harmless(f"not in the files, left alone: {', '.join(others)}"))
    if refused:
        context.exit(REFUSED)


def read_folder(folder: Path) -> Wanted:
    """Read every *.toml file of a folder. Raises Amiss: none, two that name the same, or one that is wrong."""
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise Amiss(f"{folder}: no *.toml file: an empty folder names nothing")
    found: list[Wanted] = []
    stands_in: dict[str, Path] = {}
    for path in files:
        found.append(_read(path))
        names = [f"site {each.name}" for each in found[-1].site] + [
            f"node {each.name}" for each in found[-1].node
        ]
        for name in names:
            if name in stands_in:
                raise Amiss(f"{path}: {name} stands in {stands_in[name]} too")
            stands_in[name] = path
    return Wanted(
        site=tuple(site for each in found for site in each.site),
        node=tuple(node for each in found for node in each.node),
    )


def _read(path: Path) -> Wanted:
    try:
        data, text = parse_toml(read_own(path, MAX_FILE_BYTES), file=str(path), code="apply")
        found = convert_toml(data, Wanted, text=text, file=str(path), code="apply")
        for node in found.node:
            checked_labels(node.labels)
    except Rejected as rejected:
        raise Amiss(
            rejected.detail if str(path) in rejected.detail else f"{path}: {rejected.detail}"
        ) from None
    return found


def _made(client: Client, step: Step, reason: str) -> str:
    try:
        step.make(client, reason)
    except Refused as refused:
        return f"refused: {refused}"
    return "changed"


def _steps(client: Client, wanted: Wanted) -> tuple[list[Step], list[str]]:
    """Return what differs, and the sites that no file names."""
    sites = {str(each["site"]): each for each in client.pages("/sites")}
    steps: list[Step] = []
    for site in wanted.site:
        steps += _site_steps(site, sites.get(site.name))
    if wanted.node:
        nodes = {str(each["node"]): each for each in client.pages("/nodes")}
        for node in wanted.node:
            steps += _node_steps(node, nodes.get(node.name))
    named = {site.name for site in wanted.site}
    return steps, [f"site {name}" for name in sites if named and name not in named]


def _site_steps(wanted: SiteWanted, there: dict[str, object] | None) -> Iterator[Step]:
    target, policy = f"site {wanted.name}", msgspec.to_builtins(wanted.policy)
    if there is None:
        body = {"site": wanted.name, "policy": policy}
        yield Step(target, "site", "-", "made", lambda client, _: client.send("POST", "/sites", body))
    else:
        now = msgspec.to_builtins(msgspec.convert(there["policy"], SitePolicy))
        changed = [key for key in policy if policy[key] != now[key]]
        if changed:
            yield Step(
                target,
                "policy",
                _keys(now, changed),
                _keys(policy, changed),
                lambda client, reason: client.send(
                    "PUT", f"/sites/{segment(wanted.name)}/policy", {"policy": policy, "reason": reason}
                ),
            )
    here = at(there, "baseline")
    held = "-" if here is None else f"{at(here, 'name')}/{at(here, 'version')}"
    if wanted.baseline is not None and wanted.baseline != held:
        name, _, version = wanted.baseline.partition("/")
        yield Step(
            target,
            "baseline",
            held,
            wanted.baseline,
            lambda client, reason: client.send(
                "PUT",
                f"/sites/{segment(wanted.name)}/baseline",
                {"name": name, "version": int(version), "reason": reason},
            ),
        )


def _node_steps(wanted: NodeWanted, there: dict[str, object] | None) -> Iterator[Step]:
    held = at(there, "labels")
    before = {str(k): str(v) for k, v in held.items()} if isinstance(held, dict) else {}
    if there is not None and before == wanted.labels:
        return
    yield Step(
        f"node {wanted.name}",
        "labels",
        "no such node" if there is None else _keys(before, sorted(before)),
        _keys(wanted.labels, sorted(wanted.labels)),
        lambda client, reason: client.send(
            "PUT", f"/nodes/{segment(wanted.name)}/labels", {"labels": wanted.labels, "reason": reason}
        ),
    )


def _keys(values: dict[str, object] | dict[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={msgspec.json.encode(values[key]).decode()}" for key in keys) or "-"
