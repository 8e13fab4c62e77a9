"""One request inside the engine: its tokens so far and how far they are computed. Knows nothing of text."""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch

from lorimer.inference.sampling import SamplingParams

FinishReason = Literal["stop", "length", "aborted"]
_counter = itertools.count()


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A prompt and its growing answer."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    """Digest of a resident adapter; None for the base alone."""
    id: int = field(default_factory=lambda: next(_counter))
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    """Set by the scheduler."""
    generator: torch.Generator | None = None
    """Set by the engine for sampled answers."""

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def max_len(self) -> int:
        """Tokens it may grow to."""
        return len(self.prompt_ids) + self.params.max_tokens

    def ids_between(self, start: int, stop: int) -> list[int]:
        """Token ids by place, prompt and answer as one."""
        prompt_len = len(self.prompt_ids)
        prompt = self.prompt_ids[start : min(stop, prompt_len)]
        return [*prompt, *self.output_ids[max(0, start - prompt_len) : max(0, stop - prompt_len)]]
