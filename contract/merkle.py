"""Merkle trees over a list of byte strings, as transparency logs have them. Pure.

RFC 9162, clause 2.1: leaves and inner nodes are hashed under different prefixes, a tree of n leaves is split at the
largest power of two below n. Refuses nothing by itself: `verify_inclusion` says yes or no.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_PROOF_HASHES: Final = 64

Subtree = Callable[[int, int], bytes]
"""The root over the leaves from `begin` (inclusive) to `end` (exclusive), for a whole subtree: its size is a power of
two and `begin` a multiple of it."""


def leaf_hash(content: bytes) -> bytes:
    """Return the hash of a leaf (clause 2.1.1)."""
    return hashlib.sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (clause 2.1.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root over these leaf hashes."""
    peaks: list[tuple[int, bytes]] = []
    for leaf in leaves:
        height, top = 0, leaf
        while peaks and peaks[-1][0] == height:
            top = node_hash(peaks.pop()[1], top)
            height += 1
        peaks.append((height, top))
    return fold([top for _, top in peaks])


def fold(peaks: Sequence[bytes]) -> bytes:
    """Return the root over whole subtrees of falling size."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def peaks_of(size: int) -> list[tuple[int, int]]:
    """Return the whole subtrees that a tree of `size` leaves consists of, as (begin, end), largest first."""
    found, begin = [], 0
    for height in range(size.bit_length() - 1, -1, -1):
        if size >> height & 1:
            found.append((begin, begin + (1 << height)))
            begin += 1 << height
    return found


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves, nearest sibling first (clause 2.1.3.1)."""
    return _path(index, 0, size, subtree)


def _path(index: int, begin: int, end: int, subtree: Subtree) -> list[bytes]:
    if end - begin == 1:
        return []
    middle = begin + _split(end - begin)
    if index < middle:
        return [*_path(index, begin, middle, subtree), _over(middle, end, subtree)]
    return [*_path(index, middle, end, subtree), _over(begin, middle, subtree)]


def _over(begin: int, end: int, subtree: Subtree) -> bytes:
    return fold([subtree(begin + first, begin + last) for first, last in peaks_of(end - begin)])


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Say whether `proof` shows the leaf at `index` of the tree of `size` leaves with this root (clause 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_PROOF_HASHES:
        return False
    here, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if here & 1 or here == last:
            found = node_hash(sibling, found)
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        here, last = here >> 1, last >> 1
    return last == 0 and found == root
