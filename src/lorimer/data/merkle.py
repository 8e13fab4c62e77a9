"""Merkle trees as in RFC 6962, section 2.1: one digest for many, and proofs that one of them is among the many."""

import hashlib
from collections.abc import Iterable, Sequence


def root(leaves: Iterable[bytes]) -> bytes:
    """The digest over all leaves in order; memory for one branch only, however many leaves."""
    stack: list[tuple[int, bytes]] = []  # full subtrees, each smaller than the one before
    for leaf in leaves:
        size, digest = 1, leaf_digest(leaf)
        while stack and stack[-1][0] == size:
            size, digest = 2 * size, _node(stack.pop()[1], digest)
        stack.append((size, digest))
    if not stack:
        return hashlib.sha256().digest()
    _, digest = stack.pop()
    while stack:
        digest = _node(stack.pop()[1], digest)
    return digest


def leaf_digest(leaf: bytes) -> bytes:
    """A leaf and a node can never have the same digest: each begins with its own byte."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The digests beside the way from a leaf up to the root (the RFC's audit path, 2.1.1)."""
    if len(leaves) <= 1:
        return []
    half = _half(len(leaves))
    if index < half:
        return [*proof(leaves[:half], index), root(leaves[half:])]
    return [*proof(leaves[half:], index - half), root(leaves[:half])]


def verify_proof(leaf: bytes, index: int, num_leaves: int, path: Sequence[bytes], expected: bytes) -> bool:
    """Whether a path leads from this leaf, at this place of so many, to the expected root (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < num_leaves:
        return False
    at, last, digest = index, num_leaves - 1, leaf_digest(leaf)
    for beside in path:
        if last == 0:
            return False
        if at % 2 or at == last:
            digest = _node(beside, digest)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            digest = _node(digest, beside)
        at, last = at >> 1, last >> 1
    return last == 0 and digest == expected


def _half(num: int) -> int:
    """The largest power of two below `num`."""
    return int(1 << ((num - 1).bit_length() - 1))


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
