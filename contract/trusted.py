"""What may be trusted, as types: the verified list of baselines, and a baseline that it names.

Apart from `contract.trust`, whose rules make the list, so that a program can hold what was verified without the library
that verified it: a node has a process of its own for that, which ends with the work (`agent.signedfiles`).

Refuses to make either in any other way than the functions that are named here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass

from contract.baseline import Baseline, parse_baseline
from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import Count, Message
from contract.wire import encode

_SEAL = object()


class Proof(Message, frozen=True):
    """What shows later, without a network, that a cached target was signed: the targets file and its root."""

    root_version: Count
    targets: bytes


@dataclass(frozen=True, slots=True)
class VerifiedTargets:
    """The signed list of baselines. Made only by `verified_targets`, after every check."""

    root_version: int
    version: int
    entries: Mapping[str, tuple[int, str]]
    """Target path -> (length in bytes, SHA-256 in hex)."""
    raw: bytes
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("VerifiedTargets is made by contract.trusted.verified_targets only")

    def proof(self) -> bytes:
        """Return what `targets_from_proof` needs to arrive at this list again."""
        return encode(Proof(root_version=self.root_version, targets=self.raw))


@dataclass(frozen=True, slots=True)
class TrustedBaseline:
    """A baseline whose every byte the offline keys have signed for. Made only by `trusted_baseline`."""

    name: str
    version: int
    sha256: str
    """Hex."""
    baseline: Baseline
    raw: bytes
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("TrustedBaseline is made by contract.trusted.trusted_baseline only")


def target_path(name: str, version: int) -> str:
    """Return the target path of a baseline: what the targets file lists."""
    return f"{name}/{version}.toml"


def target_file(name: str, version: int, sha256: str) -> str:
    """Return the file name it is served under (TUF specification, 5.7.3: consistent snapshots)."""
    return f"{name}/{sha256}.{version}.toml"


def verified_targets(
    *, root_version: int, version: int, entries: Mapping[str, tuple[int, str]], raw: bytes
) -> VerifiedTargets:
    """Return the list. For `contract.trust` after every check, and for who reads its words from a process of its own."""
    return VerifiedTargets(root_version=root_version, version=version, entries=entries, raw=raw, seal=_SEAL)


def trusted_baseline(
    targets: VerifiedTargets, wanted: WantedBaseline, untrusted_raw: bytes, *, highest_version: int = 0
) -> TrustedBaseline:
    """Return the wanted baseline, or raise Rejected. The only place where a TrustedBaseline is made.

    1. `baseline.rollback`: not older than the highest version of this name that was ever accepted
    2. `baseline.not-signed`: the signed list has it
    3. `baseline.digest`: the order means the same content as the signed list
    4. `baseline.digest`: the bytes are that content, in length and SHA-256 (TUF specification, 5.7.3)
    5. `baseline.*`: it parses; nothing looks inside before this point
    6. `baseline.head`: it says the name and version that it was signed under
    """
    if wanted.version < highest_version:  # 1
        raise Rejected(
            "baseline.rollback", f"{wanted.name} {wanted.version}, {highest_version} was accepted before"
        )
    path = target_path(wanted.name, wanted.version)
    if path not in targets.entries:  # 2
        raise Rejected("baseline.not-signed", f"{path} is not in the signed list, version {targets.version}")
    length, sha256 = targets.entries[path]
    if wanted.sha256 != sha256:  # 3
        raise Rejected("baseline.digest", f"{path}: signed {sha256}, ordered {wanted.sha256}")
    found = hashlib.sha256(untrusted_raw).hexdigest()
    if len(untrusted_raw) != length or found != sha256:  # 4
        raise Rejected("baseline.digest", f"{path}: signed {sha256}, received {found}")
    baseline = parse_baseline(untrusted_raw, file=path)  # 5
    if (baseline.head.name, baseline.head.version) != (wanted.name, wanted.version):  # 6
        raise Rejected("baseline.head", f"{path} says it is {baseline.head.name} {baseline.head.version}")
    return TrustedBaseline(
        name=wanted.name,
        version=wanted.version,
        sha256=sha256,
        baseline=baseline,
        raw=untrusted_raw,
        seal=_SEAL,
    )
