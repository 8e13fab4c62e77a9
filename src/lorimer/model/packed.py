"""Frozen weights in the order the processor's matrix kernels want, packed once when a base is served.

Decoding is reading weights; packed ones are read 1.4 to 1.7 times as fast on a CPU (dev/LOG.md). Linears that read the same input are
packed as one product. Where the processor's library cannot pack (another device, another precision) they stay as they are.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16  # the number of rows packing is best for: a batch of answers in the middle


class PackedLinear:
    """x -> all the outputs of linears that read x, side by side."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.in_features, self.out_features = weights[0].shape[1], tuple(weight.shape[0] for weight in weights)
        weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))  # (out, in)
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            parts = [weight.new_zeros(n) if bias is None else bias for bias, n in zip(biases, self.out_features, strict=True)]
            self.bias = torch.cat(parts).detach()
        self.is_packed = can_pack(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS) if self.is_packed else weight.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, in) -> (T, out)."""
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (T, in) -> each linear's own (T, out)."""
        return tuple(self(x).split_with_sizes(list(self.out_features), 1))

    def dense(self) -> Tensor:
        """(out, in), as it was before packing."""
        return self.weight.to_dense() if self.is_packed else self.weight


def can_pack(weight: Tensor) -> bool:
    """Whether this machine's library packs weights of this precision, asked of the library itself."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        small = torch.eye(16, dtype=weight.dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(small, ROWS)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(small, packed, None, "none", [], ""), small)
    except (RuntimeError, AttributeError):
        return False
