"""Roots and proofs are RFC 6962's; a proof holds for its own leaf and place alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.merkle import proof, root, verify_proof

# the leaves and roots of the reference implementation's tests (certificate-transparency, merkletree/merkle_tree_test.cc)
LEAVES = [
    bytes.fromhex(leaf) for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("num", list(ROOTS))
def test_roots_are_those_of_the_reference(num: int) -> None:
    assert root(LEAVES[:num]).hex() == ROOTS[num]


def test_root_of_nothing_is_the_digest_of_nothing() -> None:
    assert root([]) == hashlib.sha256().digest()


leaves = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


@given(leaves, st.data())
def test_every_leaf_can_be_proven_and_no_other(found: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(found) - 1))
    path, expected = proof(found, index), root(found)
    assert verify_proof(found[index], index, len(found), path, expected)
    assert not verify_proof(found[index] + b"x", index, len(found), path, expected)
    assert not verify_proof(found[index], index, len(found), [*path, b"\0" * 32], expected)
    if path:
        assert not verify_proof(found[index], index, len(found), path[:-1], expected)
    assert not verify_proof(found[index], len(found), len(found), path, expected)


@given(leaves, leaves)
def test_different_leaves_have_different_roots(left: list[bytes], right: list[bytes]) -> None:
    assert (root(left) == root(right)) == (left == right)
