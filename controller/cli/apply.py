"""`ringfence apply -f DIR`: sites, policies, baselines, labels, rights and response rules as files in version control.

    [[site]]
    name = "lyon"
    baseline = "factory/3"                  # optional; leave it out where rollouts choose
    policy = { interval_s = 30, reenrol = "same-ek" }

    [[node]]
    name = "press-1"
    labels = { line = "3", area = "hall-b" }

    [[person]]                              # who is there already: ringfence users new
    name = "jordan"
    rights = ["operator@lyon,paris", "viewer@all"]

    [[token]]                               # of a program: ringfence tokens new
    name = "backup"
    rights = ["auditor@all"]

A file called responses.toml holds the response rules, whole. Every *.toml file of the folder is read, and refused whole with file,
line and key before anything is changed. What the files do not name is left alone, and sites among it are told. Exit codes: 0 as the files say, 1 something was refused, 2 what was given cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import click
import msgspec
from msgspec import Meta

from contract.errors import Rejected
from contract.messages import Name
from contract.toml import convert_toml, parse_toml
from controller.cli.client import Client, Refused, Seen, segment
from controller.cli.fleet import reason_option
from controller.cli.inputs import Amiss, read_own
from controller.cli.profile import load_profile
from controller.cli.rights import read_right, shown
from controller.cli.show import at, harmless, items, json_option, show_json, show_table
from controller.permissions import Rights
from controller.policy import SitePolicy
from controller.records import Strict
from controller.response import MAX_RULES_BYTES, parse_responses
from controller.selector import checked_labels

MAX_FILE_BYTES = 1024 * 1024
RESPONSES = "responses.toml"
"""The file whose whole text is the document of the response rules."""
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


class RightsWanted(Strict, frozen=True, kw_only=True):
    """All rights of a person or a token, as people write them."""

    name: Name
    rights: Annotated[tuple[str, ...], Meta(min_length=1)]


class Wanted(Strict, frozen=True, kw_only=True):
    """One file."""

    site: tuple[SiteWanted, ...] = ()
    node: tuple[NodeWanted, ...] = ()
    person: tuple[RightsWanted, ...] = ()
    token: tuple[RightsWanted, ...] = ()

    def named(self) -> list[str]:
        """What it speaks of, each as `site NAME`."""
        return [f"{kind} {each.name}" for kind in self.__struct_fields__ for each in getattr(self, kind)]


class Folder(NamedTuple):
    """All files together; `responses` None where there is no such file."""

    wanted: Wanted
    responses: str | None


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
    """Make sites, policies, baselines, labels, rights and response rules as the TOML files of DIR say."""
    files = read_folder(folder)
    with Client(load_profile()) as client:
        steps, others = _steps(client, files)
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


def read_folder(folder: Path) -> Folder:
    """Read every *.toml file of a folder. Raises Amiss: none, two that name the same, or one that is wrong."""
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise Amiss(f"{folder}: no *.toml file: an empty folder names nothing")
    found: list[Wanted] = []
    stands_in: dict[str, Path] = {}
    responses: str | None = None
    for path in files:
        if path.name == RESPONSES:
            responses = _read_responses(path)
            continue
        found.append(_read(path))
        for name in found[-1].named():
            if name in stands_in:
                raise Amiss(f"{path}: {name} stands in {stands_in[name]} too")
            stands_in[name] = path
    joined = {
        kind: tuple(each for one in found for each in getattr(one, kind)) for kind in Wanted.__struct_fields__
    }
    return Folder(Wanted(**joined), responses)


def _read(path: Path) -> Wanted:
    try:
        data, text = parse_toml(read_own(path, MAX_FILE_BYTES), file=str(path), code="apply")
        found = convert_toml(data, Wanted, text=text, file=str(path), code="apply")
        for node in found.node:
            checked_labels(node.labels)
        for each in (*found.person, *found.token):
            _rights(each)
    except Rejected as rejected:
        raise Amiss(
            rejected.detail if str(path) in rejected.detail else f"{path}: {rejected.detail}"
        ) from None
    except (ValueError, msgspec.ValidationError) as error:
        raise Amiss(f"{path}: {error}") from None
    return found


def _read_responses(path: Path) -> str:
    content = read_own(path, MAX_RULES_BYTES)
    try:
        parse_responses(content, file=str(path))
    except Rejected as rejected:
        raise Amiss(rejected.detail) from None
    return content.decode()


def _rights(wanted: RightsWanted) -> list[dict[str, object]]:
    """Return the rights as the API takes them. Raises ValueError, which names whose they are."""
    try:
        rights = [read_right(text) for text in wanted.rights]
        msgspec.convert(rights, Rights)
    except ValueError as error:
        raise ValueError(f"rights of {wanted.name}: {error}") from None
    return rights


def _made(client: Client, step: Step, reason: str) -> str:
    try:
        step.make(client, reason)
    except Refused as refused:
        return f"refused: {refused}"
    return "changed"


def _steps(client: Client, files: Folder) -> tuple[list[Step], list[str]]:
    """Return what differs, and the sites that no file names."""
    wanted = files.wanted
    sites = {str(each["site"]): each for each in client.pages("/sites")}
    steps: list[Step] = []
    for site in wanted.site:
        steps += _site_steps(client, site, sites.get(site.name))
    if wanted.node:
        nodes = {str(each["node"]): each for each in client.pages("/nodes")}
        for node in wanted.node:
            steps += _node_steps(client, node, nodes.get(node.name))
    if files.responses is not None:
        steps += _responses_steps(client.get("/responses"), files.responses)
    if wanted.person:
        steps += _rights_steps(client, "person", wanted.person)
    if wanted.token:
        steps += _rights_steps(client, "token", wanted.token)
    named = {site.name for site in wanted.site}
    return steps, [f"site {name}" for name in sites if named and name not in named]


def _site_steps(client: Client, wanted: SiteWanted, there: dict[str, object] | None) -> Iterator[Step]:
    target, policy = f"site {wanted.name}", msgspec.to_builtins(wanted.policy)
    if there is None:
        body = {"site": wanted.name, "policy": policy}
        yield Step(target, "site", "-", "made", lambda client, _: client.send("POST", "/sites", body))
    else:
        now = msgspec.to_builtins(msgspec.convert(there["policy"], SitePolicy))
        changed = [key for key in policy if policy[key] != now[key]]
        if changed:
            path = f"/sites/{segment(wanted.name)}/policy"
            seen = client.whole(path)
            now = msgspec.to_builtins(msgspec.convert(seen.value["policy"], SitePolicy))
            yield Step(
                target,
                "policy",
                _keys(now, changed),
                _keys(policy, changed),
                lambda client, reason: client.send(
                    "PUT", path, {"policy": policy, "reason": reason}, match=seen.tag
                ),
            )
    yield from _baseline_steps(client, wanted, there)


def _baseline_steps(client: Client, wanted: SiteWanted, there: dict[str, object] | None) -> Iterator[Step]:
    here = at(there, "baseline")
    held = "-" if here is None else f"{at(here, 'name')}/{at(here, 'version')}"
    if wanted.baseline is not None and wanted.baseline != held:
        name, _, version = wanted.baseline.partition("/")
        path = f"/sites/{segment(wanted.name)}/baseline"
        tag = client.whole(path).tag if there is not None else ""
        body = {"name": name, "version": int(version)}
        yield Step(
            f"site {wanted.name}",
            "baseline",
            held,
            wanted.baseline,
            lambda client, reason: client.send("PUT", path, {**body, "reason": reason}, match=tag),
        )


def _node_steps(client: Client, wanted: NodeWanted, there: dict[str, object] | None) -> Iterator[Step]:
    path, tag, held = f"/nodes/{segment(wanted.name)}/labels", "*", at(there, "labels")
    if there is not None and held != wanted.labels:
        seen = client.whole(path)
        held, tag = seen.value["labels"], seen.tag
    before = {str(k): str(v) for k, v in held.items()} if isinstance(held, dict) else {}
    if there is not None and before == wanted.labels:
        return
    yield Step(
        f"node {wanted.name}",
        "labels",
        "no such node" if there is None else _keys(before, sorted(before)),
        _keys(wanted.labels, sorted(wanted.labels)),
        lambda client, reason: client.send(
            "PUT", path, {"labels": wanted.labels, "reason": reason}, match=tag
        ),
    )


def _responses_steps(there: Mapping[str, object], document: str) -> Iterator[Step]:
    if there["document"] == document:
        return
    version = there["version"]
    yield Step(
        "responses",
        "rules",
        f"version {version}",
        f"{document.count('[[rule]]')} rules",
        lambda client, reason: client.send(
            "PUT", "/responses", {"document": document, "replaces": version, "reason": reason}
        ),
    )


def _rights_steps(client: Client, kind: str, wanted: Sequence[RightsWanted]) -> Iterator[Step]:
    among = {"person": "/users", "token": "/tokens"}[kind]
    known = {str(at(each, "name")) for each in items(client.get(among)["items"])}
    for each in wanted:
        path = f"{among}/{segment(each.name)}/rights"
        seen = client.whole(path) if each.name in known else Seen({}, "*")
        rights, before = _rights(each), seen.value.get("rights")
        if before is not None and msgspec.convert(before, Rights) == msgspec.convert(rights, Rights):
            continue
        yield Step(
            f"{kind} {each.name}",
            "rights",
            f"no such {kind}" if before is None else shown(before),
            shown(rights),
            lambda client, reason, path=path, tag=seen.tag, rights=rights: client.send(  # type: ignore[misc]
                "PUT", path, {"rights": rights, "reason": reason}, match=tag
            ),
        )


def _keys(values: dict[str, object] | dict[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={msgspec.json.encode(values[key]).decode()}" for key in keys) or "-"
