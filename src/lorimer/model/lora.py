"""The adapter layers: a frozen linear with low-rank products beside it (Hu et al. 2021, arXiv:2106.09685).

One `LoRALinear` serves training and inference: the rows of a batch are divided into `AdapterRows`, each with its own adapter or none.
It knows nothing of files, names or models; see adapter.py for PEFT's format and base.py for where the layers are put.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.model.quantised import QuantisedWeight

Kind = Literal["lora", "dora", "pissa"]
SVD_ITERATIONS = 8  # of the randomised decomposition; PEFT's `pissa_niter_8` stays within a percent of the full one


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """What an adapter adds to its base."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Full names of the adapted linear layers, as `model.layers.0.self_attn.q_proj`."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Layers whose rank is another, by full name. Their scale is not: engines that ignore it (vLLM, SGLang) then still answer right."""
    kind: Kind = "lora"
    """`dora` learns a magnitude beside the direction (arXiv:2402.09353); `pissa` starts from the base's own principal parts
    (arXiv:2404.02948)."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)."""
    dropout: float = 0.0
    """Share of a layer's inputs that training hides from the adapter, never from the base."""

    def rank_of(self, name: str) -> int:
        """Of one layer."""
        return self.ranks.get(name, self.rank)

    @property
    def scale(self) -> float:
        """What every layer's low-rank product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAWeights:
    """One layer's share of an adapter: y += scale * (x a^T) b^T."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank)
    scale: float
    magnitude: Tensor | None = None  # (out), DoRA: the row norms of the adapted weight
    anchor: tuple[Tensor, Tensor] | None = None
    """PiSSA: where a and b began. What they add is counted from there, so that the base itself stays as it is."""

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """a and b of the change they make together: with an anchor of twice the rank."""
        if self.anchor is None:
            return self.a, self.b
        return torch.cat([self.a, self.anchor[0]]), torch.cat([self.b, -self.anchor[1]], 1)

    @property
    def trained(self) -> list[Tensor]:
        """What an optimizer changes."""
        return [self.a, self.b] if self.magnitude is None else [self.a, self.b, self.magnitude]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """An adapter in memory."""

    config: LoRAConfig
    weights: Mapping[str, LoRAWeights]
    """By the full name of the adapted layer."""

    @property
    def num_parameters(self) -> int:
        """Numbers the adapter learns."""
        return sum(tensor.numel() for tensor in self.parameters())

    def parameters(self) -> list[Tensor]:
        """All that is trained, in a stable order."""
        return [tensor for name in sorted(self.weights) for tensor in self.weights[name].trained]

    def to(self, *, dtype: torch.dtype, device: torch.device) -> "LoRA":
        """A copy for inference in another precision or place, an anchor folded in."""
        weights = {}
        for name, own in self.weights.items():
            a, b = (factor.detach().to(device, dtype) for factor in own.factors)
            magnitude = None if own.magnitude is None else own.magnitude.detach().to(device)
            weights[name] = LoRAWeights(a=a, b=b, scale=own.scale, magnitude=magnitude)
        return LoRA(config=self.config, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRows:
    """A range of a batch's tokens and the adapter they go through; None is the base alone."""

    start: int
    stop: int
    adapter: LoRA | None
    dropout_key: str | None = None
    """What the dropout of these rows is drawn from: the run's seed, step and micro-batch, so never from what else is in the batch."""


class Routing:
    """Which rows of the batch in flight go through which adapter; shared by all layers of a base, set before each forward pass."""

    def __init__(self) -> None:
        self.rows: tuple[AdapterRows, ...] = ()
        self.change: Callable[[str, Tensor, Tensor], Tensor] | None = None
        """Inference's own way: asked by every layer, (name, x (T, in), y (T, out)), for y with what the batch's adapters make of x."""

    def weights_for(self, name: str) -> Iterable[tuple[AdapterRows, LoRAWeights]]:
        """The ranges that change at the layer of this name."""
        for rows in self.rows:
            if rows.adapter is not None and (weights := rows.adapter.weights.get(name)) is not None:
                yield rows, weights


Change = tuple[AdapterRows, LoRAWeights]


class LoRALinear(nn.Module):
    """A frozen linear layer, plus what the adapters of the batch add to their rows."""

    def __init__(self, linear: nn.Linear, name: str, routing: Routing) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # (out, in), (out) or None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.name, self.routing = name, routing
        self.quantised: QuantisedWeight | None = None

    def dense_weight(self) -> Tensor:
        """(out, in), made from its few bits where it is held in them."""
        return self.weight if self.quantised is None else self.quantised.dequantise()

    def forward(self, x: Tensor) -> Tensor:
        """x (.., in) -> (.., out); the leading dimensions together are the batch's tokens."""
        changes = list(self.routing.weights_for(self.name))
        flat = x.reshape(-1, self.in_features)
        if any(weights.magnitude is not None for _, weights in changes):
            y = self._forward_dora(flat, changes)
        elif torch.is_grad_enabled() and (changes or self.quantised is not None):
            y = self._forward_train(flat, changes)
        else:
            y = self._forward_inference(flat, changes)
        return y.view(*x.shape[:-1], self.out_features)

    def layout(self, changes: Sequence[Change]) -> "tuple[_Range, ...]":
        """Where each adapter's rows are and how they are changed, for the autograd functions."""
        return tuple(_range(rows, weights.scale, self.name) for rows, weights in changes)

    def _forward_train(self, x: Tensor, changes: Sequence[Change]) -> Tensor:
        factors = [factor for _, weights in changes for factor in weights.factors]
        y: Tensor = _LoRALinear.apply(x, self, self.layout(changes), *factors)  # type: ignore[no-untyped-call]
        return y

    def _forward_inference(self, x: Tensor, changes: Sequence[Change]) -> Tensor:
        y = F.linear(x, self.dense_weight(), self.bias)
        if self.routing.change is not None:
            y = self.routing.change(self.name, x, y)
        for rows, weights in changes:
            own = slice(rows.start, rows.stop)
            y[own].addmm_(x[own] @ weights.a.to(x.dtype).T, weights.b.to(x.dtype).T, alpha=weights.scale)
        return y

    def _forward_dora(self, x: Tensor, changes: Sequence[Change]) -> Tensor:
        """Plainly, each range after the other: DoRA is here for comparison. The norm counts as constant (paper, section 4.3)."""
        base = F.linear(x, self.dense_weight())
        pieces, at = [], 0
        for rows, weights in changes:
            own, (a, b) = slice(rows.start, rows.stop), weights.factors
            changed = base[own] + weights.scale * ((x[own] @ a.to(x.dtype).T) @ b.to(x.dtype).T)
            if weights.magnitude is not None:
                norm = row_norms(self.dense_weight().float() + weights.scale * (b.detach().float() @ a.detach().float()))
                changed = changed * (weights.magnitude / norm).to(x.dtype)
            pieces += [base[at : rows.start], changed]
            at = rows.stop
        y = torch.cat([*pieces, base[at:]])
        return y if self.bias is None else y + self.bias


class _Range(NamedTuple):
    """Rows that an adapter changes in one layer."""

    start: int
    stop: int
    scale: float
    dropout: float
    seed: int

    def drop(self, rows: Tensor) -> Tensor:
        """rows (T, n) with some entries hidden, the same ones each time it is asked: no mask has to be kept."""
        if not self.dropout:
            return rows
        generator = torch.Generator(rows.device).manual_seed(self.seed)
        mask = torch.empty_like(rows, memory_format=torch.contiguous_format).bernoulli_(1 - self.dropout, generator=generator)
        return mask.mul_(rows).div_(1 - self.dropout)


def _range(rows: AdapterRows, scale: float, name: str) -> _Range:
    dropout = rows.adapter.config.dropout if rows.adapter is not None and rows.dropout_key is not None else 0.0
    drawn = hashlib.blake2b(f"{rows.dropout_key} {name}".encode(), digest_size=8).digest() if dropout else b""
    return _Range(rows.start, rows.stop, scale, dropout, int.from_bytes(drawn, "big") >> 1)


class _LoRALinear(torch.autograd.Function):
    """y = x W^T + bias + scale * (x a^T) b^T on each adapter's rows, saving only x; layers that read the same x share the one tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LoRALinear, layout: Sequence[_Range], *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x if layout else None, *factors)
        ctx.layer, ctx.layout = layer, layout
        y = F.linear(x, layer.dense_weight(), layer.bias)
        add_change(y, x, layout, factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        dx = grads[0] @ ctx.layer.dense_weight() if ctx.needs_input_grad[0] else None
        return dx, None, None, *backward_of_change(grads[0], x, dx, ctx.layout, factors)


def add_change(y: Tensor, x: Tensor, layout: Sequence[_Range], factors: Sequence[Tensor]) -> None:
    """Add each adapter's low-rank products to its rows of y (T, out), which x (T, in) became.

    Ranges are sliced, never masked: what is not finite in one adapter's rows cannot reach another's.
    """
    for own, a, b in zip(layout, factors[::2], factors[1::2], strict=True):
        rows = slice(own.start, own.stop)
        y[rows].addmm_(_skinny(own.drop(x[rows]), a), b.to(x.dtype).T, alpha=own.scale)


def backward_of_change(dy: Tensor, x: Tensor, dx: Tensor | None, layout: Sequence[_Range], factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of all factors, float32; what reaches x through them is added to dx."""
    gradients = []
    for own, a, b in zip(layout, factors[::2], factors[1::2], strict=True):
        rows = slice(own.start, own.stop)
        own_x, own_dy = own.drop(x[rows]), dy[rows]
        dy_b = _skinny(own_dy, b.T)  # (T, rank)
        gradients += [(dy_b.T @ own_x).float().mul_(own.scale), (own_dy.T @ _skinny(own_x, a)).float().mul_(own.scale)]
        if dx is not None and own.dropout:
            dx[rows].add_(own.drop(dy_b @ a.to(x.dtype)), alpha=own.scale)
        elif dx is not None:
            dx[rows].addmm_(dy_b, a.to(x.dtype), alpha=own.scale)
    return gradients


def _skinny(rows: Tensor, factor: Tensor) -> Tensor:
    """rows (T, n), factor (rank, n) -> (T, rank), written the way round that is twice as fast on a CPU (dev/LOG.md)."""
    return (factor.to(rows.dtype) @ rows.T).T


def row_norms(weight: Tensor) -> Tensor:
    """(out, in) -> (out)."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms


def initialise(config: LoRAConfig, layers: Mapping[str, LoRALinear], seed: int) -> LoRA:
    """A new adapter that changes nothing yet, float32 and trainable: a uniform in +-1/sqrt(in), b zero.

    The bound is that of "LoRA Without Regret" (Schulman et al. 2025) and of PEFT's default Kaiming initialisation.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in config.target_modules:
        layer, rank, scale = layers[name], config.rank_of(name), config.scale
        if config.kind == "pissa":
            a, b = _principal_factors(layer.dense_weight(), rank, scale, seed)
            anchor = (a.clone(), b.clone())
        else:
            bound = 1 / math.sqrt(layer.in_features)
            a = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator).to(layer.weight.device)
            b, anchor = torch.zeros(layer.out_features, rank, device=layer.weight.device), None
        magnitude = row_norms(layer.dense_weight().float()).requires_grad_() if config.kind == "dora" else None
        weights[name] = LoRAWeights(a=a.requires_grad_(), b=b.requires_grad_(), scale=scale, magnitude=magnitude, anchor=anchor)
    return LoRA(config=config, weights=weights)


def _principal_factors(weight: Tensor, rank: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """a (rank, in) and b (out, rank) with scale * b a the weight's best approximation of that rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(weight.float(), q=min(rank, *weight.shape), niter=SVD_ITERATIONS)
    root = (s / scale).sqrt()
    missing = rank - len(s)  # a rank above the layer's own width has nothing more to begin from
    return F.pad((v * root).T, (0, 0, 0, missing)).contiguous(), F.pad(u * root, (0, missing)).contiguous()
