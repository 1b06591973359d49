"""`ringfence audit`: what was done, by whom and why; exported, and verified without a controller.

Exit codes of `verify` and `verify-proof`: 0 verified, 1 rejected, 2 what was given cannot be used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import click
import msgspec

from contract.audittrail import MAX_LINE_BYTES, MAX_PROOF_BYTES, verify_proof, verify_trail
from contract.checkpoint import MAX_NOTE_BYTES, LogKey, parse_log_key
from contract.errors import Rejected
from controller.cli.client import Client
from controller.cli.inputs import Amiss, read_evidence, read_own
from controller.cli.profile import load_profile
from controller.cli.show import at, items, json_option, show_facts, show_json, show_table, when

REJECTED = 1
PAGE = 500
MAX_KEY_BYTES = 1024
FILE = click.Path(path_type=Path, dir_okay=False)
KEY_HELP = "File with the log's public key, had by another way than the export (`ringfence audit key`)."


@click.group(epilog=__doc__)
def audit() -> None:
    """The audit log: list, export, prove, verify."""


@audit.command("list")
@click.option("--after", type=click.IntRange(0), default=0, help="From this number on.")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True)
@json_option
def list_(after: int, limit: int, as_json: bool) -> None:
    """List acts, oldest first."""
    with Client(load_profile()) as client:
        found = items(client.get("/audit", {"after": after, "limit": limit})["items"])
    if as_json:
        show_json(found)
        return
    rows = [
        (at(a, "number"), when(at(a, "at")), *(at(a, key) for key in ("actor", "act", "target", "reason")))
        for a in found
    ]
    show_table(("NUMBER", "AT", "WHO", "ACT", "TARGET", "WHY"), rows)


@audit.command()
def key() -> None:
    """Print the public key of the log. Keep it, and each checkpoint, where the controller cannot reach them."""
    with Client(load_profile()) as client:
        click.echo(client.get("/audit/key")["key"])


@audit.command()
@click.option(
    "--out", type=FILE, required=True, help="File for the lines; FILE.checkpoint is written beside it."
)
@json_option
def export(out: Path, as_json: bool) -> None:
    """Write the whole log, and a checkpoint signed now."""
    with Client(load_profile()) as client:
        note = str(client.get("/audit/checkpoint")["checkpoint"])
        size = int(note.split("\n")[1])
        beside = out.with_name(out.name + ".checkpoint")
        _create(beside, [note.encode()])
        try:
            _create(out, _lines(client, size))
        except BaseException:
            beside.unlink()
            raise
    if as_json:
        show_json({"entries": size, "file": str(out), "checkpoint": str(beside)})
    else:
        click.echo(f"{size} acts in {out}; check them: ringfence audit verify {out} --key KEY")


@audit.command()
@click.argument("number", type=click.IntRange(1))
@click.option("--out", type=FILE, required=True)
def prove(number: int, out: Path) -> None:
    """Write what proves act NUMBER to a third party who sees nothing else of the log."""
    with Client(load_profile()) as client:
        found = client.get(f"/audit/{number}/proof")
    _create(out, [msgspec.json.encode(found["proof"]) + b"\n"])
    click.echo(f"proof of act {number} in {out}; check it: ringfence audit verify-proof {out} --key KEY")


@audit.command()
@click.argument("log", type=FILE)
@click.option("--key", "key_", type=FILE, required=True, help=KEY_HELP)
@click.option(
    "--checkpoint",
    "kept",
    type=FILE,
    multiple=True,
    help="Checkpoints to hold it against, also older ones that you kept. Default: LOG.checkpoint.",
)
@json_option
@click.pass_context
def verify(context: click.Context, log: Path, key_: Path, kept: tuple[Path, ...], as_json: bool) -> None:
    """Verify an exported log: nothing edited, cut, re-ordered or repeated. Needs no controller."""
    loaded = _key(key_)
    notes = [read_own(path, MAX_NOTE_BYTES) for path in kept or (log.with_name(log.name + ".checkpoint"),)]
    try:
        with log.open("rb") as file:
            found = verify_trail(_untrusted_lines(file), loaded, notes)
    except Rejected as rejected:
        _refuse(context, rejected, as_json)
    except OSError as error:
        raise Amiss(f"{log}: {error.strerror or error}") from None
    shown = {
        "verdict": "verified",
        "entries": found.entries,
        "covered": found.covered,
        "checkpoints": found.checkpoints,
        "root": found.root.hex(),
        "from": found.first_at if as_json else when(found.first_at),
        "until": found.last_at if as_json else when(found.last_at),
    }
    show_json(shown) if as_json else show_facts(shown)


@audit.command("verify-proof")
@click.argument("proof", type=FILE)
@click.option("--key", "key_", type=FILE, required=True, help=KEY_HELP)
@json_option
@click.pass_context
def verify_proof_(context: click.Context, proof: Path, key_: Path, as_json: bool) -> None:
    """Verify that one act is in the log. Needs no controller."""
    try:
        entry, checkpoint = verify_proof(read_evidence(proof, MAX_PROOF_BYTES), _key(key_))
    except Rejected as rejected:
        _refuse(context, rejected, as_json)
    shown = {"verdict": "verified", **msgspec.to_builtins(entry), "signed at size": checkpoint.size}
    if not as_json:
        shown |= {"at": when(entry.at)}
    show_json(shown) if as_json else show_facts(shown)


def _refuse(context: click.Context, rejected: Rejected, as_json: bool) -> NoReturn:
    shown = {"verdict": "rejected", "code": rejected.code, "detail": rejected.detail}
    show_json(shown) if as_json else show_facts(shown)
    context.exit(REJECTED)


def _key(path: Path) -> LogKey:
    try:
        return parse_log_key(read_own(path, MAX_KEY_BYTES).decode())
    except (Rejected, UnicodeDecodeError) as error:
        raise Amiss(f"{path}: {error}") from None


def _lines(client: Client, size: int) -> Iterator[bytes]:
    """Yield exactly the lines that the checkpoint covers, with progress where someone looks on."""
    after = 0
    while after < size:
        page = client.get("/audit/lines", {"after": after, "limit": min(PAGE, size - after)})
        lines = items(page["lines"])
        if not lines:
            raise Rejected("audit.cut", f"the controller has no act after {after}, {size} were signed")
        yield from (str(line).encode() + b"\n" for line in lines)
        after = int(str(page["after"]))
        if sys.stderr.isatty():
            click.echo(f"\r{after} of {size}", nl=after >= size, err=True)


def _untrusted_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 2):
        if not line.endswith(b"\n"):
            raise Rejected("audit.malformed", "a line is cut short, or too long")
        yield line[:-1]


def _create(path: Path, parts: Iterable[bytes]) -> None:
    """Write a new file, whole or not at all; nothing is written over."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
    except BaseException:
        path.unlink()
        raise
