"""How likely given texts are: log-probabilities of continuations, and how far an adapter's next tokens are from the base's.

Nothing is generated. A prompt stands once in the stream for all its continuations (`PrefixGroup`), many prompts in one run. It knows
nothing of tasks or of what a score is for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lorimer.errors import EngineError
from lorimer.inference.batched_lora import BatchedLoRA, RowRange
from lorimer.inference.composition import BASE, Composition
from lorimer.inference.engine import Engine
from lorimer.model.attention import PackedSegments, PrefixGroup

TOKENS_PER_RUN = 2048
LOGIT_ROWS = 128
"""Rows of logits at once: of a vocabulary of 262,144 in float32 they take 134 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuations:
    """A prompt and what may follow it."""

    prompt_ids: tuple[int, ...]
    """At least one token."""
    continuations: tuple[tuple[int, ...], ...]
    """At least one token each."""

    @property
    def num_tokens(self) -> int:
        """Places in a run: the prompt but for its last token once, which stands before every continuation but for its last."""
        return len(self.prompt_ids) - 1 + sum(len(ids) for ids in self.continuations)

    @property
    def max_len(self) -> int:
        """Tokens of the longest."""
        return len(self.prompt_ids) + max(len(ids) for ids in self.continuations)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationScore:
    """One continuation."""

    logprob: float
    """Of all its tokens together, in nats."""
    num_tokens: int
    num_likeliest: int
    """How many of its first tokens are each the likeliest: greedy decoding gives these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDistance:
    """An adapter beside its base on one text, whose tokens but the first are predicted."""

    num_tokens: int
    base_loss: float
    """Mean negative log-likelihood per token, in nats."""
    loss: float
    divergence: float
    """Mean KL(base || adapter) of the next token, in nats."""


@torch.inference_mode()
def score_continuations(
    engine: Engine, asked: Sequence[Continuations], composition: Composition = BASE
) -> Iterator[tuple[int, tuple[ContinuationScore, ...]]]:
    """Score what may follow each prompt, through adapters that are resident; yields (index into `asked`, scores) run by run, in any order.

    Raises:
        EngineError: if a prompt or a continuation is empty, too long for the base, or an answer is no number.
    """
    for one in asked:
        _refuse(engine, one)
    for run in _runs([one.num_tokens for one in asked]):
        hidden = _run(engine, [_group(asked[index]) for index in run], composition)  # (T, h)
        scores = _score_rows(engine, hidden, [asked[index] for index in run])
        yield from zip(run, scores, strict=True)


@torch.inference_mode()
def compare_texts(
    engine: Engine, texts: Sequence[tuple[int, ...]], compositions: Sequence[Composition], *, num_given: Sequence[int] | None = None
) -> Iterator[tuple[int, tuple[TextDistance, ...]]]:
    """How far each composition is from the base on each text (two tokens or more); yields (index, one distance a composition).

    `num_given` says how many tokens at each text's beginning are its prompt, which counts for nothing; by default one.

    Raises:
        EngineError: if a text is too short or too long, or an answer is no number.
    """
    given = num_given or [1] * len(texts)
    asked = [Continuations(prompt_ids=ids[:num], continuations=(ids[num:],)) for ids, num in zip(texts, given, strict=True)]
    for one in asked:
        _refuse(engine, one)
    for run in _runs([one.num_tokens for one in asked]):
        groups = [_group(asked[index]) for index in run]
        lengths = [len(texts[index]) - given[index] for index in run]
        stops = accumulate(len(texts[index]) - 1 for index in run)
        rows = [row for stop, length in zip(stops, lengths, strict=True) for row in range(stop - length, stop)]
        base = _run(engine, groups, BASE)[rows]
        targets = torch.tensor([i for index in run for i in texts[index][given[index] :]], device=engine.base.device)
        compared = [_compare(engine, base, _run(engine, groups, own)[rows], targets, lengths) for own in compositions]
        yield from zip(run, zip(*compared, strict=True), strict=True)


def _refuse(engine: Engine, one: Continuations) -> None:
    if not one.prompt_ids or not one.continuations or not all(one.continuations):
        raise EngineError("a prompt or what is to follow it has no tokens: nothing can be scored")
    if one.max_len > engine.base.max_len:
        raise EngineError(f"a text of {one.max_len} tokens is longer than the {engine.base.max_len} the base can read: shorten it")


def _runs(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Indices in runs of about so many tokens, from the longest: those of like length share padded attention."""
    run, num_tokens = list[int](), 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if run and num_tokens + sizes[index] > TOKENS_PER_RUN:
            yield run
            run, num_tokens = [], 0
        run.append(index)
        num_tokens += sizes[index]
    if run:
        yield run


def _group(one: Continuations) -> tuple[PrefixGroup, list[int], list[int]]:
    """Where a prompt and its continuations stand in the stream, their ids and places.

    The prompt's last token begins every continuation, and their last tokens are not computed: nothing is asked about what follows them.
    """
    shared, last = one.prompt_ids[:-1], one.prompt_ids[-1]
    suffixes = [(last, *ids[:-1]) for ids in one.continuations]
    ids = [*shared, *(i for suffix in suffixes for i in suffix)]
    places = [*range(len(shared)), *(len(shared) + place for suffix in suffixes for place in range(len(suffix)))]
    return PrefixGroup(prefix_len=len(shared), suffix_lens=tuple(map(len, suffixes))), ids, places


def _run(engine: Engine, groups: Sequence[tuple[PrefixGroup, list[int], list[int]]], composition: Composition) -> Tensor:
    """The hidden states (T, h) of a stream, all of it through one composition."""
    device = engine.base.device
    ids = torch.tensor([i for _, own, _ in groups for i in own], device=device)
    positions = torch.tensor([place for _, _, own in groups for place in own], device=device)
    ranges = [RowRange(start=0, stop=len(ids), composition=composition)]
    lora = BatchedLoRA(None, {digest: engine.adapters.get(digest) for digest in composition.digests}, ranges)
    segments = PackedSegments([group for group, _, _ in groups], device)
    return engine.decoder.run(ids, positions, segments, lora)


def _score_rows(engine: Engine, hidden: Tensor, asked: Sequence[Continuations]) -> Iterator[tuple[ContinuationScore, ...]]:
    """hidden (T, h) of a stream of prompts with their continuations."""
    rows, start = list[int](), 0
    for one in asked:
        start += len(one.prompt_ids) - 1
        stop = start + sum(map(len, one.continuations))
        rows += range(start, stop)
        start = stop
    targets = torch.tensor([i for one in asked for ids in one.continuations for i in ids], device=hidden.device)
    logprobs, likeliest = list[float](), list[bool]()
    for logits, wanted in zip(_logits(engine, hidden[rows]), _pieces(targets), strict=True):
        logprobs += (logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1)).tolist()
        likeliest += (logits.argmax(1) == wanted).tolist()
    at = 0
    for one in asked:
        scores = []
        for ids in one.continuations:
            own = slice(at, at + len(ids))
            total = math.fsum(logprobs[own])
            if not math.isfinite(total):
                raise EngineError("a text's log-probability is no finite number: the adapter's weights are too large; train it again")
            num_likeliest = next((place for place, hit in enumerate(likeliest[own]) if not hit), len(ids))
            scores.append(ContinuationScore(logprob=total, num_tokens=len(ids), num_likeliest=num_likeliest))
            at += len(ids)
        yield tuple(scores)


def _compare(engine: Engine, base: Tensor, own: Tensor, targets: Tensor, lengths: Sequence[int]) -> list[TextDistance]:
    """base and own (T, h), targets (T), of texts of these lengths."""
    parts = list[Tensor]()  # (3, n) each: the base's loss, the adapter's, their divergence
    for first, second, wanted in zip(_logits(engine, base), _logits(engine, own), _pieces(targets), strict=True):
        was, now = first.log_softmax(1), second.log_softmax(1)
        losses = [-logprobs.gather(1, wanted[:, None])[:, 0] for logprobs in (was, now)]
        parts.append(torch.stack([*losses, (was.exp() * (was - now)).sum(1)]))
    means = [part.double().mean(1).tolist() for part in torch.cat(parts, 1).split_with_sizes(list(lengths), 1)]
    if not all(math.isfinite(value) for mean in means for value in mean):
        raise EngineError("a text's loss is no finite number: the adapter's weights are too large; train it again")
    return [
        TextDistance(num_tokens=length, base_loss=mean[0], loss=mean[1], divergence=max(0.0, mean[2]))
        for length, mean in zip(lengths, means, strict=True)
    ]


def _logits(engine: Engine, hidden: Tensor) -> Iterator[Tensor]:
    """hidden (n, h) -> float32 logits (up to `LOGIT_ROWS`, V), piece by piece."""
    for piece in _pieces(hidden):
        yield engine.logits(piece).float()


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(rows), LOGIT_ROWS):
        yield rows[start : start + LOGIT_ROWS]
