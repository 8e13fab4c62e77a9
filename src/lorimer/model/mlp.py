"""Gated feed-forward blocks that keep only the two halves of their gate for the backward pass and compute the rest again.

y = down(activation(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202). Left to autograd a block keeps four tensors as wide as its
middle; this keeps two. Which blocks are of this form is found by asking them, so no architecture is named here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.model.lora import LoRALinear, add_change, backward_of_change
from lorimer.model.replace import replace_equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An activation and its backward pass."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the output, input) -> gradient of the input."""


GELU_TANH = Activation(
    forward=lambda x: F.gelu(x, approximate="tanh"),
    backward=lambda d, x: torch.ops.aten.gelu_backward(d, x, approximate="tanh"),
)
SILU = Activation(forward=F.silu, backward=torch.ops.aten.silu_backward)
ACTIVATIONS = (GELU_TANH, SILU, Activation(forward=F.gelu, backward=torch.ops.aten.gelu_backward))


class GatedMLP(nn.Module):
    """The block, with its layers under the names they had."""

    def __init__(self, gate_proj: LoRALinear, up_proj: LoRALinear, down_proj: LoRALinear, activation: Activation) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.activation = gate_proj, up_proj, down_proj, activation

    def forward(self, x: Tensor) -> Tensor:
        """x (.., h) -> (.., h)."""
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        changes = list(down.routing.weights_for(down.name))
        is_plain = not torch.is_grad_enabled() or not gate.requires_grad or down.weight.requires_grad
        if is_plain or any(weights.magnitude is not None for _, weights in changes):
            y: Tensor = down(self.activation.forward(gate).mul_(up) if not torch.is_grad_enabled() else self.activation.forward(gate) * up)
            return y
        factors = [factor for _, weights in changes for factor in weights.factors]
        gate, up = gate.flatten(0, -2), up.flatten(0, -2)
        y = _GatedDown.apply(gate, up, down, self.activation, down.layout(changes), *factors)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], down.out_features)


class _GatedDown(torch.autograd.Function):
    """activation(gate) * up through the last layer, the product made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        down: LoRALinear,
        activation: Activation,
        layout: Any,
        *factors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(gate, up, *factors)
        ctx.down, ctx.activation, ctx.layout = down, activation, layout
        middle = activation.forward(gate).mul_(up)
        y = F.linear(middle, down.dense_weight(), down.bias)
        add_change(y, middle, layout, factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *factors = ctx.saved_tensors
        activated = ctx.activation.forward(gate)
        d_middle = grads[0] @ ctx.down.dense_weight()
        d_factors = backward_of_change(grads[0], activated * up, d_middle, ctx.layout, factors)
        d_gate = ctx.activation.backward(d_middle * up, gate)
        return d_gate, d_middle.mul_(activated), None, None, None, *d_factors


def replace_gated_mlps(model: nn.Module) -> int:
    """Put a `GatedMLP` in the place of every block it equals; returns how many there were. Others stay as they are."""
    return replace_equal(model, "MLP", _equal_block)


@torch.no_grad()
def _equal_block(module: nn.Module) -> GatedMLP | None:
    """A block of ours that answers as `module` does, or None."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if len(list(module.children())) > 4 or not all(isinstance(part, LoRALinear) for part in parts):
        return None
    gate, up, down = parts
    weight = gate.weight  # type: ignore[union-attr]
    x = torch.linspace(-2, 2, weight.shape[1], device=weight.device, dtype=weight.dtype)[None]
    wanted = module(x)
    for activation in ACTIVATIONS:
        ours = GatedMLP(gate, up, down, activation)  # type: ignore[arg-type]
        if torch.equal(ours(x), wanted):
            return ours
    return None
