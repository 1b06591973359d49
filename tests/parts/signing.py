"""A real offline signer and a real repository, in memory: what tests need to have trusted baselines.

kit = SigningKit(now=NOW)                     # keys and a root, targets threshold 1
kit.publish(BASELINE_TEXT, now=NOW)           # signed, pushed through controller.repository
wanted = kit.wanted("factory", 1)
updates = kit.updates(tmp_path)               # an agent's view, fetching from kit.state
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.updates import Updates
from contract.baseline import parse_baseline
from contract.directive import WantedBaseline
from contract.messages import METADATA_PATH, TARGETS_PATH
from contract.trusted import target_path
from controller.repository import Bundle, NewMetadata, Repository, latest_root

YEAR = timedelta(days=365)


def signer() -> CryptoSigner:
    """A new Ed25519 signer."""
    return CryptoSigner(Ed25519PrivateKey.generate())


def resigned(raw: bytes, change: Callable[[dict[str, Any]], object], *signers: CryptoSigner) -> bytes:
    """A metadata file whose `signed` part was changed, well signed by these over the changed content."""
    document = msgspec.json.decode(raw)
    change(document["signed"])
    payload = encode_canonical(document["signed"])
    assert payload is not None
    document["signatures"] = [one.sign(payload.encode()).to_dict() for one in signers]
    return msgspec.json.encode(document)


def minimal_baseline(name: str = "factory", version: int = 1, *, extra: str = "") -> bytes:
    """A baseline with a head and whatever `extra` adds."""
    return f'[baseline]\nname = "{name}"\nversion = {version}\nsummary = "for tests"\n{extra}'.encode()


class SigningKit:
    """Offline keys, online key, the offline files, and the controller's state."""

    def __init__(
        self,
        *,
        now: float,
        targets_keys: int = 1,
        targets_threshold: int = 1,
        online_key: Ed25519PrivateKey | None = None,
    ) -> None:
        """Make all keys, but for the controller's where a test has it already."""
        self.online_key = online_key or Ed25519PrivateKey.generate()
        self.online = CryptoSigner(self.online_key)
        self.root_signers = [signer()]
        self.targets_signers = [signer() for _ in range(targets_keys)]
        self.repository = Repository(self.online_key)
        self.state: dict[str, bytes] = {}
        self.root = Root(1, None, self.time(now) + YEAR)
        for role, signers, threshold in (
            ("root", self.root_signers, 1),
            ("targets", self.targets_signers, targets_threshold),
            ("snapshot", [self.online], 1),
            ("timestamp", [self.online], 1),
        ):
            self.root.roles[role] = Role([], threshold)
            for one in signers:
                self.root.add_key(one.public_key, role)
        self.roots = [self.signed(self.root, self.root_signers)]
        self.targets = Targets(1, None, self.time(now) + YEAR)
        self.files: dict[str, bytes] = {}

    @staticmethod
    def time(now: float) -> datetime:
        """Whole seconds, UTC."""
        return datetime.fromtimestamp(int(now), UTC)

    @staticmethod
    def signed(payload: Root | Targets, signers: Sequence[CryptoSigner]) -> bytes:
        """The metadata file, signed by all of these."""
        metadata = Metadata(payload)
        for one in signers:
            metadata.sign(one, append=True)
        return metadata.to_bytes()

    def rotate(self, change: Callable[[Root], None], *signers: CryptoSigner) -> None:
        """Make the next root version, changed by `change`, signed by the root keys and `signers`."""
        self.root.version += 1
        change(self.root)
        self.roots.append(self.signed(self.root, [*self.root_signers, *signers]))

    def add(self, raw: bytes, *, path: str | None = None) -> None:
        """List a file in the (not yet signed) targets."""
        if path is None:
            head = parse_baseline(raw).head
            path = target_path(head.name, head.version)
        self.targets.targets[path] = TargetFile.from_data(path, raw, ["sha256"])
        self.files[path] = raw

    def bundle(self, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        """The bundle of the offline files as they are now."""
        targets = self.signed(self.targets, self.targets_signers if signers is None else signers)
        return msgspec.json.encode(Bundle(root=self.roots, targets=targets, files=self.files))

    def push(self, bundle: bytes, *, now: float) -> NewMetadata:
        """Have the controller's repository take a bundle, and store what it says."""
        return self.store(self.repository.accept(bundle, self.state, now=now))

    def store(self, new: NewMetadata) -> NewMetadata:
        """Put new metadata into the state."""
        self.state |= new.files
        for name in new.obsolete:
            del self.state[name]
        return new

    def publish(self, *raws: bytes, now: float) -> NewMetadata:
        """Sign these baselines (as the next targets version) and push them."""
        if self.state:
            self.targets.version += 1
        for raw in raws:
            self.add(raw)
        return self.push(self.bundle(), now=now)

    def freshen(self, targets_version: int, version: int, *, now: float, days: float = 1) -> None:
        """Sign snapshot and timestamp by hand, as a controller could that does not keep to the rules."""
        expires = self.time(now) + timedelta(days=days)
        snapshot = Metadata(Snapshot(version, None, expires, {"targets.json": MetaFile(targets_version)}))
        snapshot.sign(self.online)
        self.state[f"metadata/{version}.snapshot.json"] = snapshot.to_bytes()
        timestamp = Metadata(Timestamp(version, None, expires, MetaFile(version)))
        timestamp.sign(self.online)
        self.state["metadata/timestamp.json"] = timestamp.to_bytes()

    def wanted(self, name: str, version: int) -> WantedBaseline:
        """The reference that a directive would carry."""
        sha256 = hashlib.sha256(self.files[target_path(name, version)]).hexdigest()
        return WantedBaseline(name=name, version=version, sha256=sha256)

    def fetch(self, path: str, max_bytes: int) -> bytes:
        """What the node listener would serve; the interface of `agent.updates.Fetch`."""
        for prefix, key in ((METADATA_PATH, "metadata"), (TARGETS_PATH, "targets")):
            if path.startswith(prefix + "/") and key + path[len(prefix) :] in self.state:
                return self.state[key + path[len(prefix) :]][: max_bytes + 1]
        raise FileNotFoundError(path)

    def updates(self, state_dir: Path) -> Updates:
        """An agent's view that begins at the newest root."""
        return Updates(state_dir, self.fetch, root_metadata=latest_root(self.state))
