"""The controller's side of The Update Framework: takes in what people signed offline, adds freshness.

The controller holds one online key, for snapshot and timestamp. It can say which of the signed files are
the newest; it cannot sign a root, a targets file or a baseline. Nothing is signed or handed out here before
the same code that runs on the nodes (`contract.trust`) has accepted the whole result.

State is a mapping of file name to bytes that the store persists; nothing here reads a file or a clock,
except `read_bundle`, which the admin command calls on its own machine:

    metadata/N.root.json metadata/timestamp.json metadata/N.snapshot.json metadata/N.targets.json
    targets/<name>/<sha256>.<version>.toml

A node asks for METADATA_PATH/X where the key is `metadata/X`, TARGETS_PATH/Y where it is `targets/Y`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import Message
from contract.metadata import MAX_ROOT_BYTES, MAX_ROOT_ROTATIONS, MAX_TARGETS_BYTES, ONLINE_ROLES
from contract.trust import refresh, signed_targets, trusted_root
from contract.trusted import TrustedBaseline, VerifiedTargets, target_file, trusted_baseline
from contract.wire import decode_json
from controller.offline import OfflineRepository

MAX_BUNDLE_BYTES = 32 * 1024 * 1024
TIMESTAMP_LIFETIME = timedelta(days=1)
SNAPSHOT_LIFETIME = timedelta(days=7)
KEPT_SNAPSHOTS = 2
"""A node between two requests may still ask for the snapshot before the newest."""

_ROOT_KEY = re.compile(r"metadata/([1-9][0-9]{0,8})\.root\.json", re.ASCII)
_SNAPSHOT_KEY = re.compile(r"metadata/([1-9][0-9]{0,15})\.snapshot\.json", re.ASCII)
_TARGET_PATH = re.compile(r"([a-z0-9-]{1,63})/([0-9]{1,16})\.toml", re.ASCII)

State = Mapping[str, bytes]
_Root = Annotated[bytes, Meta(max_length=MAX_ROOT_BYTES)]
_File = Annotated[bytes, Meta(max_length=MAX_TARGETS_BYTES)]


class Bundle(Message, frozen=True, kw_only=True):
    """What `ringfence baseline push` uploads, as JSON: the public part of an offline repository."""

    root: Annotated[list[_Root], Meta(min_length=1, max_length=MAX_ROOT_ROTATIONS)]
    """root.json files, oldest first, without a gap."""
    targets: _File
    files: Annotated[dict[str, _File], Meta(max_length=10_000)]
    """Target path (`factory/3.toml`) -> content. Files that the controller has already may be left out."""


@dataclass(frozen=True, slots=True)
class NewMetadata:
    """What to store, in one transaction."""

    files: dict[str, bytes]
    """Put these into the state; empty when there is nothing new."""
    obsolete: tuple[str, ...]
    """Then remove these from it."""
    baselines: tuple[TrustedBaseline, ...]
    """Baselines that the state did not have before."""


class Repository:
    """The rules of the controller's TUF repository, for one online key."""

    def __init__(self, online_key: Ed25519PrivateKey) -> None:
        self._signer = CryptoSigner(online_key)

    def accept(self, untrusted_bundle: bytes, state: State, *, now: float) -> NewMetadata:
        """Verify a pushed bundle against the state and return what it adds. `now` is seconds since 1970.

        The very first bundle brings the root that is trusted from then on (an admin pushed it).

        1. `bundle.too-large`, `bundle.malformed`: size and exact form
        2. `bundle.other-root`: roots that we have are the same, word for word; `metadata.*`: each new one is
           signed by the one before it and by itself, and the newest is not expired
        3. `bundle.online-key`: that root lets this controller's key, alone, sign snapshot and timestamp
        4. `metadata.*`: targets signed by their threshold, not older than ours, not another of the same version
        5. `bundle.target-changed`: no signed version ever changes its content
        6. `bundle.missing-file`, `bundle.unlisted-file`, `baseline.*`: every listed file there and sound
        7. `metadata.*`: a node that knows the old state, and one that knows nothing, accept the new state
        """
        bundle = _bundle(untrusted_bundle)  # 1
        roots = _joined_roots(bundle.root, state)  # 2
        root = trusted_root(roots[min(roots)], [roots[v] for v in sorted(roots)[1:]], now=now)
        self._check_online_role(root)  # 3
        targets = signed_targets(root, bundle.targets)  # 4
        known = current_targets(state)
        _check_not_older(targets, known)
        new: dict[str, bytes] = {f"metadata/{version}.root.json": raw for version, raw in roots.items()}
        new[f"metadata/{targets.version}.targets.json"] = bundle.targets
        baselines = _new_baselines(targets, bundle.files, known, state)  # 5, 6
        for trusted in baselines:
            new[f"targets/{target_file(trusted.name, trusted.version, trusted.sha256)}"] = trusted.raw
        new = {name: raw for name, raw in new.items() if state.get(name) != raw}
        if not new:
            return NewMetadata({}, (), ())
        new |= self._signed({**state, **new}, targets.version, now)
        _check_as_node(roots, state, {**state, **new}, now)  # 7
        return NewMetadata(new, _obsolete({**state, **new}), baselines)

    def refresh(self, state: State, *, now: float) -> NewMetadata:
        """Return a fresh timestamp (and snapshot) if half of the old one's life is over, else nothing.

        Call it at start and every hour or so. Raises Rejected `bundle.online-key` when the newest root
        does not name this controller's key, `metadata.expired` when root or targets are.
        """
        known = current_targets(state)
        if known is None or not self._due(state, now):
            return NewMetadata({}, (), ())
        roots = _roots(state)
        root = trusted_root(roots[min(roots)], [roots[v] for v in sorted(roots)[1:]], now=now)
        self._check_online_role(root)
        new = self._signed(state, known.version, now)
        _check_as_node(roots, state, {**state, **new}, now)
        return NewMetadata(new, _obsolete({**state, **new}), ())

    def _check_online_role(self, root: Root) -> None:
        for name in ONLINE_ROLES:
            role = root.get_delegated_role(name)
            if role.threshold != 1 or self._signer.public_key.keyid not in role.keyids:
                raise Rejected(
                    "bundle.online-key",
                    f"root version {root.version}: role {name} is not this controller's online key, alone",
                )

    def _due(self, state: State, now: float) -> bool:
        timestamp = _timestamp(state)
        if timestamp is None:
            return True
        half = TIMESTAMP_LIFETIME / 2
        return (
            _time(now) >= timestamp.signed.expires - half or timestamp.signed.expires > _time(now) + 2 * half
        )

    def _signed(self, state: State, targets_version: int, now: float) -> dict[str, bytes]:
        """Return a new snapshot and timestamp. Versions follow the clock and always rise, so a database that
        was restored from last week is not behind what the nodes have seen for longer than it takes to sign."""
        old = _timestamp(state)
        last = 0 if old is None else max(old.signed.version, old.signed.snapshot_meta.version)
        version = max(last + 1, int(now))
        snapshot = Metadata(
            Snapshot(
                version, None, _time(now) + SNAPSHOT_LIFETIME, {"targets.json": MetaFile(targets_version)}
            )
        )
        snapshot.sign(self._signer)
        raw = snapshot.to_bytes()
        named = MetaFile.from_data(version, raw, ["sha256"])
        timestamp = Metadata(Timestamp(version, None, _time(now) + TIMESTAMP_LIFETIME, named))
        timestamp.sign(self._signer)
        return {f"metadata/{version}.snapshot.json": raw, "metadata/timestamp.json": timestamp.to_bytes()}


def latest_root(state: State) -> bytes:
    """Return the newest root.json, for EnrolApproved.root_metadata; empty before the first push."""
    roots = _roots(state)
    return roots[max(roots)] if roots else b""


def current_targets(state: State) -> VerifiedTargets | None:
    """Return the signed list of baselines in the state, None before the first push.

    Raises Rejected `metadata.*` when the state is damaged.
    """
    roots = _roots(state)
    timestamp = _timestamp(state)
    if not roots or timestamp is None:
        return None
    snapshot_raw = _wanted(state, f"metadata/{timestamp.signed.snapshot_meta.version}.snapshot.json")
    snapshot: Metadata[Snapshot] = Metadata.from_bytes(snapshot_raw)
    version = snapshot.signed.meta["targets.json"].version
    root = trusted_root(roots[min(roots)], [roots[v] for v in sorted(roots)[1:]])
    return signed_targets(root, _wanted(state, f"metadata/{version}.targets.json"))


def read_bundle(directory: Path) -> bytes:
    """Return the bundle of an offline repository (`ringfence keys new --out`), for a push.

    Raises Rejected `offline.no-repository` or `metadata.*` when it is not one, and `metadata.signatures`
    when a signature is still missing. Raises OSError.
    """
    offline = OfflineRepository.load(directory)
    raw_targets = offline.targets.to_bytes()
    targets = signed_targets(offline.root, raw_targets)
    files = {path: (offline.directory / "targets" / path).read_bytes() for path in targets.entries}
    return msgspec.json.encode(Bundle(root=offline.roots, targets=raw_targets, files=files))


def _bundle(untrusted: bytes) -> Bundle:
    if len(untrusted) > MAX_BUNDLE_BYTES:
        raise Rejected("bundle.too-large", f"{len(untrusted)} bytes, at most {MAX_BUNDLE_BYTES}")
    return decode_json(untrusted, Bundle, max_bytes=MAX_BUNDLE_BYTES, code="bundle.malformed")


def _joined_roots(untrusted: list[bytes], state: State) -> dict[int, bytes]:
    """Return version -> root: ours, and after them those of the bundle, without a gap."""
    known = _roots(state)
    first = trusted_root(untrusted[0], []).version
    joined = dict(known)
    for version, raw in enumerate(untrusted, first):
        if known.get(version, raw) != raw:
            raise Rejected(
                "bundle.other-root", f"root version {version} is not the one this controller trusts"
            )
        if version not in known and known and version < min(known):
            continue  # older than what we were first given: no use to anyone
        joined[version] = raw
    if known and first > max(known) + 1:
        raise Rejected("bundle.other-root", f"root versions {max(known) + 1} to {first - 1} are missing")
    return joined


def _check_not_older(targets: VerifiedTargets, known: VerifiedTargets | None) -> None:
    if known is None:
        return
    if targets.version < known.version:
        raise Rejected(
            "metadata.version", f"targets version {targets.version}, {known.version} is here already"
        )
    if targets.version == known.version and _content(targets.raw) != _content(known.raw):
        raise Rejected("metadata.version", f"another targets file of version {known.version} is here already")


def _content(raw: bytes) -> bytes:
    """Return what is signed, without the signatures: one more of them does not make it another file."""
    return Metadata[Targets].from_bytes(raw).signed_bytes


def _new_baselines(
    targets: VerifiedTargets, files: Mapping[str, bytes], known: VerifiedTargets | None, state: State
) -> tuple[TrustedBaseline, ...]:
    for path in files:
        if path not in targets.entries:
            raise Rejected("bundle.unlisted-file", f"{path[:128]!r} is not in the signed list")
    new = []
    for path, (_, sha256) in targets.entries.items():
        if known is not None and known.entries.get(path, (0, sha256))[1] != sha256:
            raise Rejected("bundle.target-changed", f"{path} was signed before with other content")
        match = _TARGET_PATH.fullmatch(path)
        if match is None:
            raise Rejected("bundle.malformed", f"target {path!r}")
        name, version = match[1], int(match[2])
        if f"targets/{target_file(name, version, sha256)}" in state:
            continue
        if path not in files:
            raise Rejected("bundle.missing-file", path)
        new.append(
            trusted_baseline(targets, WantedBaseline(name=name, version=version, sha256=sha256), files[path])
        )
    return tuple(new)


def _check_as_node(roots: Mapping[int, bytes], before: State, after: State, now: float) -> None:
    """Walk the new state as nodes will: one that followed the old state, and one that starts from the root."""

    def fetch(name: str, max_bytes: int) -> bytes | None:
        raw = after.get(f"metadata/{name}")
        if raw is not None and len(raw) > max_bytes:
            raise Rejected("metadata.too-large", f"{name}: {len(raw)} bytes, at most {max_bytes}")
        return raw

    followed = {f"{version}.root.json": raw for version, raw in _roots(before).items()}
    old = _timestamp(before)
    if old is not None:
        snapshot_raw = _wanted(before, f"metadata/{old.signed.snapshot_meta.version}.snapshot.json")
        followed |= {"timestamp.json": before["metadata/timestamp.json"], "snapshot.json": snapshot_raw}
    for kept in (followed, {}):
        refresh(roots[min(roots)], kept, fetch, _keep_nothing, now=now)


def _keep_nothing(name: str, content: bytes) -> None:
    """What a walk accepts is in the state already."""


def _obsolete(state: State) -> tuple[str, ...]:
    versions = sorted((int(m[1]), name) for name in state if (m := _SNAPSHOT_KEY.fullmatch(name)))
    return tuple(name for _, name in versions[:-KEPT_SNAPSHOTS])


def _roots(state: State) -> dict[int, bytes]:
    return {int(m[1]): raw for name, raw in state.items() if (m := _ROOT_KEY.fullmatch(name))}


def _timestamp(state: State) -> Metadata[Timestamp] | None:
    raw = state.get("metadata/timestamp.json")
    return None if raw is None else Metadata.from_bytes(raw)


def _wanted(state: State, name: str) -> bytes:
    raw = state.get(name)
    if raw is None:
        raise Rejected("metadata.missing", f"{name} is not in the store")
    return raw


def _time(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), UTC)
