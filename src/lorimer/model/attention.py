"""Attention over one flattened stream of tokens, called through transformers' AttentionInterface: no architecture needs code here.

The stream holds several sequences end to end. Who may see whom is the business of the `Segments` object that the caller passes
with the batch; this file has the one for sequences without a cache (training, scoring). It knows nothing of adapters.

Sequences that begin with the same tokens may stand in the stream as one shared prefix and one suffix each (`PrefixGroup`): causal
attention makes the states of the prefix the same in all of them, so they are computed once and every suffix attends to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from lorimer.errors import EngineError

IMPLEMENTATION = "lorimer"
SHORT_SCORES = 512 * 512  # query places times key places: up to here keeping a sequence's attention probabilities costs little memory
PADDING_LIMIT = 1.25  # sequences share one padded call while the longest is at most this much longer than the shortest
PADDING_TOKENS = 16  # or by so few tokens that a call of its own would cost more


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
    """query (S, H, Q, D), key and value (S, G, K, D), mask (.., Q, K) or None for causal -> (S, H, Q, D).

    A mask is True where to look, or is added to the scores.
    """
    if options.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=options.scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(-1, -2)).float() * options.scaling
    scores = options.softcap * torch.tanh(scores / options.softcap)
    visible = causal_mask(query.shape[2], key.shape[2], None, query.device) if mask is None else mask
    scores = scores.masked_fill(~visible, float("-inf")) if visible.dtype == torch.bool else scores + visible
    return scores.softmax(-1).to(value.dtype) @ value


def causal_mask(query_len: int, key_len: int, window: int | None, device: torch.device) -> Tensor:
    """(Q, K), True where the query (the last Q of K positions) may look: not ahead, not further back than the window."""
    position = torch.arange(key_len - query_len, key_len, device=device)[:, None]  # (Q, 1)
    other = torch.arange(key_len, device=device)[None]  # (1, K)
    visible = other <= position
    return visible if window is None else visible & (other > position - window)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """Neighbours in the stream: the tokens all its sequences begin with, once, then what is each one's own."""

    prefix_len: int
    suffix_lens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Places in the stream."""
        return self.prefix_len + sum(self.suffix_lens)


def whole(lengths: Sequence[int]) -> tuple[PrefixGroup, ...]:
    """Sequences that share nothing."""
    return (PrefixGroup(prefix_len=0, suffix_lens=tuple(lengths)),)


class PackedSegments:
    """Sequences end to end, each attending to itself and to its group's prefix; those of like length share one padded call.

    Padding stands to the right of every sequence, where causal attention cannot see it, so the result is exact.
    """

    def __init__(self, groups: Sequence[PrefixGroup], device: torch.device | None = None) -> None:
        self.num_tokens = sum(group.num_tokens for group in groups)
        self.spans = list(_spans(groups))
        self.device = device

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Segments.attend`."""
        if query.is_cuda and query.dtype != torch.float32 and options.softcap is None:
            return self._varlen.attend(query, key, value, options)
        output: Tensor
        short, long = self._buckets
        if short and options.softcap is None:
            output = _ShortAttention.apply(query, key, value, short, options)  # type: ignore[no-untyped-call]
        else:
            output, long = torch.zeros_like(query), [*short, *long]
        for bucket in long:
            output = output.index_copy(0, bucket.places, bucket.attend(query, key, value, options))
        return output

    @cached_property
    def _buckets(self) -> "tuple[list[_Bucket], list[_Bucket]]":
        """Short sequences, whose attention probabilities are kept for the backward pass, and long ones, which take torch's kernel."""
        runs = _runs_of_like_length(self.spans)
        buckets = [_Bucket(run, self.device) for run in runs]
        is_short = [bucket.max_len * (bucket.prefix_len + bucket.max_len) <= SHORT_SCORES for bucket in buckets]
        short = [bucket for bucket, keep in zip(buckets, is_short, strict=True) if keep]
        return short, [bucket for bucket, keep in zip(buckets, is_short, strict=True) if not keep]

    @cached_property
    def _varlen(self) -> "_Varlen":
        return _Varlen(self.spans, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """One attending sequence: where it stands, and where what it sees before itself stands."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_len: int = 0


def _spans(groups: Sequence[PrefixGroup]) -> Iterator[_Span]:
    start = 0
    for group in groups:
        prefix_start, prefix_len = start, group.prefix_len
        if prefix_len:
            yield _Span(start=start, length=prefix_len)
        start += prefix_len
        for length in group.suffix_lens:
            yield _Span(start=start, length=length, prefix_start=prefix_start, prefix_len=prefix_len)
            start += length


class _Bucket:
    """Sequences of one prefix (or none), padded to the longest of them."""

    def __init__(self, run: Sequence[_Span], device: torch.device | None) -> None:
        self.num_sequences, self.max_len = len(run), max(span.length for span in run)
        self.prefix_len = run[0].prefix_len
        self.prefix = slice(run[0].prefix_start, run[0].prefix_start + run[0].prefix_len)
        offsets = torch.arange(self.max_len)[None]  # (1, L)
        lengths = torch.tensor([span.length for span in run])[:, None]  # (S, 1)
        starts = torch.tensor([span.start for span in run])[:, None]
        is_token = (offsets < lengths).flatten()
        gather = (starts + torch.minimum(offsets, lengths - 1)).flatten()
        self.gather = gather.to(device)  # (S L), padded place -> place in the stream, padding repeats the sequence's last token
        self.scatter = is_token.nonzero().flatten().to(device)  # (n), padded places that are tokens
        self.padding = (~is_token).nonzero().flatten().to(device)
        self.places = gather[is_token].to(device)  # (n), their places in the stream
        contiguous = torch.equal(self.places.cpu(), torch.arange(int(gather[0]), int(gather[0]) + len(self.places)))
        self.slice = slice(int(gather[0]), int(gather[0]) + len(gather)) if contiguous and not len(self.padding) else None
        self.hidden: dict[int | None, Tensor] = {}
        self.masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def take(self, rows: Tensor) -> Tensor:
        """(T, G, W) -> (G S, L, W), keys' groups first so that all sequences of one group meet the prefix in one product."""
        own = rows.index_select(0, self.gather) if self.slice is None else rows[self.slice]
        return own.transpose(0, 1).reshape(rows.shape[1] * self.num_sequences, self.max_len, rows.shape[2]).contiguous()

    def put(self, target: Tensor, padded: Tensor) -> None:
        """(G S, L, W) into their places of (T, G, W)."""
        rows = padded.view(target.shape[1], self.num_sequences * self.max_len, target.shape[2]).transpose(0, 1)
        if self.slice is not None:
            target[self.slice] = rows
        else:
            target.index_copy_(0, self.places, rows.index_select(0, self.scatter))

    def add(self, target: Tensor, padded: Tensor) -> None:
        """As `put`, added to what is there."""
        rows = padded.view(target.shape[1], self.num_sequences * self.max_len, target.shape[2]).transpose(0, 1)
        if self.slice is not None:
            target[self.slice] += rows
        else:
            target.index_add_(0, self.places, rows.index_select(0, self.scatter))

    def invisible(self, window: int | None) -> Tensor:
        """(L, P + L), True where a place of the sequence must not look."""
        if window not in self.hidden:
            self.hidden[window] = ~causal_mask(self.max_len, self.prefix_len + self.max_len, window, self.gather.device)
        return self.hidden[window]

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(L, P + L) to be added to scores; one for all layers, since torch keeps what it is given for each layer's backward pass."""
        if (window, dtype) not in self.masks:
            hidden = self.invisible(window)
            self.masks[window, dtype] = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return self.masks[window, dtype]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Through torch's kernel, rows (n, H, D) in the order of `places`."""
        num_sequences, length = self.num_sequences, self.max_len
        q, k, v = (
            rows.index_select(0, self.gather).view(num_sequences, length, *rows.shape[1:]).transpose(1, 2) for rows in (query, key, value)
        )
        if self.prefix_len:
            k, v = (
                torch.cat([rows[self.prefix].transpose(0, 1).expand(num_sequences, -1, -1, -1), own], 2)
                for rows, own in ((key, k), (value, v))
            )
        window = options.sliding_window if options.sliding_window and options.sliding_window < k.shape[2] else None
        mask = None if window is None and not self.prefix_len else self.mask(window, q.dtype)
        output = scaled_dot_product(q, k, v, mask, options).transpose(1, 2)
        return output.reshape(num_sequences * length, *query.shape[1:]).index_select(0, self.scatter)


class _ShortAttention(torch.autograd.Function):
    """Causal attention of many short sequences as batched products, grouped queries folded into rows.

    The flash kernel's backward on a CPU costs about a millisecond for every short sequence and layer; this is 1.7 to 4 times
    faster at 100 tokens (dev/LOG.md) and keeps the probabilities, which short sequences can afford. Places of the stream that no
    bucket holds come out as zeros.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, buckets: "list[_Bucket]", options: AttentionOptions) -> Tensor:
        num_tokens, _, width = query.shape
        groups = key.shape[1]
        folded = query.reshape(num_tokens, groups, -1)  # (T, G, R D)
        output = torch.zeros_like(folded)
        kept = []
        for bucket in buckets:
            q = bucket.take(folded).view(groups * bucket.num_sequences, -1, width)  # (G S, L R, D)
            k, v = bucket.take(key), bucket.take(value)  # (G S, L, D)
            scores = torch.bmm(q, k.transpose(1, 2))  # (G S, L R, L)
            if bucket.prefix_len:
                prefix_key = key[bucket.prefix].permute(1, 2, 0)  # (G, D, P)
                scores = torch.cat([torch.bmm(q.view(groups, -1, width), prefix_key).view(*q.shape[:2], -1), scores], 2)
            window = options.sliding_window
            window = window if window and window < bucket.prefix_len + bucket.max_len else None
            wide = scores.float().mul_(options.scaling).view(q.shape[0], bucket.max_len, -1, scores.shape[2])  # (G S, L, R, P + L)
            wide.masked_fill_(bucket.invisible(window)[:, None], float("-inf"))
            probabilities = wide.softmax(-1).to(q.dtype).view(scores.shape)
            own = probabilities[..., bucket.prefix_len :]
            result = torch.bmm(own, v)  # (G S, L R, D)
            if bucket.prefix_len:
                seen = probabilities[..., : bucket.prefix_len].reshape(groups, -1, bucket.prefix_len)
                result += torch.bmm(seen, value[bucket.prefix].transpose(0, 1)).view(result.shape)
            bucket.put(output, result)
            kept += [q, k, v, probabilities]
        ctx.save_for_backward(key, value, *kept)
        ctx.buckets, ctx.options = buckets, options
        return output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        key, value, *kept = ctx.saved_tensors
        _, groups, width = key.shape
        d_folded = grads[0].reshape(grads[0].shape[0], groups, -1)
        d_query, d_key, d_value = torch.zeros_like(d_folded), torch.zeros_like(key), torch.zeros_like(value)
        for at, bucket in reversed(list(enumerate(ctx.buckets))):  # suffixes before the prefixes they add to
            q, k, v, probabilities = kept[4 * at : 4 * at + 4]
            length, prefix_len = bucket.max_len, bucket.prefix_len
            d_output = bucket.take(d_folded).view(q.shape)
            if len(bucket.padding):
                d_output.view(groups, bucket.num_sequences * length, -1).index_fill_(1, bucket.padding, 0)
            d_scores = torch.bmm(d_output, v.transpose(1, 2))
            if prefix_len:
                d_all = d_output.view(groups, -1, width)
                d_seen = torch.bmm(d_all, value[bucket.prefix].permute(1, 2, 0)).view(*q.shape[:2], -1)
                d_scores = torch.cat([d_seen, d_scores], 2)
            weights = probabilities.float()
            slope = d_scores.float()
            slope.sub_((slope * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.options.scaling)
            d_scores = slope.to(q.dtype)
            d_own = d_scores[..., prefix_len:]
            d_q = torch.bmm(d_own, k)
            if prefix_len:
                d_seen = d_scores[..., :prefix_len].reshape(groups, -1, prefix_len)
                seen = probabilities[..., :prefix_len].reshape(groups, -1, prefix_len)
                d_q += torch.bmm(d_seen, key[bucket.prefix].transpose(0, 1)).view(d_q.shape)
                d_key[bucket.prefix] += torch.bmm(d_seen.transpose(1, 2), q.view(groups, -1, width)).transpose(0, 1)
                d_value[bucket.prefix] += torch.bmm(seen.transpose(1, 2), d_all).transpose(0, 1)
            bucket.put(d_query, d_q.view(groups * bucket.num_sequences, length, -1))
            bucket.add(d_key, torch.bmm(d_own.transpose(1, 2), q))
            bucket.add(d_value, torch.bmm(probabilities[..., prefix_len:].transpose(1, 2), d_output))
        return d_query.view(grads[0].shape), d_key, d_value, None, None


class _Varlen:
    """The variable-length flash kernel of CUDA; a suffix's keys are its prefix's and its own. Never run on a GPU yet."""

    def __init__(self, spans: Sequence[_Span], device: torch.device | None) -> None:
        key_lens = [span.prefix_len + span.length for span in spans]
        self.max_query_len, self.max_key_len = max(span.length for span in spans), max(key_lens)
        self.query_starts = torch.tensor([0, *(span.length for span in spans)], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        self.key_starts = torch.tensor([0, *key_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        places = [
            torch.cat([torch.arange(s.prefix_start, s.prefix_start + s.prefix_len), torch.arange(s.start, s.start + s.length)])
            for s in spans
        ]
        self.gather = torch.cat(places).to(device) if any(span.prefix_len for span in spans) else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if self.gather is not None:
            key, value = key.index_select(0, self.gather), value.index_select(0, self.gather)
        output = varlen_attn(
            query,
            key,
            value,
            self.query_starts,
            self.key_starts,
            self.max_query_len,
            self.max_key_len,
            scale=options.scaling,
            window_size=(-1 if options.sliding_window is None else options.sliding_window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, Tensor)
        return output


def _runs_of_like_length(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Sequences of one prefix by length, cut where padding would waste too much; prefixes and sequences without one come first."""
    runs: list[list[_Span]] = []
    for span in sorted(spans, key=lambda s: (s.prefix_len > 0, s.prefix_start, s.length, s.start)):
        first = runs[-1][0] if runs else None
        is_alike = first is not None and (first.prefix_len, first.prefix_start) == (span.prefix_len, span.prefix_start)
        if first is not None and is_alike and span.length <= max(PADDING_LIMIT * first.length, first.length + PADDING_TOKENS):
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs
