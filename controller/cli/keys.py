"""`ringfence keys`: the offline keys that baselines are signed with, and who may sign.

Runs on the signing machine and needs no controller. Private keys are written once, readable by their owner
alone, and never over another file; a key that others could read is refused.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from rich.console import Console
from rich.table import Table
from securesystemslib.signer import CryptoSigner, SSlibKey

from contract.errors import Rejected
from controller.offline import ROLES, OfflineRepository, RoleKeys, expiry, role_keys

PATH = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def keys() -> None:
    """Offline keys: make them, show who may sign, replace them."""


@keys.command()
@click.option("--out", type=PATH, required=True, help="New folder for `keys/` and `repository/`.")
@click.option(
    "--online-key", type=EXISTING, required=True, help="The controller's public key, keys/online.pub."
)
@click.option("--root-keys", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--root-threshold", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--targets-keys", type=click.IntRange(1, 16), help="Default: as many as the threshold.")
@click.option("--targets-threshold", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Until all expires."
)
@click.option("--passphrase-file", type=EXISTING, help="First line: the passphrase of every key made.")
@click.option(
    "--plain", is_flag=True, help="Keys without a passphrase: only for disks that are themselves locked away."
)
@click.option("--json", "as_json", is_flag=True)
def new(
    *,
    out: Path,
    online_key: Path,
    root_keys: int,
    root_threshold: int,
    targets_keys: int | None,
    targets_threshold: int,
    days: int,
    passphrase_file: Path | None,
    plain: bool,
    as_json: bool,
) -> None:
    """Make root and targets keys, the first root and an empty list of baselines.

    With --targets-threshold 2 no baseline is valid before two people have signed it. Give each person one
    key file and take it off this machine; root keys belong in a safe.
    """
    online = RoleKeys([read_public_key(online_key)], 1)
    if any((out / name).exists() for name in ("keys", "repository")):
        raise Rejected(
            "signing.exists", f"{out}: there are keys or a repository already; nothing was changed"
        )
    encryption = _encryption(passphrase_file, plain=plain)
    made = {
        "root": [Ed25519PrivateKey.generate() for _ in range(max(root_keys, root_threshold))],
        "targets": [Ed25519PrivateKey.generate() for _ in range(max(targets_keys or 1, targets_threshold))],
    }
    signers = {role: [CryptoSigner(key) for key in some] for role, some in made.items()}
    roles = {
        "root": RoleKeys([s.public_key for s in signers["root"]], root_threshold),
        "targets": RoleKeys([s.public_key for s in signers["targets"]], targets_threshold),
        "snapshot": online,
        "timestamp": online,
    }
    repository = OfflineRepository.create(
        out / "repository",
        roles,
        [*signers["root"], *signers["targets"]],
        expires=expiry(time.time(), days),
    )
    files = {}
    for role, some in made.items():
        for number, key in enumerate(some, 1):
            path = out / "keys" / f"{role}-{number}.pem"
            _write_private_key(path, key, encryption)
            files[str(path)] = CryptoSigner(key).public_key.keyid
    repository.save()
    if as_json:
        click.echo(json.dumps({"repository": str(repository.directory), "keys": files}))
        return
    for name, keyid in files.items():
        click.echo(f"{name}  key {keyid[:16]}")
    click.echo(
        f"{repository.directory}  root version 1, targets {targets_threshold} of {len(made['targets'])}"
    )


@keys.command()
@click.argument("repository", type=FOLDER)
@click.option("--json", "as_json", is_flag=True)
def show(repository: Path, as_json: bool) -> None:
    """Show who may sign what in an offline REPOSITORY, and until when."""
    offline = OfflineRepository.load(repository)
    root, listed = offline.root, offline.targets.signed
    have, wanted = offline.signatures()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "root": {"version": root.version, "expires": root.expires.isoformat()},
                    "roles": {
                        r: {"threshold": root.roles[r].threshold, "keys": root.roles[r].keyids} for r in ROLES
                    },
                    "targets": {
                        "version": listed.version,
                        "expires": listed.expires.isoformat(),
                        "signatures": have,
                        "signatures_wanted": wanted,
                        "baselines": {p: f.hashes["sha256"] for p, f in sorted(listed.targets.items())},
                    },
                }
            )
        )
        return
    table = Table(title=f"root version {root.version}, expires {root.expires:%Y-%m-%d}")
    for column in ("role", "signatures", "keys"):
        table.add_column(column)
    for role in ROLES:
        ids = root.roles[role].keyids
        table.add_row(
            role, f"{root.roles[role].threshold} of {len(ids)}", " ".join(keyid[:16] for keyid in ids)
        )
    console = Console()
    console.print(table)
    console.print(
        f"list version {listed.version}, expires {listed.expires:%Y-%m-%d}, {have} of {wanted} signatures, "
        f"{len(listed.targets)} baselines",
        highlight=False,
    )


@keys.command()
@click.argument("repository", type=FOLDER)
@click.option(
    "--key",
    "key_files",
    type=EXISTING,
    multiple=True,
    required=True,
    help="Root key files: a threshold of old and new.",
)
@click.option("--online-key", type=EXISTING, help="Replace the controller's key (keys/online.pub).")
@click.option(
    "--targets-key",
    "targets_keys",
    type=EXISTING,
    multiple=True,
    help="Replace all targets keys: public PEM of each.",
)
@click.option("--targets-threshold", type=click.IntRange(1, 16))
@click.option(
    "--root-key", "root_keys", type=EXISTING, multiple=True, help="Replace all root keys: public PEM of each."
)
@click.option("--root-threshold", type=click.IntRange(1, 16))
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
@click.option("--passphrase-file", type=EXISTING)
def rotate(
    *,
    repository: Path,
    key_files: tuple[Path, ...],
    online_key: Path | None,
    targets_keys: tuple[Path, ...],
    targets_threshold: int | None,
    root_keys: tuple[Path, ...],
    root_threshold: int | None,
    days: int,
    passphrase_file: Path | None,
) -> None:
    """Make the next root version: other keys, other thresholds, or the same for another year."""
    signers = [read_signer(path, passphrase_file) for path in key_files]
    offline = OfflineRepository.load(repository)
    root = offline.root
    roles: dict[str, RoleKeys] = {}
    for name, files, threshold in (
        ("root", root_keys, root_threshold),
        ("targets", targets_keys, targets_threshold),
    ):
        old = role_keys(root, name)
        some = [read_public_key(path) for path in files] or old.keys
        roles[name] = RoleKeys(some, threshold or old.threshold)
    if online_key is not None:
        roles["snapshot"] = roles["timestamp"] = RoleKeys([read_public_key(online_key)], 1)
    offline.rotate(roles, signers, expires=expiry(time.time(), days))
    offline.save()
    have, wanted = offline.signatures()
    click.echo(f"root version {offline.root.version}; the list has {have} of {wanted} signatures")
    if have < wanted:
        click.echo("sign it anew: ringfence baseline cosign")


@keys.command()
@click.argument("key_file", type=EXISTING)
@click.option("--passphrase-file", type=EXISTING)
def public(key_file: Path, passphrase_file: Path | None) -> None:
    """Print the public PEM of a private KEY_FILE, for `keys rotate` on another machine."""
    key = read_private_key(key_file, passphrase_file)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    click.echo(pem.decode(), nl=False)


def read_signer(path: Path, passphrase_file: Path | None = None) -> CryptoSigner:
    """Return the signer of a private key file; asks for a passphrase where it needs one.

    Raises as `read_private_key` does.
    """
    return CryptoSigner(read_private_key(path, passphrase_file))


def read_private_key(path: Path, passphrase_file: Path | None = None) -> Ed25519PrivateKey:
    """Return an Ed25519 key from PKCS #8 PEM. Raises Rejected `signing.key`, `.key-readable`, `.passphrase`; OSError."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise Rejected(
            "signing.key-readable",
            f"{path}: others can read this key; chmod 600 it, and replace it if they did",
        )
    pem = path.read_bytes()
    password: bytes | None = None
    if b"ENCRYPTED PRIVATE KEY" in pem:
        password = _first_line(passphrase_file) if passphrase_file else _ask(f"Passphrase of {path}")
    try:
        key = load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Rejected("signing.key", f"{path}: not a private key in PEM, or another passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Rejected("signing.key", f"{path}: wanted an Ed25519 key, as `ringfence keys new` makes it")
    return key


def read_public_key(path: Path) -> SSlibKey:
    """Return an Ed25519 public key from PEM. Raises Rejected `signing.key`; OSError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise Rejected("signing.key", f"{path}: not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Rejected("signing.key", f"{path}: wanted an Ed25519 public key")
    return SSlibKey.from_crypto(key)


def _encryption(passphrase_file: Path | None, *, plain: bool) -> KeySerializationEncryption:
    if plain:
        return NoEncryption()
    passphrase = (
        _first_line(passphrase_file) if passphrase_file else _ask("Passphrase for the new keys", twice=True)
    )
    if not passphrase:
        raise Rejected("signing.passphrase", "the passphrase is empty; use --plain if that is what you want")
    return BestAvailableEncryption(passphrase)


def _first_line(path: Path) -> bytes:
    return path.read_bytes().split(b"\n", 1)[0]


def _ask(question: str, *, twice: bool = False) -> bytes:
    if not sys.stdin.isatty():
        raise Rejected(
            "signing.passphrase",
            "no terminal to ask for the passphrase: use --passphrase-file FILE or --plain",
        )
    return str(click.prompt(question, hide_input=True, confirmation_prompt=twice)).encode()


def _write_private_key(path: Path, key: Ed25519PrivateKey, encryption: KeySerializationEncryption) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
