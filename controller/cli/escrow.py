"""`ringfence key`: disk keys in escrow. A key is sealed here, on this machine: the controller never sees it."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import click

from contract.errors import Rejected
from controller.cli.client import Client, Refused, dry_run_option, segment
from controller.cli.inputs import read_own
from controller.cli.profile import load_profile
from controller.cli.show import json_option, show_json, show_table, when


@click.group()
def key() -> None:
    """Disk keys in escrow, released to a node only after a good attestation."""


@key.command()
@click.argument("node")
@click.argument("name")
@click.option(
    "--from-file",
    "file",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="The key, 1 to 4096 bytes, taken as it is.",
)
@click.option("--ek", help="SHA-256 (hex) of the EK that the node must have, known by another way.")
@click.option("--allow-warning", is_flag=True, help="Release also when the node's tier is `warning`.")
@click.option(
    "--replace", is_flag=True, help="In place of the key NAME that is there: nobody gets that one any more."
)
@click.option("--reason", required=True)
@json_option
@dry_run_option
def put(
    *,
    node: str,
    name: str,
    file: Path,
    ek: str | None,
    allow_warning: bool,
    replace: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Seal a key to NODE's TPM and put it in escrow under NAME."""
    from contract.escrow import seal
    from contract.messages import MAX_KEY_BYTES
    from contract.tpm import name_of

    content = read_own(file, MAX_KEY_BYTES)
    path = f"/nodes/{segment(node)}/keys/{segment(name)}"
    with Client(load_profile()) as client:
        seen = client.whole(path).tag if replace else ""
        found = client.get(f"/nodes/{segment(node)}/sealing")
        ek_public, ak_public = _decoded(found, "ek_public"), _decoded(found, "ak_public")
        _check_ek(ek_public, ek, str(found.get("ek_trust")))
        sealed, share = seal(content, node=node, name=name, ek_public=ek_public, ak_public=ak_public)
        body = {
            "sealed": {
                "credential_blob": _encoded(sealed.credential_blob),
                "encrypted_secret": _encoded(sealed.encrypted_secret),
                "ciphertext": _encoded(sealed.ciphertext),
            },
            "share": _encoded(share),
            "ak_name": name_of(ak_public).hex(),
            "least_tier": "warning" if allow_warning else "affirming",
            "reason": reason,
        }
        try:
            held = client.send("PUT", path, body, match=seen, new=not replace)
        except Refused as refused:
            if refused.code != "match.stale" or replace:
                raise
            raise Rejected(
                "key.exists", f"{node} has a key {name}: --replace puts this one in its place"
            ) from None
    show_json(held) if as_json else click.echo(
        f"key {held['name']} of {held['node']}: version {held['version']}"
    )


@key.command("list")
@click.argument("node")
@json_option
def list_(node: str, as_json: bool) -> None:
    """List the keys of NODE."""
    with Client(load_profile()) as client:
        found = list(client.pages(f"/nodes/{segment(node)}/keys"))
    if as_json:
        show_json(found)
        return
    show_table(
        ("NAME", "VERSION", "STATE", "WANTS", "PUT", "BY", "RELEASES", "LAST"),
        [
            (
                k["name"],
                k["version"],
                k["state"],
                k["least_tier"],
                when(k["put_at"]),
                k["put_by"],
                k["releases"],
                when(k["released_at"]),
            )
            for k in found
        ],
    )


@key.command()
@click.argument("node")
@click.argument("name")
@click.option("--reason", required=True)
@json_option
@dry_run_option
def revoke(node: str, name: str, reason: str, as_json: bool) -> None:
    """Make a key unopenable for good: the controller overwrites its share."""
    with Client(load_profile()) as client:
        path = f"/nodes/{segment(node)}/keys/{segment(name)}/revoke"
        found = client.send("POST", path, {"reason": reason})
    show_json(found) if as_json else click.echo(f"key {found['name']} of {found['node']} is revoked")


def _check_ek(ek_public: bytes, wanted: str | None, trust: str) -> None:
    """Raise Rejected `key.other-ek`, `key.ek-unproved`: a key sealed to a stranger's EK is a key given away."""
    from contract.enrolment import ek_digest

    found = ek_digest(ek_public)
    if wanted is not None and found != wanted.strip().lower():
        raise Rejected("key.other-ek", f"the node's EK is {found}")
    if wanted is None and trust == "unverified":
        raise Rejected(
            "key.ek-unproved", f"nothing proves this EK to be a TPM's; if you know it, say --ek {found}"
        )


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(found: dict[str, object], field: str) -> bytes:
    try:
        return base64.b64decode(str(found.get(field)), validate=True)
    except (binascii.Error, ValueError):
        raise Rejected("key.malformed", f"the controller's answer has no {field}") from None
