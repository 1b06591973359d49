"""Provenance: which commit, with which pinned tools, gave which files. An in-toto Statement with a SLSA v1 predicate, signed as DSSE.

    python packaging/os/provenance.py sign --key PRIVATE.pem --out ENVELOPE STATEMENT
    python packaging/os/provenance.py verify --key PUBLIC.pem [--commit HASH] ENVELOPE FILE...

`verify` exits 0 only when the signature is the key's, the statement is of the kind that `make packages` writes, from a clean tree, and
every FILE is in it, by name and digest. No file named is an error: nothing would be verified.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD = "urn:ringfence:make-packages:1"


class Unproved(Exception):
    """The envelope does not prove what was asked."""


def git(tree: Path, *arguments: str) -> str:
    """Return what git says. Raises CalledProcessError."""
    done = subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def statement(tree: Path, files: list[Path]) -> bytes:
    """Return the statement about some built files: the same bytes for the same files and the same tree."""
    materials: list[dict[str, object]] = [
        {
            "name": "source",
            "uri": "git+file:ringfence",
            "digest": {"gitCommit": git(tree, "rev-parse", "HEAD")},
        }
    ]
    for path in sorted((tree / "packaging/setup").glob("*.txt")):
        name = str(path.relative_to(tree))
        materials.append({"name": name, "uri": f"file:{name}", "digest": {"sha256": _digest(path)}})
    python = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "python3-minimal"],
        check=False,
        capture_output=True,
        text=True,
    )
    value = {
        "_type": _STATEMENT,
        "subject": [{"name": path.name, "digest": {"sha256": _digest(path)}} for path in sorted(files)],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": {
                    "target": "packages",
                    "changed": bool(git(tree, "status", "--porcelain")),
                },
                "internalParameters": {
                    "system": _system(),
                    "machine": os.uname().machine,
                    "python": python.stdout or sys.version.split()[0],
                },
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": "urn:ringfence:a-machine-of-the-owner"}},
        },
    }
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def sign(payload: bytes, key: Path) -> bytes:
    """Return the DSSE envelope over a statement. `key` is a private key in PEM. Raises OSError, ValueError."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner(load_pem_private_key(key.read_bytes(), None))
    envelope = Envelope(payload, PAYLOAD, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1, sort_keys=True).encode() + b"\n"


def verify(envelope: bytes, key: Path, files: list[Path], commit: str | None = None) -> str:
    """Return the commit that the files were built from. Raises Unproved, with the reason."""
    value = _opened(envelope, key)
    if value.get("_type") != _STATEMENT or value.get("predicateType") != _PREDICATE:
        raise Unproved("this is signed, but is no provenance")
    definition = value["predicate"]["buildDefinition"]
    if definition["buildType"] != _BUILD:
        raise Unproved(f"built in a way that is not known: {definition['buildType']}")
    if definition["externalParameters"]["changed"] is not False:
        raise Unproved("built from a tree that differed from its commit")
    built = next(
        each["digest"]["gitCommit"] for each in definition["resolvedDependencies"] if each["name"] == "source"
    )
    if commit is not None and built != commit:
        raise Unproved(f"built from {built}, not from {commit}")
    if not files:
        raise Unproved("no file was named")
    known = {each["name"]: each["digest"]["sha256"] for each in value["subject"]}
    for path in files:
        if known.get(path.name) != _digest(path):
            raise Unproved(
                f"{path.name} is not among what was built"
                if path.name not in known
                else f"{path.name} was changed"
            )
    return str(built)


def _opened(envelope: bytes, key: Path) -> dict:  # type: ignore[type-arg]
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        read = Envelope.from_dict(json.loads(envelope))
        public = SSlibKey.from_crypto(load_pem_public_key(key.read_bytes()))
        read.verify([public], 1)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        UnverifiedSignatureError,
        VerificationError,
    ) as error:
        raise Unproved(f"not signed by this key: {error}") from error
    if read.payload_type != PAYLOAD:
        raise Unproved(f"signed, but as {read.payload_type}")
    value = json.loads(read.payload)
    if not isinstance(value, dict):
        raise Unproved("this is signed, but is no statement")
    return value


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _system() -> str:
    lines = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    return f"{lines.get('ID', '?')} {lines.get('VERSION_ID', '?')}".replace('"', "")


def main() -> int:
    """Sign or verify; 1 when it is not proved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    signing = commands.add_parser("sign")
    signing.add_argument("statement", type=Path)
    signing.add_argument("--out", type=Path, required=True)
    verifying = commands.add_parser("verify")
    verifying.add_argument("envelope", type=Path)
    verifying.add_argument("files", type=Path, nargs="*")
    verifying.add_argument("--commit")
    for each in (signing, verifying):
        each.add_argument("--key", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "sign":
        options.out.write_bytes(sign(options.statement.read_bytes(), options.key))
        return 0
    try:
        built = verify(options.envelope.read_bytes(), options.key, options.files, options.commit)
    except Unproved as error:
        print(f"not proved: {error}", file=sys.stderr)
        return 1
    print(f"{len(options.files)} files, built from commit {built}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
