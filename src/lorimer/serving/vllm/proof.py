"""The proof of adapters on vLLM: the fingerprint of registration asked again, from outside, by log-probabilities of the tokens it names.

The tolerance is the embedded engine's. With Gemma 3 270M in bfloat16, vLLM 0.32 on a CPU and six adapters (three trained, three random) the
base was 0.3 and the adapters 0.4 to 1.4 roundings from what the embedded engine had recorded, where 5 are allowed; one adapter was at least
11 from what another had answered, and the bare base at least 13 from any that has a visible effect.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence

from lorimer.errors import EngineError
from lorimer.inference.fingerprint import EPSILON, Fingerprint, Proof, Replayed, describe_unlike, judge
from lorimer.model.base_text import BaseText
from lorimer.serving.vllm.wire import MAX_CHOSEN, VllmWire

NUM_SAMPLED = 64
"""Tokens spread over the vocabulary, whose mean log-probability stands for that of all."""

Answers = list[dict[int, float]]
"""By probe: log-probabilities of some tokens."""


class VllmProber:
    """Asks one instance of vLLM what a fingerprint asked."""

    def __init__(self, wire: VllmWire, base: BaseText, dtype: str) -> None:
        self.wire, self.base, self.dtype = wire, base, dtype if dtype in EPSILON else "bfloat16"
        self._sampled = tuple(range(0, base.vocabulary_len, max(1, base.vocabulary_len // NUM_SAMPLED)))[:NUM_SAMPLED]

    async def prove(self, digest: str, recorded: Fingerprint) -> Proof:
        """Replay a fingerprint; see `judge`. The adapter has to be one that vLLM finds.

        Raises:
            UnavailableError, EngineError, AdapterError: as `VllmWire.stream`.
        """
        if reason := describe_unlike(recorded, digest=digest, base=self.base):
            return Proof(reason=reason)
        own_ids = [_ids_of(probe.adapter, probe.base) for probe in recorded.probes]
        prompts = [probe.prompt_ids for probe in recorded.probes]
        base_ids = [tuple(dict.fromkeys((*ids, *self._sampled)))[:MAX_CHOSEN] for ids in own_ids]
        base = await self._ask(self.base.digest, prompts, base_ids)
        own = await self._ask(digest, prompts, own_ids)
        if not _are_numbers(base):
            raise EngineError("vLLM's base answers the probes with numbers that are not finite: start it again")
        if not _are_numbers(own):
            return Proof(reason="it answers with numbers that are not finite")
        adapter_tops, base_tops = [dict(probe.adapter) for probe in recorded.probes], [dict(probe.base) for probe in recorded.probes]
        found = Replayed(
            control=_difference(base, base_tops),
            difference=_difference(own, adapter_tops),
            effect=_difference(base, adapter_tops),
            apart=_difference(own, [{i: now[i] for i in top} for now, top in zip(base, base_tops, strict=True)]),
            size=self._size(base),
        )
        return judge(recorded, found, dtype=self.dtype)

    async def _ask(self, model: str, prompts: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]]) -> Answers:
        asked = (self.wire.chosen_logprobs(model, ids, wanted) for ids, wanted in zip(prompts, chosen, strict=True))
        return list(await asyncio.gather(*asked))

    def _size(self, base: Answers) -> float:
        """As fingerprint.py has it, over the tokens that were asked for: the likeliest are among them."""
        heights = [max(answer.values()) - sum(answer[i] for i in self._sampled) / len(self._sampled) for answer in base]
        return math.sqrt(sum(height**2 for height in heights) / len(heights))


def _are_numbers(answers: Answers) -> bool:
    return all(math.isfinite(logprob) for answer in answers for logprob in answer.values())


def _ids_of(*tops: Sequence[tuple[int, float]]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(i for top in tops for i, _ in top))


def _difference(answers: Answers, wanted: Sequence[Mapping[int, float]]) -> float:
    """Root mean square over all wanted log-probabilities, in nats."""
    squares = [(answer[i] - logprob) ** 2 for answer, top in zip(answers, wanted, strict=True) for i, logprob in top.items()]
    return math.sqrt(sum(squares) / len(squares))
