"""The exact form of The Update Framework's four metadata files, as Ringfence writes and reads them.

Stricter than the specification (1.0.34, section 4), which lets clients ignore unknown fields: what nobody
needs is refused. It verifies no signature; `contract.trust` calls it on every file before python-tuf sees
it, so that the library only ever meets well-typed input of bounded size.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, field, to_builtins

from contract.errors import Rejected
from contract.wire import decode_json

MAX_ROOT_BYTES = 65_536
MAX_TIMESTAMP_BYTES = 16_384
MAX_SNAPSHOT_BYTES = 16_384
MAX_TARGETS_BYTES = 4_194_304
MAX_ROOT_ROTATIONS = 256
MAX_SIGNATURES = 64

OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")

T = TypeVar("T")

_Version = Annotated[int, Meta(ge=1, le=2**53)]
_Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_KeyId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Time = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]
_Spec = Annotated[str, Meta(pattern=r"\A1\.0(\.[0-9]{1,4})?\Z")]
_Path = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/(0|[1-9][0-9]{0,15})\.toml\Z")]


class _Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Signature(_Strict, frozen=True):
    keyid: _KeyId
    sig: Annotated[str, Meta(pattern=r"\A([0-9a-f]{128})?\Z")]
    """Ed25519, hex; empty is how the specification marks a signature still to come."""


class _KeyValue(_Strict, frozen=True):
    public: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Key(_Strict, frozen=True):
    keytype: Literal["ed25519"]
    scheme: Literal["ed25519"]
    keyval: _KeyValue


class _Role(_Strict, frozen=True):
    keyids: Annotated[list[_KeyId], Meta(min_length=1, max_length=MAX_SIGNATURES)]
    threshold: Annotated[int, Meta(ge=1, le=MAX_SIGNATURES)]


class _Roles(_Strict, frozen=True):
    root: _Role
    targets: _Role
    snapshot: _Role
    timestamp: _Role


class _Hashes(_Strict, frozen=True):
    sha256: _Sha256


class _Target(_Strict, frozen=True):
    length: Annotated[int, Meta(ge=0, le=MAX_TARGETS_BYTES)]
    hashes: _Hashes


class _Named(_Strict, frozen=True):
    version: _Version
    length: Annotated[int, Meta(ge=0, le=MAX_TARGETS_BYTES)] | UnsetType = UNSET
    hashes: _Hashes | UnsetType = UNSET


class _SnapshotMeta(_Strict, frozen=True):
    targets: _Named = field(name="targets.json")


class _TimestampMeta(_Strict, frozen=True):
    snapshot: _Named = field(name="snapshot.json")


class _Signed(_Strict, frozen=True):
    version: _Version
    spec_version: _Spec
    expires: _Time


class _Root(_Signed, frozen=True):
    type: Literal["root"] = field(name="_type")
    consistent_snapshot: bool
    keys: Annotated[dict[_KeyId, _Key], Meta(max_length=MAX_SIGNATURES)]
    roles: _Roles


class _Timestamp(_Signed, frozen=True):
    type: Literal["timestamp"] = field(name="_type")
    meta: _TimestampMeta


class _Snapshot(_Signed, frozen=True):
    type: Literal["snapshot"] = field(name="_type")
    meta: _SnapshotMeta


class _Targets(_Signed, frozen=True):
    type: Literal["targets"] = field(name="_type")
    targets: Annotated[dict[_Path, _Target], Meta(max_length=10_000)]


class _RootFile(_Strict, frozen=True):
    signed: _Root
    signatures: Annotated[list[_Signature], Meta(max_length=MAX_SIGNATURES)]


class _TimestampFile(_Strict, frozen=True):
    signed: _Timestamp
    signatures: Annotated[list[_Signature], Meta(max_length=MAX_SIGNATURES)]


class _SnapshotFile(_Strict, frozen=True):
    signed: _Snapshot
    signatures: Annotated[list[_Signature], Meta(max_length=MAX_SIGNATURES)]


class _TargetsFile(_Strict, frozen=True):
    signed: _Targets
    signatures: Annotated[list[_Signature], Meta(max_length=MAX_SIGNATURES)]


def check_root(untrusted: bytes) -> None:
    """Raise Rejected unless these bytes have the form of a root that Ringfence can trust.

    `metadata.too-large`, `metadata.malformed`: form. `metadata.keys`: a role names a key that is not there,
    or one public key stands under two ids and would be counted twice. `metadata.roles`: a key of the
    controller (snapshot, timestamp) may also sign root or targets, so a stolen controller could write rules.
    """
    root = _parsed(untrusted, _RootFile, MAX_ROOT_BYTES, "root").signed
    if not root.consistent_snapshot:
        raise Rejected("metadata.malformed", "root: consistent_snapshot is false")
    publics = [key.keyval.public for key in root.keys.values()]
    if len(set(publics)) != len(publics):
        raise Rejected("metadata.keys", "root: one public key under two key ids")
    roles = {name: set(getattr(root.roles, name).keyids) for name in (*OFFLINE_ROLES, *ONLINE_ROLES)}
    for name, keyids in roles.items():
        if not keyids <= root.keys.keys():
            raise Rejected("metadata.keys", f"root: role {name} names a key that is not listed")
    if (roles["root"] | roles["targets"]) & (roles["snapshot"] | roles["timestamp"]):
        raise Rejected("metadata.roles", "root: one key both offline (root, targets) and online")


def check_timestamp(untrusted: bytes) -> None:
    """Raise Rejected `metadata.too-large` or `metadata.malformed` unless it has the form of a timestamp."""
    _parsed(untrusted, _TimestampFile, MAX_TIMESTAMP_BYTES, "timestamp")


def check_snapshot(untrusted: bytes) -> None:
    """Raise Rejected `metadata.too-large` or `metadata.malformed` unless it has the form of a snapshot."""
    _parsed(untrusted, _SnapshotFile, MAX_SNAPSHOT_BYTES, "snapshot")


def check_targets(untrusted: bytes) -> None:
    """Raise Rejected `metadata.too-large` or `metadata.malformed` unless it has the form of a targets file.

    The form has no delegations, and every path is `<name>/<version>.toml`.
    """
    _parsed(untrusted, _TargetsFile, MAX_TARGETS_BYTES, "targets")


def _parsed(untrusted: bytes, kind: type[T], max_bytes: int, role: str) -> T:
    if len(untrusted) > max_bytes:
        raise Rejected("metadata.too-large", f"{role}: {len(untrusted)} bytes, at most {max_bytes}")
    try:
        parsed = decode_json(untrusted, kind, max_bytes=max_bytes, code="metadata.malformed")
    except Rejected as error:
        raise Rejected(error.code, f"{role}: {error.detail}") from None
    # python-tuf parses the same bytes with another parser. What passed here must be what it will see.
    try:
        seen_by_tuf = json.loads(untrusted, object_pairs_hook=_each_key_once)
    except ValueError as error:
        raise Rejected("metadata.malformed", f"{role}: {error}") from None
    if seen_by_tuf != to_builtins(parsed):
        raise Rejected("metadata.malformed", f"{role}: two readings of one file")
    return parsed


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
