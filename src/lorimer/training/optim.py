"""AdamW with warm-up, decay and clipping; the schedule is a plain function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorimer.model.lora import LoRA

WARM_UP_SHARE, MIN_WARM_UP_STEPS = 0.05, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), with the field's defaults for adapters."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    b_rate_ratio: float = 1.0
    """How many times faster b learns than a; LoRA+ takes 16 (Hayou et al. 2024, arXiv:2402.12354)."""


def make_optimizer(lora: LoRA, config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer over an adapter's float32 master weights: one group of all b's, one of the rest."""
    names = sorted(lora.weights)
    rest = [tensor for name in names for tensor in lora.weights[name].trained if tensor is not lora.weights[name].b]
    groups = [{"params": rest, "ratio": 1.0}, {"params": [lora.weights[name].b for name in names], "ratio": config.b_rate_ratio}]
    return make_adamw(groups, config)


def make_adamw(groups: Sequence[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over groups that carry their `ratio` to the learning rate."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def take_step(optimizer: torch.optim.AdamW, learning_rate: float) -> None:
    """One step at this rate, each group by its ratio; gradients are dropped after it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def clip(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale gradients down to `max_norm` together; returns the norm they had."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over 5% of the steps (at least five, at most half), then linear decay that ends just above zero. Steps from 0."""
    warm_up = min(max(MIN_WARM_UP_STEPS, round(WARM_UP_SHARE * num_steps)), num_steps // 2)
    if step < warm_up:
        return peak * (step + 1) / (warm_up + 1)
    return peak * (num_steps - step) / (num_steps - warm_up)
