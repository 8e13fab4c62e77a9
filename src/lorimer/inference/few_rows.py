"""Attention of a step of few tokens, in one compiled call a layer: norms, turning, the new keys and values, and what each row attends to.

torch would gather every sequence's keys and values anew at each step; here they are read where they lie.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lorimer.inference.blocks import BLOCK_LEN
from lorimer.inference.kernels import HEADS, Attention, Heads, Kernels
from lorimer.inference.norm import Norm
from lorimer.model.attention import AttentionOptions


class FewRows:
    """One step's tokens, a row each: the blocks of its sequence, and how many of the sequence's tokens there are up to it."""

    def __init__(self, kernels: Kernels, tables: Sequence[list[int]], lens: Sequence[int]) -> None:
        self.kernels = kernels
        width, longest = max(map(len, tables)), max(lens)
        self.tables = torch.tensor([table + table[:1] * (width - len(table)) for table in tables], dtype=torch.int32)  # (S, N)
        self.lens = torch.tensor(lens, dtype=torch.int32)  # (S)
        self.room = torch.empty(kernels.num_threads * longest * (2 + HEADS))  # a place and scores for each token, by thread
        self.call = Attention(
            tables=self.tables.data_ptr(),
            lens=self.lens.data_ptr(),
            omp=None if kernels.omp is None else ctypes.addressof(kernels.omp),
            num_rows=len(lens),
            block_len=BLOCK_LEN,
            max_blocks=width,
            max_len=longest,
            places=self.room.data_ptr(),
            scores=self.room.data_ptr() + 8 * kernels.num_threads * longest,
            num_threads=kernels.num_threads,
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        turn: tuple[Tensor, Tensor],
        norms: tuple[Norm | None, Norm | None],
        pools: tuple[Tensor, Tensor],
        options: AttentionOptions,
    ) -> Tensor:
        """query (S, H, D), key and value (S, G, D) as the layer's products make them; cos and sin (S, 1, R) that turn R of D places, the
        first half of sin negated; norms of each head of query and key; the layer's pools -> (S, H D).
        """
        call, (cos, sin), (keys, values) = self.call, turn, pools
        assert {cos.dtype, sin.dtype, keys.dtype} == {query.dtype}, "one precision for all"
        _, num_heads, head_dim = query.shape
        y = torch.empty(len(query), num_heads * head_dim, dtype=query.dtype)
        call.query, call.key, call.value = _heads(query, norms[0]), _heads(key, norms[1]), _heads(value, None)
        call.cos, call.sin, call.num_turned = cos.data_ptr(), sin.data_ptr(), cos.shape[-1]
        call.keys, call.values, call.group_stride = keys.data_ptr(), values.data_ptr(), keys.stride(0)
        call.y, call.is_bf16 = y.data_ptr(), query.dtype == torch.bfloat16
        call.num_heads, call.num_groups, call.head_dim = num_heads, key.shape[1], head_dim
        call.window, call.scaling, call.softcap = options.sliding_window or 0, options.scaling, options.softcap or 0.0
        self.kernels.attend(call)
        return y


def _heads(x: Tensor, norm: Norm | None) -> Heads:
    return Heads(x.data_ptr(), x.stride(0), None if norm is None else norm.gain.data_ptr(), 0.0 if norm is None else norm.eps)
