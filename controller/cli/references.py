"""`ringfence reference`: what is expected at a site, announced before it comes or accepted after it came.

Digests are computed here from the files themselves: of an image both what firmware extends (Authenticode) and what GRUB
extends (the plain file); of dbx and the SBAT level what is extended for the variable. CoRIM and TOML are read and written here too; the controller takes and checks the same sets
whatever they came from.
"""

from __future__ import annotations

import hashlib
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import msgspec

from contract.authenticode import MAX_IMAGE_BYTES, authenticode_sha256, is_image
from contract.bootpolicy import REVOCATION
from contract.corim import encode_corim, parse_corim
from contract.errors import Rejected
from contract.imapolicy import toml_lines
from contract.references import (
    MAX_IMPORT_BYTES,
    ExpectedStage,
    ReferenceSet,
    parse_reference_toml,
    reference_toml,
)
from contract.revocations import MAX_VARIABLE_BYTES, variable_sha256
from controller.cli.client import Client, dry_run_option
from controller.cli.each import fail_where_refused, refusal
from controller.cli.packagefiles import files_of
from controller.cli.profile import load_profile
from controller.cli.show import at, harmless, items, json_option, show_json, show_table, when

STAGES = get_args(ExpectedStage)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_HEX = frozenset("0123456789abcdef")
reason_option = click.option("--reason", required=True, help="Why; kept for ever.")


@click.group()
def reference() -> None:
    """Reference values: expect an update before it comes, accept one after."""


class Moment(click.ParamType[float]):
    """A time: `now`, or ISO 8601, by this machine's clock zone where it names none."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds since 1970."""
        if isinstance(value, float):
            return value
        if value == "now":
            return float(math.floor(time.time()))
        try:
            return datetime.fromisoformat(str(value)).astimezone(UTC).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r}: wanted 'now' or a time such as 2026-11-23T22:00", param, ctx)


def digests_of(path: Path, stage: ExpectedStage) -> list[str]:
    """Return what may be extended for a file: the Authenticode digest of an image first, and that of the plain file; for a
    revocation list that of the variable whose file in efivarfs this is, or a copy under its name.

    Raises Rejected `image.*`, `variable.*`, OSError.
    """
    if stage == REVOCATION:
        with path.open("rb") as file:
            return [variable_sha256(path.name, file.read(MAX_VARIABLE_BYTES + 1)).hex()]
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise Rejected("image.too-large", f"{path}: more than {MAX_IMAGE_BYTES} bytes")
    content = path.read_bytes()
    plain = hashlib.sha256(content).hexdigest()
    return [authenticode_sha256(content).hex(), plain] if is_image(content) else [plain]


def _checked_digest(text: str) -> str:
    if len(text) != 64 or not _HEX.issuperset(text):
        raise click.UsageError(f"{text!r}: wanted 64 hexadecimal digits in lower case")
    return text


@reference.command()
@click.option("--site", required=True, help="Where it is expected.")
@click.option("--stage", type=click.Choice(STAGES), required=True, help="What it is.")
@click.option("--sha256", "digests", multiple=True, help="A digest as it is extended; may be given again.")
@click.option("--from-file", "files", type=FILE, multiple=True, help="Compute the digests of this file.")
@click.option("--from", "valid_from", type=Moment(), required=True, help="'now' or 2026-11-23T22:00.")
@click.option("--until", "valid_until", type=Moment(), help="Default: no end.")
@click.option("--supersedes", multiple=True, help="A digest that is not good any more once it was left.")
@click.option(
    "--hardware-class", default="", help="Only nodes whose accepted boot has this firmware version."
)
@click.option(
    "--os-release", default="", help="Only nodes that say they run this then, as `ringfence node` shows it."
)
@click.option("--note", default="", help="For people.")
@reason_option
@json_option
def announce(
    *,
    site: str,
    stage: ExpectedStage,
    digests: tuple[str, ...],
    files: tuple[Path, ...],
    valid_from: float,
    valid_until: float | None,
    supersedes: tuple[str, ...],
    hardware_class: str,
    os_release: str,
    note: str,
    reason: str,
    as_json: bool,
) -> None:
    """Expect a new boot loader, kernel, initrd or revocation list at a site from a time on. Announce each stage that
    changes."""
    values = [_checked_digest(digest) for digest in digests]
    for file in files:
        values += digests_of(file, stage)
    if not values:
        raise click.UsageError("name what is expected: --sha256 or --from-file")
    content = {
        "site": site,
        "values": {stage: list(dict.fromkeys(values))},
        "valid_from": valid_from,
        "valid_until": valid_until,
        "hardware_class": hardware_class,
        "os_release": os_release,
        "note": note,
        "supersedes": [_checked_digest(digest) for digest in supersedes],
    }
    _send([_converted(content)], reason, as_json)


def _converted(content: object) -> ReferenceSet:
    try:
        return msgspec.convert(content, ReferenceSet, strict=True)
    except msgspec.ValidationError as error:
        raise Rejected("reference.invalid", str(error)) from None


def _send(sets: list[ReferenceSet], reason: str, as_json: bool) -> None:
    with Client(load_profile()) as client:
        found = client.send(
            "POST", "/references", {"references": msgspec.to_builtins(sets), "reason": reason}
        )
    if as_json:
        show_json(found)
        return
    for each in items(found["items"]):
        made = at(each, "done")
        if made is None:
            click.echo(harmless(f"set {at(each, 'item')} refused: {refusal(each)}"), err=True)
            continue
        where, since = at(made, "reference", "site"), when(at(made, "reference", "valid_from"))
        click.echo(f"reference {at(made, 'id')}: expected at {where} from {since}")
    fail_where_refused(found)


@reference.command("list")
@click.option("--site", help="Only of this site.")
@click.option("--all", "all_", is_flag=True, help="Withdrawn ones too.")
@json_option
def list_references(site: str | None, all_: bool, as_json: bool) -> None:
    """List what is announced, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages("/references", {"site": site, "all": all_}))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "SITE", "FROM", "UNTIL", "BY", "WITHDRAWN", "VALUES", "REASON"),
        [
            (
                r["id"],
                at(r, "reference", "site"),
                when(at(r, "reference", "valid_from")),
                when(at(r, "reference", "valid_until")),
                r["created_by"],
                when(r["withdrawn_at"]),
                _values(at(r, "reference", "values")),
                r["reason"],
            )
            for r in found
        ],
    )


@reference.command("package")
@click.argument("files", type=FILE, nargs=-1, required=True)
def of_packages(files: tuple[Path, ...]) -> None:
    """Write what debs and rpms will put on nodes, as `[[ima.package]]` for a baseline: announce an upgrade before it comes.

    Needs no controller. It does not check a package's signature: take the file from where the nodes take it."""
    for package in map(files_of, files):
        click.echo("\n".join(["", *toml_lines(package)]))


def _values(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    return "; ".join(
        f"{stage} {', '.join(str(d)[:16] + '…' for d in items(v))}" for stage, v in value.items()
    )


@reference.command()
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@dry_run_option
def withdraw(number: int, reason: str, as_json: bool) -> None:
    """Expect set NUMBER no more. What was accepted by it stays accepted."""
    with Client(load_profile()) as client:
        found = client.send("POST", f"/references/{number}/withdraw", {"reason": reason})
    show_json(found) if as_json else click.echo(f"reference {number} withdrawn")


@reference.command("import")
@click.argument("file", type=FILE)
@click.option("--site", default="", help="For a CoRIM that names none.")
@click.option("--stage", type=click.Choice(STAGES), help="For a CoRIM whose measurements name none.")
@click.option("--from", "valid_from", type=Moment(), help="For a CoRIM that names no time.")
@reason_option
@json_option
def import_(
    file: Path, *, site: str, stage: str | None, valid_from: float | None, reason: str, as_json: bool
) -> None:
    """Announce every set of FILE: TOML (`*.toml`), or an unsigned CoRIM."""
    if file.stat().st_size > MAX_IMPORT_BYTES:
        raise Rejected("reference.too-large", f"{file}: more than {MAX_IMPORT_BYTES} bytes")
    content = file.read_bytes()
    if file.suffix == ".toml":
        sets = parse_reference_toml(content, file=file.name)
    else:
        sets = parse_corim(content, site=site, stage=stage or "", valid_from=valid_from)
    _send(sets, reason, as_json)


@reference.command()
@click.option("--site", help="Only of this site.")
@click.option("--format", "kind", type=click.Choice(("toml", "corim")), default="toml", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: stdout.")
def export(site: str | None, kind: str, out: Path | None) -> None:
    """Write what is announced, as TOML or as CoRIM (CBOR)."""
    with Client(load_profile()) as client:
        found = list(client.pages("/references", {"site": site}))
    sets = [_converted(r["reference"]) for r in reversed(found)]
    content = encode_corim(sets) if kind == "corim" else reference_toml(sets).encode()
    if out is None:
        click.echo(content, nl=False)
    else:
        out.write_bytes(content)
        click.echo(f"{len(sets)} sets written to {out}")


@reference.command()
@click.argument("incident", type=click.IntRange(1))
@click.option("--own-values", is_flag=True, help="Also nodes that show a value which no other node shows.")
@reason_option
@json_option
@dry_run_option
def accept(incident: int, own_values: bool, reason: str, as_json: bool) -> None:
    """Accept the changed boots of all nodes of INCIDENT, and expect the same at their sites for 30 days."""
    body = {"reason": reason, "own_values": own_values}
    with Client(load_profile()) as client:
        found = client.send("POST", f"/incidents/{incident}/accept", body)
    if as_json:
        show_json(found)
        return
    click.echo(f"{len(items(found['affected']))} boots accepted; their nodes are asked to report")
    left = found["left"]
    if isinstance(left, dict) and left:
        show_table(("LEFT AS IT IS", "WHY"), left.items())
