"""Which blocks of the cache hold what: free ones, ones in use by sequences that begin alike, ones kept in case they are asked again.

A full block is named by a key that stands for everything before it too: the composition that computed it, its tokens, the key of the
block before. Two sequences with the same key therefore need the same keys and values, and nothing that was reloaded or renamed can be met
by accident.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_LEN = 32  # tokens


class BlockPool:
    """Blocks by number. A block in use has holders; one without holders is taken again last-used-last, its name forgotten then."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # the next to be taken first
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def num_idle(self) -> int:
        """Blocks that can be taken."""
        return len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the blocks in use."""
        return 1 - len(self._idle) / self.num_blocks

    def take(self, count: int) -> list[int] | None:
        """Hold so many blocks with nothing in them, or none at all."""
        if count > len(self._idle):
            return None
        blocks = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._num_holders[block] = 1
        return blocks

    def hold_known(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the blocks of these keys, up to the first that is not there."""
        found = []
        for key in keys:
            if (block := self._by_key.get(key)) is None:
                break
            self._idle.pop(block, None)
            self._num_holders[block] += 1
            found.append(block)
        return found

    def name(self, block: int, key: bytes) -> None:
        """Say what a full block holds; the first of equals keeps the name."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, the last first: a beginning is asked for again sooner than an end."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._idle[block] = None
                if block not in self._keys:
                    self._idle.move_to_end(block, last=False)

    def forget_all(self) -> None:
        """Drop every name; what is held stays held."""
        self._by_key.clear()
        self._keys.clear()

    def _forget(self, block: int) -> None:
        if (key := self._keys.pop(block, None)) is not None:
            del self._by_key[key]


def first_key(base_digest: str, composition_digest: str) -> bytes:
    """What the key of a sequence's first block is chained to."""
    return blake2b(f"{base_digest}/{composition_digest}".encode(), digest_size=16).digest()


def next_key(before: bytes, ids: Sequence[int]) -> bytes:
    """The key of a full block of these tokens after the block of key `before`."""
    return blake2b(before + b"".join(i.to_bytes(4, "little") for i in ids), digest_size=16).digest()
