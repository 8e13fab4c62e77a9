"""Cross entropy over supervised rows only, in chunks, its gradient formed on the way forward, so no full logits are ever kept.

The idea of forming the gradient in the forward pass is Liger Kernel's (Hsu et al. 2024, arXiv:2410.10989). Chunks run over tokens,
not over the vocabulary: each row of the hidden gradient is one product over the whole vocabulary, with no sum of rounded parts.
"""

from typing import Any

import torch
from torch import Tensor

from lorimer.model.base import Head

CHUNK_BYTES = 128_000_000  # logits of one product: many rows make the product fast
BLOCK_BYTES = 8_000_000  # float32 logits of one softmax: few rows keep it in the processor's cache


def cross_entropy_sum(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """hidden (N, h), targets (N) -> the summed negative log-likelihood, a float32 scalar; gradients reach `hidden` alone."""
    result: Tensor = _CrossEntropySum.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        vocabulary_len = head.weight.shape[0]
        chunk_len = max(1, CHUNK_BYTES // (hidden.element_size() * vocabulary_len))
        block_len = max(1, BLOCK_BYTES // (4 * vocabulary_len))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        buffer = hidden.new_empty(min(chunk_len, len(targets)), vocabulary_len)
        for start in range(0, len(targets), chunk_len):
            own = slice(start, start + chunk_len)
            rows, wanted = hidden[own], targets[own]
            logits = torch.mm(rows, head.weight.T, out=buffer[: len(rows)])  # (n, V), overwritten by its own gradient
            if head.bias is not None:
                logits += head.bias
            for at in range(0, len(wanted), block_len):
                total += _softmax_gradient(logits[at : at + block_len], wanted[at : at + block_len], head)
            torch.mm(logits, head.weight, out=gradient[own])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None


def _softmax_gradient(raw: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The summed loss of raw logits (n, V), which are overwritten by its gradient with respect to them."""
    logits = raw.float() if raw.dtype != torch.float32 else raw.clone()
    if head.scale != 1.0:
        logits *= head.scale
    slope = None
    if head.softcap is not None:
        capped = torch.tanh(logits / head.softcap)
        logits, slope = capped * head.softcap, 1 - capped**2
    places = targets[:, None]  # (n, 1)
    wanted, highest = logits.gather(1, places), logits.amax(1, keepdim=True)
    normaliser = logits.sub_(highest).exp_().sum(1, keepdim=True)
    gradient = logits.div_(normaliser)  # probabilities, then minus one at the wanted token
    gradient.scatter_add_(1, places, torch.full_like(wanted, -1.0))
    if slope is not None:
        gradient *= slope
    if head.scale != 1.0:
        gradient *= head.scale
    raw.copy_(gradient)
    return (normaliser.log() + highest - wanted).sum()
