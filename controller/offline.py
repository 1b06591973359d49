"""The offline repository: a folder on the signing machine, with the keys' public side and what they signed.

It holds no private key and never meets a controller; `ringfence baseline push` uploads what it says. It
refuses to sign with a key that the root does not name, to change what was signed under a version before,
and to go back in versions. Relies on the person at the machine to look at what is signed.

    N.root.json                    the root and its successors
    targets.json                   the newest signed list; may still lack signatures
    targets/<name>/<version>.toml  the baselines it lists
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets

from contract.baseline import parse_baseline
from contract.errors import Rejected
from contract.metadata import check_root, check_targets
from contract.trust import trusted_root
from contract.trusted import target_path

_ROOT_FILE = re.compile(r"([1-9][0-9]{0,8})\.root\.json", re.ASCII)
_PATH = re.compile(r"([a-z0-9-]+)/([0-9]+)\.toml", re.ASCII)
ROLES = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who may sign for a role, and how many of them must."""

    keys: Sequence[SSlibKey]
    threshold: int


@dataclass(slots=True)
class OfflineRepository:
    """One offline repository, loaded. Nothing is on disk before `save`."""

    directory: Path
    roots: list[bytes]
    targets: Metadata[Targets]

    @classmethod
    def create(
        cls,
        directory: Path,
        roles: Mapping[str, RoleKeys],
        signers: Sequence[CryptoSigner],
        *,
        expires: float,
    ) -> OfflineRepository:
        """Return a new repository with root version 1 and an empty list; `signers` sign both.

        `expires` is seconds since 1970. Raises Rejected `metadata.keys` or `metadata.roles` for keys that
        no node would accept, `offline.threshold` for a threshold that the keys cannot meet.
        """
        root = Root(1, None, _time(expires))
        for name in ROLES:
            _set_role(root, name, roles[name])
        raw_root = _signed_root(root, [], signers)
        targets = Metadata(Targets(1, None, _time(expires)))
        repository = cls(directory, [raw_root], targets)
        repository.sign([s for s in signers if s.public_key.keyid in root.roles["targets"].keyids])
        return repository

    @classmethod
    def load(cls, directory: Path) -> OfflineRepository:
        """Read a repository, or the one in the folder `repository` of what `ringfence keys new` made.

        Raises Rejected `offline.no-repository`, `metadata.*`; OSError.
        """
        if not (directory / "targets.json").is_file() and (directory / "repository").is_dir():
            directory = directory / "repository"
        found = {int(m[1]): p for p in directory.glob("*.root.json") if (m := _ROOT_FILE.fullmatch(p.name))}
        if not found or not (directory / "targets.json").is_file():
            raise Rejected("offline.no-repository", f"{directory}: wanted 1.root.json and targets.json here")
        roots = [found[version].read_bytes() for version in sorted(found)]
        trusted_root(roots[0], roots[1:])
        raw = (directory / "targets.json").read_bytes()
        check_targets(raw)
        return cls(directory, roots, Metadata[Targets].from_bytes(raw))

    @property
    def root(self) -> Root:
        """The newest root, verified."""
        return trusted_root(self.roots[0], self.roots[1:])

    def signatures(self) -> tuple[int, int]:
        """Return how many targets keys have signed the list as it is, and how many must."""
        result = self.root.get_verification_result(
            Targets.type, self.targets.signed_bytes, self.targets.signatures
        )
        return len(result.signed), result.threshold

    @property
    def complete(self) -> bool:
        """True if nodes would accept the list's signatures."""
        have, wanted = self.signatures()
        return have >= wanted

    def add(self, raw: bytes, *, expires: float, file: str = "baseline") -> str:
        """List a baseline and return its target path; the list's old signatures fall away.

        The very file that is listed already changes nothing. `expires` is seconds since 1970.
        Raises Rejected `baseline.*` when it does not parse, `offline.version` when this or a later version
        of the name was listed before.
        """
        head = parse_baseline(raw, file=file).head
        path = target_path(head.name, head.version)
        listed = self.targets.signed.targets
        if path in listed and listed[path].hashes["sha256"] == hashlib.sha256(raw).hexdigest():
            return path
        latest = max((version for name, version in _names(listed) if name == head.name), default=0)
        if head.version <= latest:
            raise Rejected(
                "offline.version",
                f"{file}: {head.name} {latest} was signed before; raise the version above it",
            )
        if self.complete:  # only a complete list can have been pushed
            self.targets.signed.version += 1
        self.targets.signatures.clear()
        self.targets.signed.expires = _time(expires)
        listed[path] = TargetFile.from_data(path, raw, ["sha256"])
        _replace(self.directory / "targets" / path, raw)
        return path

    def sign(self, signers: Sequence[CryptoSigner]) -> None:
        """Add signatures to the list. Raises Rejected `offline.key` for a key that may not sign it."""
        allowed = self.root.roles["targets"].keyids
        for signer in signers:
            if signer.public_key.keyid not in allowed:
                raise Rejected(
                    "offline.key",
                    f"key {signer.public_key.keyid[:16]} is not a targets key of this repository",
                )
            self.targets.sign(signer, append=True)

    def check_files(self) -> None:
        """Raise Rejected `offline.file` unless every listed file is there as it was listed; OSError."""
        for path, listed in self.targets.signed.targets.items():
            if (
                hashlib.sha256((self.directory / "targets" / path).read_bytes()).hexdigest()
                != listed.hashes["sha256"]
            ):
                raise Rejected("offline.file", f"{path} is not the file that the list names")

    def rotate(
        self, roles: Mapping[str, RoleKeys], signers: Sequence[CryptoSigner], *, expires: float
    ) -> None:
        """Append the next root version, with these roles replaced.

        `signers` must hold a threshold of the old root keys and of the new ones. A list that the new root's
        keys have not signed becomes the next version, to be signed anew. Raises Rejected as `create` does,
        and `metadata.signatures`.
        """
        may_be_pushed = self.complete
        root = self.root
        root.version += 1
        root.expires = _time(expires)
        for name, role in roles.items():
            _set_role(root, name, role)
        raw = _signed_root(root, self.roots, signers)
        self.roots.append(raw)
        for keyid in [k for k in self.targets.signatures if k not in root.roles["targets"].keyids]:
            del self.targets.signatures[keyid]
        if may_be_pushed and not self.complete:
            self.targets.signed.version += 1
            self.targets.signatures.clear()

    def save(self) -> None:
        """Write what changed; the list last. Raises OSError."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for version, raw in enumerate(self.roots, self.root.version - len(self.roots) + 1):
            _replace(self.directory / f"{version}.root.json", raw)
        _replace(self.directory / "targets.json", self.targets.to_bytes())


def role_keys(root: Root, name: str) -> RoleKeys:
    """Return the keys and threshold of a role."""
    role = root.roles[name]
    return RoleKeys([_ssl_key(root, keyid) for keyid in role.keyids], role.threshold)


def _ssl_key(root: Root, keyid: str) -> SSlibKey:
    key = root.keys[keyid]
    assert isinstance(key, SSlibKey)  # noqa: S101  (contract.metadata lets nothing but Ed25519 pass)
    return key


def _set_role(root: Root, name: str, wanted: RoleKeys) -> None:
    if not 1 <= wanted.threshold <= len(wanted.keys):
        raise Rejected("offline.threshold", f"{name}: {wanted.threshold} of {len(wanted.keys)} keys")
    for keyid in list(root.roles[name].keyids) if name in root.roles else []:
        root.revoke_key(keyid, name)
    root.roles[name] = Role([], wanted.threshold)
    for key in wanted.keys:
        root.add_key(key, name)


def _signed_root(root: Root, before: Sequence[bytes], signers: Sequence[CryptoSigner]) -> bytes:
    metadata = Metadata(root)
    allowed = set(root.roles["root"].keyids)
    if before:
        allowed |= set(trusted_root(before[0], list(before[1:])).roles["root"].keyids)
    for signer in signers:
        if signer.public_key.keyid in allowed:
            metadata.sign(signer, append=True)
    raw = metadata.to_bytes()
    check_root(raw)
    chain = [*before, raw]
    trusted_root(chain[0], chain[1:])
    return raw


def _names(paths: Collection[str]) -> list[tuple[str, int]]:
    return [(match[1], int(match[2])) for path in paths if (match := _PATH.fullmatch(path))]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def expiry(now: float, days: int) -> float:
    """Return the time `days` after `now`, both in seconds since 1970."""
    return now + timedelta(days=days).total_seconds()


def _replace(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(path)
