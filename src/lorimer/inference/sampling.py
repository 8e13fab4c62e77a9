"""How the next token is chosen from logits, in the order that vLLM and OpenAI document.

Penalties and biases change logits, a constraint forbids tokens, the temperature divides, then top-k, top-p and min-p cut the tail. A row
that asks for none of it costs one sweep for its maximum; nothing here ever sorts or copies a whole vocabulary for a greedy row.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lorimer.inference.kernels import Kernels

MIN_TEMPERATURE = 1e-5  # below it the likeliest token takes all, and dividing by it would overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What a request asks of its answer."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (nucleus sampling, arXiv:1904.09751)."""
    top_k: int = 0
    """Only so many of the likeliest tokens; 0 is all."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest (arXiv:2407.01082)."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token the answer holds already."""
    frequency_penalty: float = 0.0
    """Taken from it once for every time the answer holds it."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens of prompt and answer (CTRL, arXiv:1909.05858)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    num_logprobs: int | None = None
    """How many of the likeliest tokens' log-probabilities to give beside each token's own; None gives none at all."""
    seed: int | None = None
    """The same seed gives the same answer to the same request."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever the model says; for measuring."""

    @property
    def changes_logits(self) -> bool:
        """Whether a row of logits is not taken as it is."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1
        return any(penalties) or bool(self.logit_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Log-probabilities of one place of an answer, natural logarithms, before temperature and cuts."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, from the likeliest."""


class Constraint(Protocol):
    """What an answer must be, token by token."""

    def mask(self, logits: Tensor) -> None:
        """Set the logits (V) of tokens that cannot come next to minus infinity."""
        ...

    def accept(self, token_id: int) -> None:
        """Take note of the token that came."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one row's choice depends on beside its logits."""

    params: SamplingParams
    generator: torch.Generator | None = None
    constraint: Constraint | None = None
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The next token of a row."""

    token_id: int
    scores: TokenScores | None = None


def choose(logits: Tensor, rows: Sequence[Row], kernels: Kernels | None = None) -> list[Choice]:
    """logits (n, V), one row each -> the next token of each."""
    is_plain = [row.params.temperature < MIN_TEMPERATURE and row.constraint is None and not row.params.changes_logits for row in rows]
    find = likeliest if kernels is None else kernels.likeliest
    best: list[int] = find(logits).tolist() if any(is_plain) else [0] * len(rows)
    choices = []
    for at, row in enumerate(rows):
        token = best[at] if is_plain[at] else _choose_one(logits[at], row)
        count = row.params.num_logprobs
        scores = None if count is None else scores_of(logits[at : at + 1], [token], count)[0]
        choices.append(Choice(token_id=token, scores=scores))
    return choices


def likeliest(logits: Tensor) -> Tensor:
    """logits (n, V) -> the place of each row's maximum (n), the first of equals.

    By blocks: the maximum of a block is a vectorised sweep, `argmax` over a whole vocabulary in bf16 is not (50 against 6 ms for
    96 rows of 262,144; dev/LOG.md).
    """
    num_rows, vocabulary_len = logits.shape
    block_len = math.gcd(vocabulary_len, 512)
    if block_len < 16:
        return logits.argmax(-1)
    blocks = logits.view(num_rows, -1, block_len)
    best = blocks.amax(-1).float().argmax(-1)  # (n)
    within = blocks[torch.arange(num_rows, device=logits.device), best].float().argmax(-1)
    return best * block_len + within


def _choose_one(logits: Tensor, row: Row) -> int:
    """logits (V) of a row that asks for something -> its token."""
    params = row.params
    logits = logits.float()  # a copy where it is not float32 already
    if params.changes_logits or row.constraint is not None:
        logits = logits.clone()
        _penalise(logits, row)
    if row.constraint is not None:
        row.constraint.mask(logits)
    if params.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    return _draw(logits / params.temperature, params, row.generator)


def _penalise(logits: Tensor, row: Row) -> None:
    """Change the logits (V) of the tokens that penalties and biases name."""
    params = row.params
    if params.repetition_penalty != 1:
        said = torch.tensor(sorted({*row.prompt_ids, *row.output_ids}), device=logits.device)
        own = logits[said]
        logits[said] = torch.where(own > 0, own / params.repetition_penalty, own * params.repetition_penalty)
    if row.output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(row.output_ids)
        repeated = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[torch.tensor(list(counts), device=logits.device)] -= params.presence_penalty + params.frequency_penalty * repeated
    if params.logit_bias:
        biases = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits[torch.tensor(list(params.logit_bias), device=logits.device)] += biases


def _draw(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """logits (V) over the temperature -> a token id drawn from what the cuts leave of their softmax."""
    if params.top_k and params.top_k < len(logits):
        kept, places = logits.topk(params.top_k)
        return int(places[_draw(kept, _without_top_k(params), generator)])
    probabilities = logits.softmax(-1)
    if bool(probabilities[0].isnan()):  # a penalty as good as zero can make logits infinite: they take all, and no step fails of it
        return int(logits.argmax())
    if params.min_p:
        probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0)
    if params.top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        ordered /= ordered.sum()
        outside = ordered.cumsum(-1) - ordered >= params.top_p
        outside[0] = False  # not even where top_p is 0
        probabilities = torch.zeros_like(probabilities).scatter(0, places, ordered.masked_fill(outside, 0))
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _without_top_k(params: SamplingParams) -> SamplingParams:
    return SamplingParams(top_p=params.top_p, min_p=params.min_p, temperature=params.temperature)


def scores_of(logits: Tensor, tokens: Sequence[int], count: int) -> list[TokenScores]:
    """logits (n, V) as the model gave them, and the token that stands at each place -> the log-probabilities asked for."""
    wide = logits.float()
    total = wide.logsumexp(1, keepdim=True)
    own = (wide.gather(1, torch.tensor(tokens, device=wide.device)[:, None]) - total)[:, 0].tolist()
    kept, places = wide.topk(count) if count else (wide[:, :0], wide[:, :0].long())
    tops = zip(places.tolist(), (kept - total).tolist(), strict=True)
    return [
        TokenScores(token_id=token, logprob=logprob, top=tuple(zip(ids, logprobs, strict=True)))
        for token, logprob, (ids, logprobs) in zip(tokens, own, tops, strict=True)
    ]
