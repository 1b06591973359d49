"""Merkle trees: the test vectors of RFC 6962's own reference implementation, and every proof of small trees."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.merkle import (
    EMPTY_ROOT,
    Subtree,
    inclusion_proof,
    leaf_hash,
    peaks_of,
    root_of,
    verify_inclusion,
)

INPUTS = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
"""Of Certificate Transparency's merkletree tests, with the roots over the first one, two, ... of them."""
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def subtree(leaves: list[bytes]) -> Subtree:
    return lambda begin, end: root_of(leaves[begin:end])


def test_roots_are_those_of_the_reference() -> None:
    leaves = [leaf_hash(each) for each in INPUTS]
    assert [root_of(leaves[: n + 1]).hex() for n in range(len(leaves))] == list(ROOTS)
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256().digest()


@pytest.mark.parametrize("size", range(1, 34))
def test_every_leaf_is_proved_and_no_other(size: int) -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(size)]
    root = root_of(leaves)
    for index, leaf in enumerate(leaves):
        proof = inclusion_proof(index, size, subtree(leaves))
        assert verify_inclusion(leaf, index, size, proof, root)
        assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, root)
        assert not verify_inclusion(leaf, index, size, [*proof, leaf], root)
        for other in range(size):
            if other != index:
                assert not verify_inclusion(leaf, other, size, proof, root)
        if proof:
            assert not verify_inclusion(leaf, index, size, proof[:-1], root)
            assert not verify_inclusion(leaf, index, size, [leaf, *proof[1:]], root) or proof[0] == leaf


@given(st.integers(0, 10**6))
def test_a_tree_is_whole_subtrees_side_by_side(size: int) -> None:
    peaks = peaks_of(size)
    assert sum(end - begin for begin, end in peaks) == size
    at = 0
    for begin, end in peaks:
        assert begin == at
        assert (end - begin).bit_count() == 1
        assert begin % (end - begin) == 0
        at = end


@pytest.mark.parametrize(("index", "size"), [(-1, 4), (4, 4), (0, 0)])
def test_an_index_outside_the_tree_is_no_proof(index: int, size: int) -> None:
    assert not verify_inclusion(leaf_hash(b""), index, size, [], EMPTY_ROOT)
