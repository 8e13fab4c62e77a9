"""The adapter layers: a frozen linear with low-rank products beside it (Hu et al. 2021, arXiv:2106.09685).

One `LoRALinear` serves training and inference: the rows of a batch are divided into `AdapterRows`, each with its own adapter or none.
It knows nothing of files, names or models; see adapter.py for PEFT's format and base.py for where the layers are put.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """What an adapter adds to its base."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Full names of the adapted linear layers, as `model.layers.0.self_attn.q_proj`."""

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAWeights:
    """One layer's share of an adapter: y += scale * (x a^T) b^T."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank)
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """An adapter in memory."""

    config: LoRAConfig
    weights: Mapping[str, LoRAWeights]
    """By the full name of the adapted layer."""

    @property
    def num_parameters(self) -> int:
        """Numbers the adapter adds."""
        return sum(w.a.numel() + w.b.numel() for w in self.weights.values())

    def parameters(self) -> list[Tensor]:
        """All its tensors, in a stable order."""
        return [tensor for name in sorted(self.weights) for tensor in (self.weights[name].a, self.weights[name].b)]

    def to(self, *, dtype: torch.dtype, device: torch.device) -> "LoRA":
        """A copy for inference in another precision or place."""
        return LoRA(
            config=self.config,
            weights={
                name: LoRAWeights(a=w.a.detach().to(device, dtype), b=w.b.detach().to(device, dtype), scale=w.scale)
                for name, w in self.weights.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRows:
    """A range of a batch's tokens and the adapter they go through; None is the base alone."""

    start: int
    stop: int
    adapter: LoRA | None


class Routing:
    """Which rows of the batch in flight go through which adapter; shared by all layers of a base, set before each forward pass."""

    def __init__(self) -> None:
        self.rows: tuple[AdapterRows, ...] = ()

    def weights_for(self, name: str) -> Iterable[tuple[AdapterRows, LoRAWeights]]:
        """The ranges that change at the layer of this name."""
        for rows in self.rows:
            if rows.adapter is not None and (weights := rows.adapter.weights.get(name)) is not None:
                yield rows, weights


class LoRALinear(nn.Module):
    """A frozen linear layer, plus what the adapters of the batch add to their rows."""

    def __init__(self, linear: nn.Linear, name: str, routing: Routing) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # (out, in), (out) or None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.name, self.routing = name, routing

    def forward(self, x: Tensor) -> Tensor:
        """x (.., in) -> (.., out); the leading dimensions together are the batch's tokens."""
        changes = list(self.routing.weights_for(self.name))
        flat = x.reshape(-1, self.in_features)
        if not changes:
            y = F.linear(flat, self.weight, self.bias)
        elif torch.is_grad_enabled():
            y = self._forward_train(flat, changes)
        else:
            y = self._forward_inference(flat, changes)
        return y.view(*x.shape[:-1], self.out_features)

    def _forward_train(self, x: Tensor, changes: Sequence[tuple[AdapterRows, LoRAWeights]]) -> Tensor:
        if len(changes) == 1 and (changes[0][0].start, changes[0][0].stop) == (0, x.shape[0]):
            weights = changes[0][1]
            return _lora_linear(x, self.weight, self.bias, weights.a.to(x.dtype), weights.b.to(x.dtype), weights.scale)
        base = F.linear(x, self.weight, self.bias)
        pieces, at = [], 0
        for rows, weights in changes:
            own = slice(rows.start, rows.stop)
            delta = weights.scale * ((x[own] @ weights.a.to(x.dtype).T) @ weights.b.to(x.dtype).T)
            pieces += [base[at : rows.start], base[own] + delta]
            at = rows.stop
        return torch.cat([*pieces, base[at:]])

    def _forward_inference(self, x: Tensor, changes: Sequence[tuple[AdapterRows, LoRAWeights]]) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        for rows, weights in changes:
            own = slice(rows.start, rows.stop)
            y[own].addmm_(x[own] @ weights.a.T, weights.b.T, alpha=weights.scale)
        return y


class _LoRALinear(torch.autograd.Function):
    """y = x W^T + bias + scale * (x A^T) B^T, saving only x; layers that read the same x share the one saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(x @ a.T, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        dy = grads[0]
        dy_b = dy @ b  # (T, rank)
        da = (dy_b.T @ x).mul_(ctx.scale)
        db = (dy.T @ (x @ a.T)).mul_(ctx.scale)
        dx = (dy @ weight).addmm_(dy_b, a, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        return dx, None, None, da, db, None


def _lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    result: Tensor = _LoRALinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return result


def initialise(config: LoRAConfig, layers: Mapping[str, LoRALinear], seed: int) -> LoRA:
    """A new adapter that changes nothing yet: a uniform in +-1/sqrt(in), b zero, both float32 and trainable.

    The bound is that of "LoRA Without Regret" (Schulman et al. 2025) and of PEFT's default Kaiming initialisation.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in config.target_modules:
        layer = layers[name]
        bound = 1 / math.sqrt(layer.in_features)
        a = torch.empty(config.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(layer.out_features, config.rank)
        device = layer.weight.device
        weights[name] = LoRAWeights(a=a.to(device).requires_grad_(), b=b.to(device).requires_grad_(), scale=config.scale)
    return LoRA(config=config, weights=weights)
