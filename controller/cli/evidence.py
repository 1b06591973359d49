"""`ringfence evidence`: stored evidence, exported as files, and bundles verified without a controller.

Exit codes of `verify`: 0 verified, 1 rejected, 2 what was given cannot be used.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path

import click

from contract.errors import Rejected
from contract.names import checked_name
from controller.cli.client import Client, segment
from controller.cli.inputs import Amiss, read_evidence, read_own
from controller.cli.profile import load_profile
from controller.cli.show import at, harmless, json_option, show_facts, show_json, show_table, when

REJECTED = 1
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_PEM_BYTES = 16 * 1024
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(epilog=__doc__)
def evidence() -> None:
    """Stored evidence: list, export, verify."""


@evidence.command("list")
@click.argument("node")
@json_option
def list_(node: str, as_json: bool) -> None:
    """List what is stored of NODE, newest first."""
    with Client(load_profile()) as client:
        found = list(client.pages(f"/nodes/{segment(node)}/evidence"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "KIND", "AT", "UNTIL", "TIER", "FINDINGS"),
        [(e["id"], e["kind"], when(e["at"]), when(e["until"]), e["tier"], e["findings"]) for e in found],
    )


@evidence.command()
@click.argument("node")
@click.option("--id", "number", type=int, help="Which one; default: the newest.")
@click.option("--out", type=FOLDER, help="Folder for the files; made, or empty. Default: ./NODE-evidence.")
@json_option
def export(node: str, number: int | None, out: Path | None, as_json: bool) -> None:
    """Write one piece of evidence as the files that `ringfence attest verify` takes. Writes over nothing."""
    folder = Path(f"{checked_name(node, 'node')}-evidence") if out is None else out
    which = "newest" if number is None else str(number)
    with Client(load_profile()) as client:
        found = client.get(f"/nodes/{segment(node)}/evidence/{which}")
    files = _files(found.get("files"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Rejected("export.exists", f"{folder} is there and not empty; choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    if as_json:
        show_json({"node": found["node"], "id": found["id"], "folder": str(folder), "files": sorted(files)})
    else:
        click.echo(f"evidence {found['id']} of {found['node']} in {folder}; read README there")


@evidence.command()
@click.argument("node")
@click.option("--nonce", help="8 to 64 bytes in base64url, echoed by the result.")
def result(node: str, nonce: str | None) -> None:
    """Print the result in force: EAR as a JWT."""
    with Client(load_profile()) as client:
        found = client.get(f"/nodes/{segment(node)}/result", {"nonce": nonce})
    click.echo(found["result"])


@evidence.command("key")
@click.option("--jwk", is_flag=True, help="As JWK, not PEM.")
def result_key(jwk: bool) -> None:
    """Print the public key that results are signed with; hand it on by another way than the bundles."""
    with Client(load_profile()) as client:
        found = client.get("/results/key")
    show_json(found["jwk"]) if jwk else click.echo(str(found["pem"]), nl=False)


@evidence.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Result key (PEM) that was had by another way than the bundle.",
)
@json_option
@click.pass_context
def verify(context: click.Context, folder: Path, key: Path | None, as_json: bool) -> None:
    """Verify a bundle: its files belong together, the evidence verifies, the result agrees. Needs no controller."""
    from contract.bundle import NAMES, RESULT_KEY
    from contract.bundleaudit import audit
    from contract.resultkey import key_id, load_result_key

    files = {name: read_evidence(folder / name, MAX_FILE_BYTES) for name in NAMES if (folder / name).exists()}
    try:
        pem = files.get(RESULT_KEY, b"") if key is None else read_own(key, MAX_PEM_BYTES)
        loaded = load_result_key(pem)
        found = audit(files, loaded)
    except Rejected as refused:
        if refused.code.startswith(("bundle.missing", "bundle.file", "result.key", "ak.", "ek.")):
            raise Amiss(f"{folder}: {refused}") from None
        found = None
        findings = [{"code": refused.code, "detail": refused.detail}]
    shown: dict[str, object] = {"verdict": "rejected", "findings": [], "partial": [], "key": "", "claims": {}}
    if found is None:
        shown["findings"] = findings
    else:
        said = found.result
        shown |= {
            "verdict": "verified" if found.verified else "rejected",
            "findings": [{"code": f.code, "detail": f.detail} for f in (*found.findings, *found.notes)],
            "partial": found.partial,
            "key": key_id(loaded),
            "result": {
                "node": said.sub,
                "issuer": said.iss,
                "status": said.ear_status,
                "tiers": said.appraisal.appraised.tiers,
                "since": said.nbf,
                "until": said.exp,
            },
            "claims": found.claims,
        }
    if as_json:
        show_json(shown)
    else:
        _show(shown, own_key=key is None)
    if shown["verdict"] != "verified":
        context.exit(REJECTED)


def _show(shown: Mapping[str, object], *, own_key: bool) -> None:
    facts: dict[str, object] = {"verdict": shown["verdict"]}
    if "result" in shown:
        tiers = at(shown, "result", "tiers")
        facts |= {
            "node": at(shown, "result", "node"),
            "issuer": at(shown, "result", "issuer"),
            "status": at(shown, "result", "status"),
            "tiers": ", ".join(f"{area} {tier}" for area, tier in tiers.items())
            if isinstance(tiers, dict)
            else "",
            "holds": f"{when(at(shown, 'result', 'since'))} to {when(at(shown, 'result', 'until'))}",
            "result key": shown["key"],
        }
    show_facts(facts)
    findings = shown["findings"]
    for finding in findings if isinstance(findings, list) else ():
        click.echo(harmless(f"{finding['code']}: {finding['detail']}"))
    partial = shown["partial"]
    for part in partial if isinstance(partial, list) else ():
        click.echo(f"not re-verified: {part}")
    if own_key:
        click.echo("The key is the bundle's own: it proves that the files belong together, not who signed.")


def _files(untrusted: object) -> dict[str, bytes]:
    """Return the files of a reply: only the names that a bundle has, so that nothing is written anywhere else."""
    from contract.bundle import NAMES

    if not isinstance(untrusted, dict) or not untrusted.keys() <= NAMES:
        raise Rejected("export.malformed", "the controller's answer is no bundle")
    try:
        return {name: base64.b64decode(content, validate=True) for name, content in untrusted.items()}
    except (binascii.Error, TypeError, ValueError):
        raise Rejected("export.malformed", "the controller's answer is no bundle") from None
