"""The norm of inference: nothing is kept for a backward pass, and a few rows go through one compiled call."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lorimer.inference.kernels import Kernels

FEW_ROWS = 64  # up to here torch's calls cost more than the norms of a step


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * gain, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    gain: Tensor  # (h), float32
    eps: float
    kernels: Kernels | None

    def __call__(self, x: Tensor) -> Tensor:
        """x (.., h) -> (.., h)."""
        if self.kernels is not None and len(x) <= FEW_ROWS:
            return self.kernels.rms_norm(x, self.gain, self.eps)
        return F.rms_norm(x.float(), self.gain.shape, self.gain, self.eps).to(x.dtype)


def add_and_norm(hidden: Tensor, mixed: Tensor, mixed_norm: Norm | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """hidden (T, h) and what a block makes of it (T, h), itself normed in some architectures -> their sum, and the sum normed.

    `hidden` may be overwritten.
    """
    if norm.kernels is not None and len(hidden) <= FEW_ROWS:
        own = None if mixed_norm is None else (mixed_norm.gain, mixed_norm.eps)
        return hidden, norm.kernels.add_and_norm(hidden, mixed, own, (norm.gain, norm.eps))
    hidden = hidden + (mixed if mixed_norm is None else mixed_norm(mixed))
    return hidden, norm(hidden)
