"""Keys and values of running sequences, in blocks of one pool per layer; and the attention that reads them."""

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.inference.sequence import Sequence
from lorimer.model.attention import AttentionOptions, causal_mask, scaled_dot_product
from lorimer.model.base import Base

BLOCK_LEN = 32  # tokens


class KVCache:
    """A pool of blocks. Each layer's tensors are made when the layer first asks, in the shape it asks for, so any architecture fits."""

    def __init__(self, num_tokens: int) -> None:
        self.num_blocks = max(1, num_tokens // BLOCK_LEN)
        self.free_blocks = list(range(self.num_blocks))
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values (slots, G, D)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // BLOCK_LEN)

    def allocate(self, sequence: Sequence) -> bool:
        """Reserve all a sequence may grow to; False if the pool has not enough left."""
        wanted = self.num_blocks_for(sequence.max_len)
        if wanted > len(self.free_blocks):
            return False
        sequence.blocks = [self.free_blocks.pop() for _ in range(wanted)]
        return True

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's blocks back."""
        self.free_blocks += sequence.blocks
        sequence.blocks = []

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep key and value (T, G, D) at slots (T); returns the layer's pools (slots, G, D)."""
        if layer not in self.layers:
            shape = (self.num_blocks * BLOCK_LEN, *key.shape[1:])
            self.layers[layer] = key.new_empty(shape), value.new_empty((shape[0], *value.shape[1:]))
        keys, values = self.layers[layer]
        keys[slots], values[slots] = key, value
        return keys, values


def num_tokens_that_fit(base: Base, num_bytes: int) -> int:
    """Tokens whose keys and values fit in so many bytes."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * base.num_layers * heads * width * base.head.weight.element_size()
    return max(BLOCK_LEN, num_bytes // int(bytes_per_token))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step computes of one sequence: the tokens from `start` to `stop`."""

    sequence: Sequence
    start: int
    stop: int


class CachedSegments:
    """The step's tokens, sequence after sequence, each attending to its own cache. One-token works share one padded call."""

    def __init__(self, cache: KVCache, works: ListOf[Work], device: torch.device) -> None:
        self.cache = cache
        slots = [_slots(work.sequence, work.stop, device) for work in works]  # all places of each sequence
        self.new_slots = torch.cat([own[work.start :] for own, work in zip(slots, works, strict=True)])  # (T)
        self.prefills, singles, row = [], [], 0
        for own, work in zip(slots, works, strict=True):
            if work.stop - work.start == 1:
                singles.append((row, own))
            else:
                self.prefills.append((slice(row, row + work.stop - work.start), own))
            row += work.stop - work.start
        self.single_rows = torch.tensor([row for row, _ in singles], dtype=torch.long, device=device)  # (S)
        self.single_lens = torch.tensor([len(own) for _, own in singles], device=device)  # (S)
        longest = max((len(own) for _, own in singles), default=0)
        # padded with places of their own: a masked place still meets the product, and only written memory is surely finite
        padded = [torch.cat([own, own[:1].expand(longest - len(own))]) for _, own in singles]
        self.single_slots = torch.stack(padded) if padded else None  # (S, K)

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `lorimer.model.attention.Segments.attend`."""
        keys, values = self.cache.write(layer_index, self.new_slots, key, value)
        output = torch.empty((*query.shape[:2], values.shape[2]), dtype=query.dtype, device=query.device)
        for rows, slots in self.prefills:
            q = query[rows].transpose(0, 1)[None]  # (1, H, Q, D)
            k, v = (pool.index_select(0, slots).transpose(0, 1)[None] for pool in (keys, values))  # (1, G, K, D)
            whole = q.shape[2] == k.shape[2] and not options.sliding_window
            mask = None if whole else causal_mask(q.shape[2], k.shape[2], options.sliding_window, query.device)
            output[rows] = scaled_dot_product(q, k, v, mask, options)[0].transpose(0, 1)
        if self.single_slots is not None:
            output[self.single_rows] = self._attend_singles(query[self.single_rows], keys, values, options)
        return output

    def _attend_singles(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        """query (S, H, D), the newest token of each sequence -> (S, H, D)."""
        assert self.single_slots is not None
        places = torch.arange(self.single_slots.shape[1], device=query.device)[None]  # (1, K)
        visible = places < self.single_lens[:, None]  # (S, K)
        if options.sliding_window:
            visible &= places >= self.single_lens[:, None] - options.sliding_window
        k, v = (pool[self.single_slots].transpose(1, 2) for pool in (keys, values))  # (S, G, K, D)
        return scaled_dot_product(query[:, :, None], k, v, visible[:, None, None], options)[:, :, 0]


def _slots(sequence: Sequence, stop: int, device: torch.device) -> Tensor:
    """Where the first `stop` tokens of a sequence lie in the pool."""
    places = torch.arange(stop, device=device)
    blocks = torch.tensor(sequence.blocks, device=device)
    return blocks[places // BLOCK_LEN] * BLOCK_LEN + places % BLOCK_LEN
