"""An `[ima]` section compiled for speed: one look-up for a line that it has allowed before, on whatever node.

Pure but for that memory, which changes how soon an answer comes and never what it is: only lines that are well formed,
whose hash fits and which the section allows without a word are in it, by their exact bytes. It is bounded, and forgets
by halves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from contract.imalog import Fields, file_fields, shown
from contract.imapolicy import ImaPolicy
from contract.imasig import Signer, key_id_of, load_signer, verifies
from contract.messages import PackageChange
from contract.pathrules import PathRules

REMEMBERED_LINES: Final = 65536
"""Of all nodes under one baseline; some 350 bytes each."""
MAX_REMEMBERED_LINE_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 512
"""Of a path that a package change may name."""
_SHA256: Final = b"sha256"
_DIGEST_BYTES: Final = 32
_NUMBERS = re.compile(r"[0-9]+(?:[.~+_-][0-9]+)*")


class Plain(NamedTuple):
    """Lines of one template that can be judged without reading their fields one by one.

    A line of which `raw[head:cut]` is in `ImaRules.files` begins like that of a file that is allowed: those bytes hold their
    own lengths. It is good if it is of this template and of PCR 10, ends there (`closing`) and has the hash of its data.
    """

    head: int
    """Where the data begins."""
    cut: int | None
    """Where `d-ng` and `n-ng` end, from the line's end."""
    unpack: Callable[[bytes], tuple[int, bytes, bytes, int]]
    """Reads the head of a line: PCR, SHA-1 of the data, template with its length, length of the data."""
    template: bytes
    closing: bytes
    """What stands behind the file's fields: no signature."""


_NG, _SIG = Struct("<I20s10sI"), Struct("<I20s11sI")
PLAIN: Final = {
    b"ima-ng": Plain(_NG.size, None, _NG.unpack_from, b"\6\0\0\0ima-ng", b""),
    b"ima-sig": Plain(_SIG.size, -4, _SIG.unpack_from, b"\7\0\0\0ima-sig", bytes(4)),
}
NOT_PLAIN: Final = Plain(0, 0, _SIG.unpack_from, b"", b"")
"""Stands for any other template: no line is found."""


class Verdict(NamedTuple):
    """What speaks against a line."""

    code: str
    detail: str


class Unknown(NamedTuple):
    """A file that nothing allows."""

    home: bytes
    """Where this content would be allowed; empty if nowhere."""


class Explanation(NamedTuple):
    """An upgrade that the section's packages make plausible."""

    name: str
    before: str
    after: str


class ImaRules:
    """What `contract.ima.follow` judges by. Make it once for each baseline and use it for all nodes that it holds."""

    __slots__ = (
        "_allowed",
        "_buffers",
        "_exclude",
        "_families",
        "_homes",
        "_ignore",
        "_older",
        "_signers",
        "files",
        "known",
        "policy",
        "room",
        "sha256",
    )

    def __init__(self, policy: ImaPolicy) -> None:
        self.policy = policy
        self.sha256 = hashlib.sha256(msgspec.json.encode(policy)).digest()
        """A state that was judged by another policy does not fit."""
        self.known: dict[bytes, bytes] = {}
        """Record as it stands in the log to SHA-256 of its data. For the hot loop; see `recall` and `remember`."""
        self.room = REMEMBERED_LINES // 2
        """How many lines `known` may hold."""
        self._older: dict[bytes, bytes] = {}
        self.files: set[bytes] = set()
        """Files allowed by SHA-256, each as the fields `d-ng` and `n-ng` of its line. For the hot loop; see `Plain`."""
        self._allowed: dict[bytes, tuple[bytes, ...]] = {}
        """Path to longer digests."""
        self._homes: dict[bytes, bytes] = {}
        self._ignore = policy.unknown_files == "ignore"
        self._exclude = PathRules(policy.exclude)
        self._buffers = {
            name.encode(): frozenset(digests) for name, digests in (policy.keyrings | policy.buffers).items()
        }
        self._signers: dict[int, list[Signer]] = {}
        self._families: dict[str, list[str]] = {}
        for name, pem in policy.signers.items():
            signer = load_signer(name, pem)
            self._signers.setdefault(signer.key_id, []).append(signer)
        for path, digests in policy.allow.items():
            for each in digests:
                self._allow(path.encode(), bytes.fromhex(each.partition(":")[2]))
        for package in policy.package:
            self._families.setdefault(family(package.name), []).append(package.version)
            for raw, sha256 in package.entries():
                self._allow(raw, sha256)

    def _allow(self, path: bytes, digest: bytes) -> None:
        if b"\0" in path:  # no file is called so, and a line that says it is malformed
            return
        if len(digest) == _DIGEST_BYTES:
            self.files.add(file_fields(path, digest))
        else:
            self._allowed[path] = (*self._allowed.get(path, ()), digest)
        self._homes.setdefault(digest, path)

    def recall(self, raw: bytes) -> bytes | None:
        """Return what `remember` kept in the older half."""
        extension = self._older.get(raw)
        if extension is not None:
            self.remember(raw, extension)
        return extension

    def remember(self, raw: bytes, extension: bytes) -> None:
        """Keep a line that speaks for itself, while there is room; `known` stays the same dict."""
        if len(raw) > MAX_REMEMBERED_LINE_BYTES:
            return
        if len(self.known) >= self.room:
            self._older = dict(self.known)
            self.known.clear()
        self.known[raw] = extension

    def judge(self, fields: Fields) -> Verdict | Unknown | None:
        """Return what speaks against a file or buffer, or None.

        1. a buffer's digest is that of the buffer, and the section names buffer and digest (`ima.buffer`)
        2. the section allows this digest for this path, or excludes the path, or asks for no file
        3. a key of the section has signed the digest (`ima.signature` where such a signature does not verify)
        4. else it is unknown, also where the digest is allowed under another path (m11)
        """
        name, digest = fields.name, fields.digest
        if fields.buffer is not None:
            return self._judge_buffer(fields, fields.buffer)  # 1
        if fields.kind == b"ima" and self._allows(fields):  # 2
            return None
        if self._ignore or self._exclude.match(name):
            return None
        if fields.signature and self._signers:  # 3
            signers = self._signers.get(key_id_of(fields.signature) or 0, [])
            if any(verifies(s, fields.signature, fields.kind, fields.algorithm, digest) for s in signers):
                return None
            if signers:
                detail = f"'{shown(name)}': the signature of {signers[0].name} does not fit its content"
                return Verdict("ima.signature", detail)
        return Unknown(self._homes.get(digest, b""))  # 4

    def _allows(self, fields: Fields) -> bool:
        if fields.algorithm == _SHA256:
            return file_fields(fields.name, fields.digest) in self.files
        return fields.digest in self._allowed.get(fields.name, ())

    def _judge_buffer(self, fields: Fields, buffer: bytes) -> Verdict | None:
        label = f"'{shown(fields.name)}'"
        algorithm = fields.algorithm.decode()
        found = f"{algorithm}:{fields.digest.hex()}"
        if algorithm not in _BUFFER_HASHES or _BUFFER_HASHES[algorithm](buffer).digest() != fields.digest:
            return Verdict(
                "ima.buffer", f"{label}: {found} is not the digest of the {len(buffer)} bytes given"
            )
        if self._ignore:
            return None
        allowed = self._buffers.get(fields.name)
        if allowed is None:
            return Verdict("ima.buffer", f"{label}: no keyring or buffer of this name is allowed ({found})")
        if "*" in allowed or found in allowed:
            return None
        return Verdict("ima.buffer", f"{label}: {found} is not allowed there")

    def version_of(self, package: str) -> str | None:
        """Return the version in which the section names a package, or None; the first if there are several."""
        versions = self._families.get(family(package))
        return versions[0] if versions else None

    def explanations(self, changes: Sequence[PackageChange]) -> dict[tuple[str, bytes], Explanation]:
        """Return (path, SHA-256) to the upgrade that accounts for it.

        Only of packages that the section names (or whose name differs from such a one in numbers alone: kernels), in a
        version that it does not name. What is newly installed is no upgrade.
        """
        if self.policy.package_updates == "refuse":
            return {}
        found = {}
        for change in changes:
            versions = self._families.get(family(change.name))
            if versions is None or not change.after or change.after in versions:
                continue
            before = change.before or versions[0]
            for path, sha256 in change.files.items():
                found[path, sha256] = Explanation(change.name, before, change.after)
        return found


_BUFFER_HASHES: Final = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}


def explainable(fields: Fields) -> bool:
    """Say whether a package database could account for this file: SHA-256, and a name that is text."""
    if fields.algorithm != _SHA256 or fields.kind != b"ima" or len(fields.name) > MAX_NAME_BYTES:
        return False
    try:
        return bool(fields.name.decode())
    except UnicodeDecodeError:
        return False


def family(package: str) -> str:
    """Return a package's name without the version in it: `linux-image-6.1.0-56-amd64` -> `linux-image-#-amd#`."""
    return _NUMBERS.sub("#", package)
