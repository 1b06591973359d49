"""Signed checkpoints of a log: size and root, in the form that transparency logs and their witnesses share. Pure.

A checkpoint is a signed note (C2SP signed-note and tlog-checkpoint): origin, size, root in base64, then here one
extension line with the time; an empty line; signature lines. Ed25519 alone. Others can check it without us.
Refuses: anything but exactly this form, a signature by another key, notes over MAX_NOTE_BYTES.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

from contract.errors import Rejected
from contract.merkle import HASH_BYTES

MAX_NOTE_BYTES: Final = 16 * 1024
MAX_SIZE: Final = 2**53
_ED25519: Final = b"\x01"
"""Signature type of a signed note."""
_NAME = re.compile(r"[!-*,-~]{1,128}")
"""No space and no plus, which the note and the key's text use themselves."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The first `size` entries of the log `origin` have this Merkle root, as of `at` (whole seconds since 1970)."""

    origin: str
    size: int
    root: bytes
    at: int


class LogKey(Struct, frozen=True, kw_only=True):
    """The public key of a log, with the name that it signs under."""

    name: str
    public: bytes
    """Ed25519, 32 bytes."""

    @property
    def hash(self) -> bytes:
        """Four bytes that let a reader find the right signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def text(self) -> str:
        """Return `name+hash+key`, the form in which verifier keys are handed round."""
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


def log_key(name: str, public: Ed25519PublicKey) -> LogKey:
    """Return the verifier's key of a log."""
    return LogKey(name=name, public=public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def parse_log_key(untrusted: str) -> LogKey:
    """Parse `name+hash+key`. Raises Rejected `checkpoint.key`."""
    parts = untrusted.strip().split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise Rejected("checkpoint.key", "wanted NAME+HASH+KEY, as `ringfence audit key` prints it")
    content = _unbase64(parts[2])
    if content is None or len(content) != 33 or content[:1] != _ED25519:
        raise Rejected("checkpoint.key", "wanted an Ed25519 key")
    key = LogKey(name=parts[0], public=content[1:])
    if key.hash.hex() != parts[1]:
        raise Rejected(
            "checkpoint.key", "its hash is not the one of name and key: a part is missing or mistyped"
        )
    return key


def sign_checkpoint(checkpoint: Checkpoint, private: Ed25519PrivateKey) -> str:
    """Return the signed note. The origin is the name of the key."""
    body = _body(checkpoint)
    key = log_key(checkpoint.origin, private.public_key())
    signature = base64.b64encode(key.hash + private.sign(body.encode())).decode()
    return f"{body}\n— {key.name} {signature}\n"


def verify_checkpoint(untrusted: bytes, key: LogKey) -> Checkpoint:
    """Verify a signed note and return what it says.

    1. size and form: text, an empty line, signature lines (`checkpoint.malformed`)
    2. one signature is this key's over exactly that text (`checkpoint.signature`)
    3. the text is a checkpoint of the log of this name, and nothing besides (`checkpoint.malformed`)

    Raises Rejected with those codes.
    """
    if len(untrusted) > MAX_NOTE_BYTES:  # 1
        raise Rejected("checkpoint.malformed", f"{len(untrusted)} bytes, at most {MAX_NOTE_BYTES}")
    try:
        text = untrusted.decode()
    except UnicodeDecodeError:
        raise Rejected("checkpoint.malformed", "not UTF-8") from None
    body, gap, signatures = text.rpartition("\n\n")
    if not gap or not signatures.endswith("\n"):
        raise Rejected("checkpoint.malformed", "no signature lines behind an empty line")
    body += "\n"
    _check_signature(body, signatures[:-1].split("\n"), key)  # 2
    checkpoint = _parse(body)  # 3
    if checkpoint.origin != key.name:
        raise Rejected("checkpoint.malformed", "it is of another log than the key")
    return checkpoint


def _body(checkpoint: Checkpoint) -> str:
    at = datetime.fromtimestamp(checkpoint.at, UTC).strftime(_TIME)
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n{at}\n"


def _check_signature(body: str, lines: list[str], key: LogKey) -> None:
    ours = [
        content for name, content in map(_signature, lines) if name == key.name and content[:4] == key.hash
    ]
    if len(ours) != 1:
        raise Rejected("checkpoint.signature", f"wanted one signature by {key.name} with this key")
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(ours[0][4:], body.encode())
    except InvalidSignature:
        raise Rejected("checkpoint.signature", "not this key's signature over this checkpoint") from None


def _signature(line: str) -> tuple[str, bytes]:
    mark, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    content = _unbase64(encoded)
    if mark != "—" or content is None or not _NAME.fullmatch(name):
        raise Rejected("checkpoint.malformed", "a signature line is not one")
    return name, content


def _parse(body: str) -> Checkpoint:
    lines = body[:-1].split("\n")
    if len(lines) != 4 or not _NAME.fullmatch(lines[0]) or not _NUMBER.fullmatch(lines[1]):
        raise Rejected("checkpoint.malformed", "wanted origin, size, root and time, a line each")
    root = _unbase64(lines[2])
    if root is None or len(root) != HASH_BYTES or int(lines[1]) > MAX_SIZE:
        raise Rejected("checkpoint.malformed", "size or root")
    try:
        at = datetime.strptime(lines[3], _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise Rejected("checkpoint.malformed", "time") from None
    found = Checkpoint(origin=lines[0], size=int(lines[1]), root=root, at=int(at.timestamp()))
    if _body(found) != body:
        raise Rejected("checkpoint.malformed", "not the one way to write it")
    return found


def _unbase64(text: str) -> bytes | None:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if base64.b64encode(content).decode() == text else None
