"""One adapter folded into the base for good: nothing is added per step any more, and nothing else can be served.

The sum is made in float32 and rounded once; in the base's own precision it would change answers (Hugging Face PEFT, issues 1836 and 2502).
It still rounds, so what that costs is measured on the spot and told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.errors import AdapterError
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA, LoRAWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far the merged base answers from base and adapter apart, over all places of some prompts."""

    mean_kl: float
    """Kullback-Leibler divergence of the next token, in nats."""
    max_kl: float
    same_greedy: float
    """Share of places where the likeliest token is the same."""
    num_places: int

    def __str__(self) -> str:
        return (
            f"over {self.num_places} places of the probes {self.mean_kl:.2g} nats (KL) in the mean, {self.max_kl:.2g} at most; "
            f"the likeliest token is the same at {self.same_greedy:.1%}"
        )


def as_one(parts: Sequence[tuple[LoRA, float]]) -> LoRA:
    """Adapters, each with a scale, as one adapter that adds the sum of their changes.

    Raises:
        AdapterError: if one of several is DoRA's.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    if any(own.magnitude is not None for lora, _ in parts for own in lora.weights.values()):
        raise AdapterError("a DoRA adapter answers alone and whole: its magnitudes do not add to another's change")
    weights = {}
    for name in dict.fromkeys(name for lora, _ in parts for name in lora.weights):
        own = [(lora.weights[name], scale) for lora, scale in parts if name in lora.weights]
        a = torch.cat([one.factors[0].detach().float() for one, _ in own])
        b = torch.cat([one.factors[1].detach().float() * (one.scale * scale) for one, scale in own], 1)
        weights[name] = LoRAWeights(a=a, b=b, scale=1.0)
    return LoRA(config=parts[0][0].config, weights=weights)


@torch.inference_mode()
def merge(base: Base, lora: LoRA, prompts: Sequence[Sequence[int]]) -> Divergence:
    """Fold an adapter into the base's weights; the base is another one after it.

    Raises:
        AdapterError: if the adapter is DoRA's or the base is held in few bits: neither is a plain sum of weights.
    """
    if base.quantisation is not None or any(own.magnitude is not None for own in lora.weights.values()):
        raise AdapterError("only a plain adapter on a base of full precision can be merged: serve this one beside its base instead")
    ready = lora.to(dtype=base.dtype, device=base.device)
    apart = _log_probabilities(base, prompts, ready)
    for name, own in lora.weights.items():
        weight = base.layers[name].weight
        a, b = own.factors
        weight.data = (weight.float() + own.scale * (b.float() @ a.float())).to(weight.dtype)
    together = _log_probabilities(base, prompts, None)
    kl = (apart.exp() * (apart - together)).sum(-1)  # (N)
    same = (apart.argmax(-1) == together.argmax(-1)).float().mean()
    return Divergence(mean_kl=float(kl.mean()), max_kl=float(kl.max()), same_greedy=float(same), num_places=len(kl))


def _log_probabilities(base: Base, prompts: Sequence[Sequence[int]], lora: LoRA | None) -> Tensor:
    """(all places of all prompts, V), float32."""
    lengths = [len(ids) for ids in prompts]
    ids = torch.tensor([i for prompt in prompts for i in prompt], device=base.device)
    positions = torch.cat([torch.arange(length, device=base.device) for length in lengths])
    rows = [AdapterRows(start=0, stop=len(ids), adapter=lora)]
    hidden = base.hidden_states(ids, positions, PackedSegments(whole(lengths), base.device), rows)
    return base.head.logits(hidden).float().log_softmax(-1)
