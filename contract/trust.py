"""Which baseline files may be trusted: The Update Framework's client rules over bytes.

Bytes in, trusted objects out; signature before parse, both before use. Files and network are functions of
the caller, the clock is an argument, and nothing is handed out for keeping before it is accepted. The rules
themselves are python-tuf's (`TrustedMetadataSet`; TUF specification 1.0.34, section 5); this module adds
the order of the client workflow and what the specification leaves to the application:

* an exact schema before the library sees a byte, so unknown fields, wrong types and huge files end here;
* Ed25519 only, one key never under two key ids, and never one key both offline and online;
* no delegations, and `consistent_snapshot` always.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from contract.errors import Rejected
from contract.metadata import (
    MAX_ROOT_BYTES,
    MAX_ROOT_ROTATIONS,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    check_root,
    check_snapshot,
    check_targets,
    check_timestamp,
)
from contract.trusted import Proof, VerifiedTargets, verified_targets
from contract.wire import decode

Fetch = Callable[[str, int], bytes | None]
"""(file name, most bytes) -> content, or None when there is no such file. May raise OSError: try again."""
Keep = Callable[[str, bytes], None]
"""(file name, content): called for each metadata file once it is accepted, and never before."""

_MAX_PROOF_BYTES = MAX_TARGETS_BYTES + 1024


def refresh(
    anchor: bytes, kept: Mapping[str, bytes], fetch: Fetch, keep: Keep, *, now: float
) -> VerifiedTargets:
    """Follow the client workflow from a trusted root to the newest targets file (TUF specification, 5.3 to 5.6).

    `anchor` is the trusted root.json; `kept` holds what earlier calls handed to `keep`: `N.root.json`,
    `timestamp.json`, `snapshot.json`, `targets.json`. A kept file that does not verify is fetched anew.
    `now` is seconds since 1970.

    Raises Rejected `metadata.malformed`, `.too-large`, `.missing`, `.signatures`, `.version`, `.hash`,
    `.expired`, `.keys`, `.roles`; whatever `fetch` raises comes through.
    """
    trusted = _begin(anchor, now)
    _refresh_root(trusted, kept, fetch, keep)
    _refresh_timestamp(trusted, kept, fetch, keep)
    _refresh_snapshot(trusted, kept, fetch, keep)
    return _refresh_targets(trusted, kept, fetch, keep)


def targets_from_proof(anchor: bytes, kept: Mapping[str, bytes], untrusted_proof: bytes) -> VerifiedTargets:
    """Return the list that a kept proof shows, verified by the chain of kept roots that begins at `anchor`.

    Expiry is not looked at: a node that is offline holds to what was signed for it, for as long as it is
    offline. What is out of date is the controller's to replace, and freshness is asked of `refresh`.
    Raises Rejected as `refresh` does.
    """
    proof = decode(untrusted_proof, Proof, max_bytes=_MAX_PROOF_BYTES, code="metadata.malformed")
    trusted = _begin(anchor, 0.0)
    while trusted.root.version < proof.root_version:
        raw = kept.get(f"{trusted.root.version + 1}.root.json")
        if raw is None:
            raise Rejected("metadata.missing", f"root version {trusted.root.version + 1} is not kept")
        _update_root(trusted, raw)
    if trusted.root.version != proof.root_version:
        raise Rejected(
            "metadata.version",
            f"shown by root {proof.root_version}, older than the trusted {trusted.root.version}",
        )
    return signed_targets(trusted.root, proof.targets)


def trusted_root(anchor: bytes, later: list[bytes], *, now: float | None = None) -> Root:
    """Return the newest root of a chain: `anchor` is trusted, each of `later` by the one before it.

    With `now` (seconds since 1970) the newest must not be expired. Raises Rejected as `refresh` does.
    """
    trusted = _begin(anchor, now or 0.0)
    for raw in later:
        _update_root(trusted, raw)
    if now is not None and trusted.root.is_expired(trusted.reference_time):
        raise Rejected("metadata.expired", f"root version {trusted.root.version} is expired")
    return trusted.root


def signed_targets(root: Root, untrusted: bytes) -> VerifiedTargets:
    """Return the list in a targets file that a threshold of the root's targets keys has signed.

    Neither freshness nor expiry is checked here. Raises Rejected `metadata.malformed`, `.too-large`,
    `.signatures`.
    """
    check_targets(untrusted)
    with _verdicts("targets"):
        loaded: Metadata[Targets] = Metadata.from_bytes(untrusted)
        root.verify_delegate(Targets.type, loaded.signed_bytes, loaded.signatures)
    return _verified_targets(root, loaded.signed, untrusted)


def _begin(anchor: bytes, now: float) -> TrustedMetadataSet:
    check_root(anchor)
    with _verdicts("root"):
        trusted = TrustedMetadataSet(anchor, EnvelopeType.METADATA)
    trusted.reference_time = datetime.fromtimestamp(now, UTC)
    return trusted


def _update_root(trusted: TrustedMetadataSet, untrusted: bytes) -> None:
    check_root(untrusted)
    with _verdicts("root"):
        trusted.update_root(untrusted)


def _refresh_root(trusted: TrustedMetadataSet, kept: Mapping[str, bytes], fetch: Fetch, keep: Keep) -> None:
    """Section 5.3: every root from the trusted one on, one by one, until there is no newer."""
    for _ in range(MAX_ROOT_ROTATIONS):
        name = f"{trusted.root.version + 1}.root.json"
        if _kept_is_good(lambda raw: _update_root(trusted, raw), kept.get(name)):
            continue
        untrusted = fetch(name, MAX_ROOT_BYTES)
        if untrusted is None:
            return
        _update_root(trusted, untrusted)
        keep(name, untrusted)
    raise Rejected("metadata.version", f"more than {MAX_ROOT_ROTATIONS} root versions at once")


def _refresh_timestamp(
    trusted: TrustedMetadataSet, kept: Mapping[str, bytes], fetch: Fetch, keep: Keep
) -> None:
    """Section 5.4. A kept timestamp is loaded first, expired or not: it is the guard against rollback."""

    def update(untrusted: bytes) -> None:
        check_timestamp(untrusted)
        with _verdicts("timestamp"):
            trusted.update_timestamp(untrusted)

    _kept_is_good(update, kept.get("timestamp.json"))
    untrusted = _fetched(fetch, "timestamp.json", MAX_TIMESTAMP_BYTES)
    check_timestamp(untrusted)
    try:
        with _verdicts("timestamp"):
            trusted.update_timestamp(untrusted)
    except _SameVersion:
        return  # 5.4.3: an equal version is not an error, the one we have stays
    keep("timestamp.json", untrusted)


def _refresh_snapshot(
    trusted: TrustedMetadataSet, kept: Mapping[str, bytes], fetch: Fetch, keep: Keep
) -> None:
    """Section 5.5. A kept snapshot serves if the timestamp names it, else only as a guard against rollback."""

    def update(untrusted: bytes, *, accepted_before: bool = False) -> None:
        check_snapshot(untrusted)
        with _verdicts("snapshot"):
            trusted.update_snapshot(untrusted, trusted=accepted_before)

    if _kept_is_good(lambda raw: update(raw, accepted_before=True), kept.get("snapshot.json")):
        return
    version = trusted.timestamp.snapshot_meta.version
    untrusted = _fetched(fetch, f"{version}.snapshot.json", MAX_SNAPSHOT_BYTES)
    update(untrusted)
    keep("snapshot.json", untrusted)


def _refresh_targets(
    trusted: TrustedMetadataSet, kept: Mapping[str, bytes], fetch: Fetch, keep: Keep
) -> VerifiedTargets:
    """Section 5.6."""

    def update(untrusted: bytes) -> None:
        check_targets(untrusted)
        with _verdicts("targets"):
            trusted.update_targets(untrusted)

    raw = kept.get("targets.json")
    if raw is None or not _kept_is_good(update, raw):
        # Snapshot's schema holds exactly this one entry.
        version = trusted.snapshot.meta["targets.json"].version
        raw = _fetched(fetch, f"{version}.targets.json", MAX_TARGETS_BYTES)
        update(raw)
        keep("targets.json", raw)
    return _verified_targets(trusted.root, trusted.targets, raw)


def _verified_targets(root: Root, targets: Targets, raw: bytes) -> VerifiedTargets:
    entries = {path: (file.length, file.hashes["sha256"]) for path, file in targets.targets.items()}
    return verified_targets(root_version=root.version, version=targets.version, entries=entries, raw=raw)


def _kept_is_good(update: Callable[[bytes], None], raw: bytes | None) -> bool:
    """True if a kept file is still the current one; if not, for whatever reason, it is fetched."""
    if raw is None:
        return False
    try:
        update(raw)
    except Rejected:
        return False
    return True


def _fetched(fetch: Fetch, name: str, max_bytes: int) -> bytes:
    untrusted = fetch(name, max_bytes)
    if untrusted is None:
        raise Rejected("metadata.missing", f"the repository has no {name}")
    return untrusted


class _SameVersion(Rejected):
    """The file has the version that is trusted already."""


@contextmanager
def _verdicts(role: str) -> Generator[None]:
    """Turn the library's errors about bad input into ours; its other errors are bugs and stay."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise Rejected("metadata.expired", f"{role}: {error}") from None
    except UnsignedMetadataError as error:
        raise Rejected("metadata.signatures", f"{role}: {error}") from None
    except EqualVersionNumberError:
        raise _SameVersion("metadata.version", f"{role}: this version is trusted already") from None
    except BadVersionNumberError as error:
        raise Rejected("metadata.version", f"{role}: {error}") from None
    except LengthOrHashMismatchError as error:
        raise Rejected("metadata.hash", f"{role}: {error}") from None
    except RepositoryError as error:
        raise Rejected("metadata.malformed", f"{role}: {error}") from None
