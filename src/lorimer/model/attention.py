"""Attention over one flattened stream of tokens, called through transformers' AttentionInterface: no architecture needs code here.

The stream holds several sequences end to end. Who may see whom is the business of the `Segments` object that the caller passes
with the batch; this file has the one for whole sequences without a cache (training, scoring). It knows nothing of adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from lorimer.errors import EngineError

IMPLEMENTATION = "lorimer"
SHORT_LEN = 512  # up to here keeping all attention probabilities costs little memory
PADDING_LIMIT = 1.25  # sequences share one padded call while the longest is at most this much longer than the shortest


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """What a layer asks of its attention."""

    scaling: float
    sliding_window: int | None
    softcap: float | None


class Segments(Protocol):
    """Which tokens of the stream attend to which."""

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """query (T, H, D), key and value (T, G, D), H a multiple of G -> (T, H, D)."""
        ...


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **ignorable: Any,
) -> tuple[Tensor, None]:
    """The function transformers' attention modules call: query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D).

    Raises:
        EngineError: if the model asks for something this attention does not do (a mask of its own, sinks, a position bias, dropout).
    """
    asked = [name for name in ("s_aux", "position_bias", "indexer_topk") if ignorable.get(name) is not None]
    asked += ["attention_mask"] if attention_mask is not None else []
    asked += ["attention dropout"] if ignorable.get("dropout") else []
    if asked:
        raise EngineError(f"the base's attention ({type(module).__name__}) asks for {', '.join(asked)}, which Lorimer does not support")
    options = AttentionOptions(scaling=scaling or query.shape[-1] ** -0.5, sliding_window=sliding_window, softcap=softcap)
    index = int(module.layer_idx)  # type: ignore[arg-type]
    rows = segments.attend(index, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), options)
    return rows.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, attention)


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """query (S, H, Q, D), key and value (S, G, K, D), mask boolean (.., Q, K) or None for causal -> (S, H, Q, D)."""
    if options.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=options.scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(-1, -2)).float() * options.scaling
    scores = options.softcap * torch.tanh(scores / options.softcap)
    visible = causal_mask(query.shape[2], key.shape[2], None, query.device) if mask is None else mask
    return scores.masked_fill(~visible, float("-inf")).softmax(-1).to(value.dtype) @ value


def causal_mask(query_len: int, key_len: int, window: int | None, device: torch.device) -> Tensor:
    """(Q, K), True where the query (the last Q of K positions) may look: not ahead, not further back than the window."""
    position = torch.arange(key_len - query_len, key_len, device=device)[:, None]  # (Q, 1)
    other = torch.arange(key_len, device=device)[None]  # (1, K)
    visible = other <= position
    return visible if window is None else visible & (other > position - window)


class PackedSegments:
    """Whole sequences end to end, each attending only to itself; neighbours of like length share one padded call.

    Padding stands to the right of every sequence, where causal attention cannot see it, so the result is exact.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        self.buckets = [_Bucket(run, device) for run in _runs_of_like_length(lengths)]
        self.num_tokens = sum(lengths)

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Segments.attend`."""
        outputs = [bucket.attend(query, key, value, options) for bucket in self.buckets]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _Bucket:
    """Consecutive sequences padded to the longest of them."""

    def __init__(self, run: "_Run", device: torch.device | None) -> None:
        self.start, self.stop = run.start, run.start + sum(run.lengths)
        self.num_sequences, self.max_len = len(run.lengths), max(run.lengths)
        self.is_padded = min(run.lengths) < self.max_len
        offsets = torch.arange(self.max_len, device=device)[None]  # (1, L)
        lengths = torch.tensor(run.lengths, device=device)[:, None]  # (S, 1)
        starts = lengths.cumsum(0) - lengths
        self.gather = (starts + torch.minimum(offsets, lengths - 1)).flatten()  # padded place -> token
        self.scatter = (offsets < lengths).flatten().nonzero().flatten()  # token -> padded place

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        window = options.sliding_window if options.sliding_window and options.sliding_window < self.max_len else None
        padded = self._pad(query), self._pad(key), self._pad(value)  # (S, L, H or G, D)
        if window is None and options.softcap is None and torch.is_grad_enabled() and self.max_len <= SHORT_LEN and not query.is_cuda:
            output: Tensor = _ShortAttention.apply(*padded, options.scaling)  # type: ignore[no-untyped-call]
        else:
            mask = None if window is None else causal_mask(self.max_len, self.max_len, window, query.device)
            q, k, v = (rows.transpose(1, 2) for rows in padded)
            output = scaled_dot_product(q, k, v, mask, options).transpose(1, 2)
        rows = output.reshape(self.num_sequences * self.max_len, query.shape[1], query.shape[2])
        return rows.index_select(0, self.scatter) if self.is_padded else rows

    def _pad(self, rows: Tensor) -> Tensor:
        """(T, H, D) -> (S, L, H, D)."""
        own = rows[self.start : self.stop]
        padded = own.index_select(0, self.gather) if self.is_padded else own
        return padded.view(self.num_sequences, self.max_len, rows.shape[1], rows.shape[2])


class _ShortAttention(torch.autograd.Function):
    """Causal attention of many short sequences as batched products, grouped queries folded into rows.

    The flash kernel's backward on a CPU costs about a millisecond for every short sequence and layer; this is 1.7 to 4 times
    faster at 100 tokens (dev/LOG.md) and keeps the probabilities, which short sequences can afford.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        num_sequences, length, num_heads, width = query.shape
        groups = key.shape[2]
        folded = num_sequences, length, groups, num_heads // groups, width
        q = query.reshape(folded).permute(0, 2, 1, 3, 4).reshape(num_sequences * groups, -1, width)  # (S G, L R, D)
        k = key.transpose(1, 2).reshape(num_sequences * groups, length, width)  # (S G, L, D)
        v = value.transpose(1, 2).reshape(num_sequences * groups, length, width)
        ahead = ~causal_mask(length, length, None, query.device)
        scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(scaling).view(q.shape[0], length, -1, length)  # (S G, L, R, L)
        probabilities = scores.masked_fill_(ahead[:, None], float("-inf")).softmax(-1).to(q.dtype).view(q.shape[0], -1, length)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.folded, ctx.scaling = folded, scaling
        return _unfold(torch.bmm(probabilities, v), folded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities = ctx.saved_tensors
        num_sequences, length, groups, _, width = ctx.folded
        d_output = grads[0].reshape(ctx.folded).permute(0, 2, 1, 3, 4).reshape(q.shape)
        d_value = torch.bmm(probabilities.transpose(1, 2), d_output)
        d_scores = torch.bmm(d_output, v.transpose(1, 2)).float()
        weights = probabilities.float()
        d_scores.sub_((d_scores * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scaling)
        d_scores = d_scores.to(q.dtype)
        d_query = _unfold(torch.bmm(d_scores, k), ctx.folded)
        d_key = torch.bmm(d_scores.transpose(1, 2), q)
        d_key, d_value = (d.view(num_sequences, groups, length, width).transpose(1, 2) for d in (d_key, d_value))
        return d_query, d_key, d_value, None


def _unfold(rows: Tensor, folded: tuple[int, ...]) -> Tensor:
    """(S G, L R, D) -> (S, L, H, D)."""
    num_sequences, length, groups, repeats, width = folded
    unfolded = rows.view(num_sequences, groups, length, repeats, width).permute(0, 2, 1, 3, 4)
    return unfolded.reshape(num_sequences, length, groups * repeats, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    start: int
    lengths: list[int]


def _runs_of_like_length(lengths: Sequence[int]) -> list[_Run]:
    """Cut the sequence of lengths where padding would waste too much."""
    runs: list[_Run] = []
    start = 0
    for length in lengths:
        current = runs[-1].lengths if runs else []
        if current and max(*current, length) <= PADDING_LIMIT * min(*current, length):
            current.append(length)
        else:
            runs.append(_Run(start=start, lengths=[length]))
        start += length
    return runs
