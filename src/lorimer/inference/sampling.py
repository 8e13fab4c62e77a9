"""How the next token is chosen from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-5  # below it the likeliest token takes all, and dividing by it would overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What a request asks of its answer."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (nucleus sampling, arXiv:1904.09751)."""
    seed: int | None = None
    """The same seed gives the same answer to the same request."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever the model says; for measuring."""


def sample(logits: Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]) -> list[int]:
    """logits (n, V), one set of parameters and one generator a row -> n token ids."""
    tokens: list[int] = likeliest(logits).tolist()
    for row, (wanted, generator) in enumerate(zip(params, generators, strict=True)):
        if wanted.temperature >= MIN_TEMPERATURE:
            tokens[row] = _draw(logits[row].float() / wanted.temperature, wanted.top_p, generator)
    return tokens


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


def _draw(logits: Tensor, top_p: float, generator: torch.Generator | None) -> int:
    """logits (V) -> a token id drawn from their softmax, cut to the nucleus."""
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        outside[0] = False  # not even where top_p is 0
        probabilities = torch.zeros_like(probabilities).scatter(0, places, ordered.masked_fill(outside, 0))
    return int(torch.multinomial(probabilities, 1, generator=generator))
