"""Root-mean-square norms that keep only their input for the backward pass (Zhang and Sennrich 2019, arXiv:1910.07467).

transformers' norms leave half a dozen float32 intermediates to autograd; these recompute them. Which gain a norm applies (its weight,
or one plus its weight as in Gemma) is found by asking the norm itself, so no architecture is named here.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.model.replace import replace_equal


class RMSNorm(nn.Module):
    """y = x / rms(x) * (weight + offset), computed in float32."""

    def __init__(self, weight: Tensor, offset: float, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)  # (h), under the name and in the precision of the base's files
        self.offset, self.eps = offset, eps

    def forward(self, x: Tensor) -> Tensor:
        """x (.., h) -> (.., h)."""
        result: Tensor = _RMSNorm.apply(x, self.weight.float() + self.offset, self.eps)  # type: ignore[no-untyped-call]
        return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = x.float() if x.dtype != torch.float32 else x.clone()
        inverse = torch.linalg.vecdot(wide, wide).unsqueeze_(-1).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, gain)
        return wide.mul_(inverse).mul_(gain).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, gain = ctx.saved_tensors
        d_normed = grads[0].float() * gain
        normed = x.float() * inverse
        d_gain = (grads[0].float() * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        share = torch.linalg.vecdot(d_normed, normed).unsqueeze_(-1).div_(x.shape[-1])
        return d_normed.sub_(normed.mul_(share)).mul_(inverse).to(x.dtype), d_gain, None


def replace_norms(model: nn.Module) -> int:
    """Put an `RMSNorm` in the place of every norm it equals; returns how many there were. Others stay as they are."""
    return replace_equal(model, "RMSNorm", _equal_norm)


@torch.no_grad()
def _equal_norm(module: nn.Module) -> RMSNorm | None:
    """A norm of ours that answers as `module` does, or None."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(eps, float):
        return None
    x = torch.linspace(-2, 3, 2 * weight.shape[0], device=weight.device).view(2, -1)
    wanted = copy.deepcopy(module).float()(x)  # float32, where a gain of 60 and one of 61 are told apart
    for offset in (0.0, 1.0):
        ours = RMSNorm(weight.data, offset, eps)
        if torch.allclose(ours(x), wanted, rtol=1e-5, atol=1e-6):
            return ours
    return None
