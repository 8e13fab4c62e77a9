"""AdamW with warm-up, decay and clipping; the schedule is a plain function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP_SHARE, MIN_WARM_UP_STEPS = 0.05, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), with the field's defaults for adapters."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0


def make_optimizer(parameters: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer over an adapter's float32 master weights."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over 5% of the steps (at least five, at most half), then linear decay that ends just above zero. Steps from 0."""
    warm_up = min(max(MIN_WARM_UP_STEPS, round(WARM_UP_SHARE * num_steps)), num_steps // 2)
    if step < warm_up:
        return peak * (step + 1) / (warm_up + 1)
    return peak * (num_steps - step) / (num_steps - warm_up)
