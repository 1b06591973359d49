"""The audit log: one line for each act, chained and countable, and what an auditor can check without us. Pure.

A line is JSON (RFC 8259) with sorted keys and no spaces, in exactly the bytes that are hashed: the leaf hash of RFC 9162.
Each line holds its number (from 1, without gaps) and the leaf hash of the line before, so an edit, a cut, a swap or a
repeat shows by reading on; the Merkle root over all of them, signed now and then (`contract.checkpoint`), shows what
was cut off at the end or written anew from the beginning.

Refuses: lines that are not exactly what this module writes. Relies on msgspec to write a float in one way only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from contract.checkpoint import Checkpoint, LogKey, verify_checkpoint
from contract.errors import Rejected
from contract.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PROOF_HASHES, leaf_hash, root_of, verify_inclusion

MAX_LINE_BYTES: Final = 64 * 1024
MAX_PROOF_BYTES: Final = 128 * 1024
NO_LINE: Final = "0" * 64
"""What the first line names as the one before it."""


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One act: who did what to what, why and when (seconds since 1970)."""

    number: int
    at: float
    actor: str
    act: str
    target: str
    reason: str
    previous: str
    """Leaf hash of the line before, hexadecimal."""


class Proof(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line, the path from it to the root, and the signed checkpoint that has this root."""

    line: str
    number: int
    path: list[str]
    """Sibling hashes in base64, nearest first."""
    checkpoint: str


class Trail(Struct, frozen=True, kw_only=True):
    """What a whole log turned out to be."""

    entries: int
    root: bytes
    first_at: float | None
    last_at: float | None
    checkpoints: int
    """How many signed checkpoints it was held against."""
    covered: int
    """So many entries are covered by a checkpoint; those after it rest on the chain alone."""


def encode_entry(entry: Entry) -> bytes:
    """Return the line, without a newline."""
    return msgspec.json.encode(entry, order="sorted")


def decode_entry(untrusted: bytes) -> Entry:
    """Parse one line. Raises Rejected `audit.malformed`: also for another way to write the same."""
    if len(untrusted) > MAX_LINE_BYTES:
        raise Rejected("audit.malformed", f"{len(untrusted)} bytes, at most {MAX_LINE_BYTES}")
    try:
        entry = msgspec.json.decode(untrusted, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected("audit.malformed", str(error)) from None
    if encode_entry(entry) != untrusted:
        raise Rejected("audit.malformed", "not in the form that is hashed: it was written by something else")
    return entry


def verify_trail(
    untrusted_lines: Iterable[bytes], key: LogKey, untrusted_checkpoints: Sequence[bytes]
) -> Trail:
    """Verify a whole log, from its first line on, against every checkpoint that was kept of it.

    1. every line is in the form that is hashed (`audit.malformed`)
    2. numbers run from 1 without a gap (`audit.number`): cut, re-ordered or repeated lines
    3. each names the line before it (`audit.chain`): an edited line shows at the next
    4. there is at least one checkpoint (`audit.no-checkpoint`), each signed by the log's key (`checkpoint.*`)
    5. no checkpoint has seen more than there is (`audit.cut`)
    6. at the size of each checkpoint the root is the one it names (`audit.root`): an edit anywhere, the last line included

    Raises Rejected with those codes and the line's number.
    """
    if not untrusted_checkpoints:  # 4
        raise Rejected("audit.no-checkpoint", "without one nobody can tell whether the end was cut off")
    checkpoints = [verify_checkpoint(note, key) for note in untrusted_checkpoints]
    leaves: list[bytes] = []
    previous, first_at, last_at = NO_LINE, None, None
    for number, untrusted in enumerate(untrusted_lines, 1):
        try:
            entry = decode_entry(untrusted)  # 1
        except Rejected as rejected:
            raise Rejected(rejected.code, f"line {number}: {rejected.detail}") from None
        if entry.number != number:  # 2
            raise Rejected("audit.number", f"line {number}: it says it is number {entry.number}")
        if entry.previous != previous:  # 3
            raise Rejected(
                "audit.chain", f"line {number}: the line before it is not the one it was written after"
            )
        leaf = leaf_hash(untrusted)
        leaves.append(leaf)
        previous = leaf.hex()
        first_at, last_at = entry.at if first_at is None else first_at, entry.at
    for checkpoint in checkpoints:
        if checkpoint.size > len(leaves):  # 5
            raise Rejected(
                "audit.cut", f"a checkpoint of {checkpoint.size} entries is signed, here are {len(leaves)}"
            )
        if root_of(leaves[: checkpoint.size]) != checkpoint.root:  # 6
            raise Rejected(
                "audit.root", f"the first {checkpoint.size} entries are not those that were signed"
            )
    return Trail(
        entries=len(leaves),
        root=root_of(leaves) if leaves else EMPTY_ROOT,
        first_at=first_at,
        last_at=last_at,
        checkpoints=len(checkpoints),
        covered=max(checkpoint.size for checkpoint in checkpoints),
    )


def verify_proof(untrusted: bytes, key: LogKey) -> tuple[Entry, Checkpoint]:
    """Verify that one line is in the log; return it with the checkpoint.

    1. size and form (`audit.proof`), 2. the checkpoint is signed (`checkpoint.*`), 3. the line is an entry
    (`audit.malformed`) of the number that the proof is about (`audit.number`), 4. the path leads to the signed root
    (`audit.root`). Raises Rejected with those codes.
    """
    if len(untrusted) > MAX_PROOF_BYTES:  # 1
        raise Rejected("audit.proof", f"{len(untrusted)} bytes, at most {MAX_PROOF_BYTES}")
    try:
        proof = msgspec.json.decode(untrusted, type=Proof)
        path = [base64.b64decode(each, validate=True) for each in proof.path]
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise Rejected("audit.proof", str(error)) from None
    if len(path) > MAX_PROOF_HASHES or any(len(each) != HASH_BYTES for each in path):
        raise Rejected("audit.proof", "the path is not one of hashes")
    checkpoint = verify_checkpoint(proof.checkpoint.encode(), key)  # 2
    line = proof.line.encode()
    entry = decode_entry(line)  # 3
    if entry.number != proof.number:
        raise Rejected("audit.number", f"the proof is about {proof.number}, the line says {entry.number}")
    if not verify_inclusion(leaf_hash(line), entry.number - 1, checkpoint.size, path, checkpoint.root):  # 4
        raise Rejected(
            "audit.root", "the path does not lead to the signed root: this line is not in that log"
        )
    return entry, checkpoint
