"""Keys and values of running sequences, in blocks of one pool per layer; and the attention that reads them."""

import math
from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorimer.inference.blocks import BLOCK_LEN, BlockPool
from lorimer.inference.compiled_product import MAX_ROWS
from lorimer.inference.few_rows import FewRows
from lorimer.inference.kernels import Kernels
from lorimer.inference.sequence import Sequence
from lorimer.model.attention import AttentionOptions, causal_mask, scaled_dot_product
from lorimer.model.base import Base

MAX_MEETINGS = 6_000  # of a query and a key, in short prompts: beyond, torch's products are faster than a row after the other


class KVCache:
    """A pool of blocks. Each layer's tensors are made when the layer first asks, in the shape it asks for, so any architecture fits."""

    def __init__(self, num_tokens: int) -> None:
        self.blocks = BlockPool(max(1, num_tokens // BLOCK_LEN))
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values (G, blocks, BLOCK_LEN, D)

    @property
    def num_tokens(self) -> int:
        """It holds."""
        return self.blocks.num_blocks * BLOCK_LEN

    def pools(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's pools, for keys and values (T, G, D) like these."""
        if layer not in self.layers:
            size = self.blocks.num_blocks, BLOCK_LEN
            self.layers[layer] = _zeros(key, (key.shape[1], *size, key.shape[2])), _zeros(value, (value.shape[1], *size, value.shape[2]))
        return self.layers[layer]

    def wipe(self, blocks: ListOf[int], start: int, stop: int) -> None:
        """Forget what a sequence with these blocks kept of its tokens from `start` to `stop`."""
        places = torch.tensor([blocks[at // BLOCK_LEN] * BLOCK_LEN + at % BLOCK_LEN for at in range(start, stop)])
        for pools in self.layers.values():
            for pool in pools:
                pool.flatten(1, 2).index_fill_(1, places.to(pool.device), 0)


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros, since a masked place still meets the product; on a CPU of pages that take no memory until they are written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(like.dtype).view(shape)


def num_blocks_for(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_LEN)


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

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return self.stop - self.start


def _are_few(works: ListOf[Work]) -> bool:
    """Whether a step's tokens are few enough to attend to their sequences one by one; those that decode always are."""
    prefills = [work for work in works if work.num_tokens > 1]
    return not prefills or (
        sum(work.num_tokens for work in works) <= MAX_ROWS and sum(work.num_tokens * work.stop for work in prefills) <= MAX_MEETINGS
    )


def _rows_of(works: ListOf[Work], kernels: Kernels) -> FewRows:
    tables = [work.sequence.blocks[: num_blocks_for(work.stop)] for work in works for _ in range(work.num_tokens)]
    return FewRows(kernels, tables, [at + 1 for work in works for at in range(work.start, work.stop)])


class CachedSegments:
    """A step's tokens, sequence after sequence, each attending to its own cache. One-token works come first and share padded calls."""

    def __init__(self, cache: KVCache, works: ListOf[Work], device: torch.device, kernels: Kernels | None = None) -> None:
        self.cache, self.device = cache, device
        self.num_singles = next((i for i, work in enumerate(works) if work.num_tokens > 1), len(works))
        assert all(work.num_tokens > 1 for work in works[self.num_singles :]), "one-token works come first"
        places, self.prefills, row = list[int](), list[tuple[slice, int, list[int]]](), self.num_singles
        for work in works:
            blocks = work.sequence.blocks
            places += [blocks[at // BLOCK_LEN] * BLOCK_LEN + at % BLOCK_LEN for at in range(work.start, work.stop)]
        for work in works[self.num_singles :]:
            self.prefills.append((slice(row, row + work.num_tokens), work.stop, work.sequence.blocks[: num_blocks_for(work.stop)]))
            row += work.num_tokens
        self.places = torch.tensor(places, device=device)  # (T), where each token lies in the pool
        singles = works[: self.num_singles]
        self.tables = [work.sequence.blocks[: num_blocks_for(work.stop)] for work in singles]
        self.lens = torch.tensor([work.stop for work in singles], device=device)  # (S)
        self.few = None if kernels is None or not _are_few(works) else _rows_of(works, kernels)
        """The compiled attention, where it is the faster."""
        self._views: dict[int | None, tuple[Tensor, Tensor]] = {}

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `lorimer.model.attention.Segments.attend`."""
        keys, values = self.cache.pools(layer_index, key, value)
        keys.flatten(1, 2).index_copy_(1, self.places, key.transpose(0, 1))
        values.flatten(1, 2).index_copy_(1, self.places, value.transpose(0, 1))
        output = query.new_empty(*query.shape[:2], value.shape[2])
        if self.num_singles:
            output[: self.num_singles] = self._attend_singles(query[: self.num_singles], keys, values, options)
        for rows, stop, blocks in self.prefills:
            output[rows] = self._attend_prefill(query[rows], keys, values, stop, blocks, options)
        return output

    def _attend_prefill(
        self, query: Tensor, keys: Tensor, values: Tensor, stop: int, blocks: list[int], options: AttentionOptions
    ) -> Tensor:
        """query (Q, H, D), the last of a sequence's first `stop` tokens -> (Q, H, D)."""
        taken = torch.tensor(blocks, device=self.device)
        k, v = (pool.index_select(1, taken).flatten(1, 2)[None, :, :stop] for pool in (keys, values))  # (1, G, K, D)
        q = query.transpose(0, 1)[None]  # (1, H, Q, D)
        window = options.sliding_window if options.sliding_window and options.sliding_window < stop else None
        is_whole = q.shape[2] == stop and window is None
        mask = None if is_whole else causal_mask(q.shape[2], stop, window, self.device)
        return scaled_dot_product(q, k, v, mask, options)[0].transpose(0, 1)

    def _attend_singles(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        """query (S, H, D), the newest token of each sequence -> (S, H, D): every group's heads meet its keys in one product."""
        blocks, hidden = self._view(options.sliding_window)
        num_groups, num_rows = keys.shape[0], query.shape[0]
        k, v = (pool.index_select(1, blocks).view(num_groups * num_rows, -1, pool.shape[3]) for pool in (keys, values))  # (G S, K, D)
        q = query.view(num_rows, num_groups, -1, query.shape[2]).transpose(0, 1).reshape(num_groups * num_rows, -1, query.shape[2])
        scores = torch.bmm(q, k.transpose(1, 2)).float()  # (G S, R, K)
        scores *= options.scaling
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        scores = scores.view(num_groups, num_rows, -1, k.shape[1]).add_(hidden)
        mixed = torch.bmm(scores.softmax(-1).to(v.dtype).view(num_groups * num_rows, -1, k.shape[1]), v)  # (G S, R, D)
        return mixed.view(num_groups, num_rows, -1, v.shape[2]).transpose(0, 1).reshape(num_rows, -1, v.shape[2])

    def _view(self, window: int | None) -> tuple[Tensor, Tensor]:
        """The blocks (S x N) that layers of this window read, and what is added to scores (S, 1, K) to hide places."""
        if window not in self._views:
            reach = [0 if not window else max(0, (stop - window) // BLOCK_LEN) for stop in self.lens.tolist()]  # blocks out of sight
            seen = [table[first:] for table, first in zip(self.tables, reach, strict=True)]
            width = max(len(table) for table in seen)
            padded = torch.tensor([table + table[:1] * (width - len(table)) for table in seen], device=self.device)  # (S, N)
            first = torch.tensor(reach, device=self.device)[:, None] * BLOCK_LEN
            position = torch.arange(width * BLOCK_LEN, device=self.device)[None] + first  # (S, K)
            is_hidden = position >= self.lens[:, None]
            if window:
                is_hidden |= position < self.lens[:, None] - window
            hidden = torch.zeros(is_hidden.shape, device=self.device).masked_fill_(is_hidden, float("-inf"))
            self._views[window] = padded.flatten(), hidden[:, None]
        return self._views[window]
