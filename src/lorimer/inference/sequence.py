"""One request inside the engine: its tokens so far and how far they are computed. Knows nothing of text."""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch

from lorimer.inference.blocks import BLOCK_LEN, next_key
from lorimer.inference.composition import BASE, Composition
from lorimer.inference.sampling import Constraint, SamplingParams, TokenScores

FinishReason = Literal["stop", "length", "aborted"]
_counter = itertools.count()


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A prompt and its growing answer."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    composition: Composition = BASE
    """Resident adapters and their scales; the base alone by default."""
    tenant: str = ""
    """Whose turn it takes; tenants share the engine fairly."""
    constraint: Constraint | None = None
    """What the answer must be, token by token; a grammar, for example."""
    wants_state: bool = False
    """Whether the prompt's hidden states are wanted; it is then computed whole, whatever the cache holds."""
    state: torch.Tensor | None = None
    """Their mean (h) so far, but for the first, which is the same whatever follows it."""
    wants_prompt_scores: bool = False
    """Whether the prompt's own log-probabilities are wanted, with as many of the likeliest as `params` says; it is computed whole then too,
    and `params.max_tokens` may be 0."""
    prompt_scores: list[TokenScores] = field(default_factory=list)
    """One a token of the prompt so far, from its second: nothing stands before the first."""
    id: int = field(default_factory=lambda: next(_counter))
    output_ids: list[int] = field(default_factory=list)
    scores: list[TokenScores] = field(default_factory=list)
    """One a token of the answer, where log-probabilities were asked for; beside a prompt's, one for the stop token too."""
    finish_reason: FinishReason | None = None
    failure: str | None = None
    """Why it was aborted, where that was the engine's doing."""
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    num_reused: int = 0
    """Tokens of the prompt that were found there when it was first admitted."""
    blocks: list[int] = field(default_factory=list)
    """Set by the scheduler, as are the keys."""
    keys: list[bytes] = field(default_factory=list)
    """Of the full blocks so far, each chained to the one before."""
    generator: torch.Generator | None = None
    """Set by the engine for sampled answers."""
    arrived_at: float = 0.0
    """`time.monotonic()` when it was queued."""

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed, whatever the cache holds of it."""
        return self.wants_state or self.wants_prompt_scores

    @property
    def max_len(self) -> int:
        """Tokens it may grow to."""
        return len(self.prompt_ids) + self.params.max_tokens

    def ids_between(self, start: int, stop: int) -> list[int]:
        """Token ids by place, prompt and answer as one."""
        prompt_len = len(self.prompt_ids)
        prompt = self.prompt_ids[start : min(stop, prompt_len)]
        return [*prompt, *self.output_ids[max(0, start - prompt_len) : max(0, stop - prompt_len)]]

    def keys_of_full_blocks(self, first: bytes, num_tokens: int) -> list[bytes]:
        """The keys of the blocks that the first `num_tokens` tokens fill."""
        for at in range(len(self.keys), num_tokens // BLOCK_LEN):
            self.keys.append(next_key(self.keys[-1] if at else first, self.ids_between(at * BLOCK_LEN, (at + 1) * BLOCK_LEN)))
        return self.keys[: num_tokens // BLOCK_LEN]
