"""Cross entropy over supervised rows only, in chunks, its gradient formed on the way forward, so no full logits are ever kept.

The idea of forming the gradient in the forward pass is Liger Kernel's (Hsu et al. 2024, arXiv:2410.10989). Chunks run over tokens,
not over the vocabulary: each row of the hidden gradient is one product over the whole vocabulary, with no sum of rounded parts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorimer.model.base import Head

CHUNK_BYTES = 128_000_000  # logits of one product: many rows make the product fast
BLOCK_BYTES = 4_000_000  # float32 logits of one softmax: few rows keep it in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How a model does on tokens it should say, one entry a token."""

    losses: Tensor  # (N) float32, negative log-likelihoods in nats
    is_likeliest: Tensor  # (N) bool, whether greedy decoding would say it


def cross_entropy(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (N, h), targets and weights (N) -> the weighted sum of negative log-likelihoods, and each of them (N), without gradient.

    Gradients reach `hidden`, and the head's weight and bias where they are trained. Weights are float32: one over the number of supervised
    tokens of the step the token belongs to makes the sum a mean, whatever else is in the batch.
    """
    total, losses = _CrossEntropy.apply(hidden, head.weight, head.bias, targets, weights, head)  # type: ignore[no-untyped-call]
    return total, losses


def token_log_likelihoods(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """hidden (N, h), targets (N) -> log-likelihoods (N); for losses whose weights depend on them. The logits are formed twice."""
    found: Tensor = _LogLikelihoods.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def score_tokens(hidden: Tensor, head: Head, targets: Tensor) -> TokenScores:
    """hidden (N, h), targets (N) -> losses and whether each target is the likeliest token; nothing is kept."""
    losses, is_likeliest = [], []
    block_len = max(1, BLOCK_BYTES // (4 * head.weight.shape[0]))
    chunks = _chunks(hidden, head)
    buffer = _buffer(chunks[0].stop if chunks else 0, head.weight)
    for own in chunks:
        rows = hidden[own]
        whole = torch.mm(rows, head.weight.T, out=buffer[: len(rows)])  # (n, V)
        if head.bias is not None:
            whole += head.bias
        for raw, places in zip(torch.split(whole, block_len), torch.split(targets[own], block_len), strict=True):
            logits = head.shape(raw).float()
            losses.append(logits.logsumexp(1) - logits.gather(1, places[:, None])[:, 0])
            is_likeliest.append(logits.argmax(1) == places)
    if not losses:
        return TokenScores(losses=hidden.new_empty(0, dtype=torch.float32), is_likeliest=torch.empty(0, dtype=torch.bool))
    return TokenScores(losses=torch.cat(losses), is_likeliest=torch.cat(is_likeliest))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        chunks = _chunks(hidden, head)
        buffer = _buffer(chunks[0].stop if chunks else 0, weight)
        for own in chunks:
            rows = hidden[own]
            logits = torch.mm(rows, weight.T, out=buffer[: len(rows)])  # (n, V), overwritten by its own gradient
            if bias is not None:
                logits += bias
            losses[own] = _softmax_gradient(logits, targets[own], head)
            torch.mm(logits, weight, out=gradient[own])
            if d_weight is not None:
                d_weight.addmm_(logits.T, rows * weights[own, None].to(rows.dtype))
            if d_bias is not None:
                d_bias.addmv_(logits.T, weights[own].to(logits.dtype))
        gradient *= weights[:, None].to(gradient.dtype)
        ctx.save_for_backward(gradient, d_weight, d_bias)
        ctx.mark_non_differentiable(losses)
        return torch.dot(losses, weights), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope = grads[0].to(ctx.saved_tensors[0].dtype)
        return *(None if gradient is None else gradient * slope for gradient in ctx.saved_tensors), None, None, None


class _LogLikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        ctx.save_for_backward(hidden, targets)
        ctx.head = head
        return -score_tokens(hidden, head, targets).losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        with torch.enable_grad():
            again = hidden.detach().requires_grad_()
            total, _ = cross_entropy(again, ctx.head, targets, -grads[0])
        (gradient,) = torch.autograd.grad(total, again)
        return gradient, None, None


_BUFFERS: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _buffer(num_rows: int, weight: Tensor) -> Tensor:
    """(at least num_rows, V), the same in every step: buffers of ever other sizes leave holes in memory too small for the next one."""
    key = weight.shape[0], weight.dtype, weight.device
    if key not in _BUFFERS or len(_BUFFERS[key]) < num_rows:
        _BUFFERS[key] = torch.empty(1 << max(0, num_rows - 1).bit_length(), weight.shape[0], dtype=weight.dtype, device=weight.device)
    return _BUFFERS[key]


def _chunks(hidden: Tensor, head: Head) -> list[slice]:
    """Rows whose logits are formed in one product."""
    chunk_len = max(1, CHUNK_BYTES // (hidden.element_size() * head.weight.shape[0]))
    return [slice(start, min(start + chunk_len, len(hidden))) for start in range(0, len(hidden), chunk_len)]


def _softmax_gradient(raw: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The losses (n) of raw logits (n, V), which are overwritten by the gradient of their sum."""
    block_len = max(1, BLOCK_BYTES // (4 * raw.shape[1]))
    wide, probabilities = (raw.new_empty(min(block_len, len(raw)), raw.shape[1], dtype=torch.float32) for _ in range(2))
    losses = []
    for start in range(0, len(raw), block_len):
        own = raw[start : start + block_len]
        logits, slope = wide[: len(own)].copy_(own), None
        if head.scale != 1.0:
            logits *= head.scale
        if head.softcap is not None:
            capped = torch.tanh(logits / head.softcap)
            slope = 1 - capped**2
            torch.mul(capped, head.softcap, out=logits)
        places = targets[start : start + block_len, None]  # (n, 1)
        wanted, highest = logits.gather(1, places), logits.amax(1, keepdim=True)
        gradient = torch._softmax(logits, 1, False, out=probabilities[: len(own)])
        losses.append((highest - wanted - gradient.amax(1, keepdim=True).log())[:, 0])  # the likeliest token's own loss is known
        gradient.scatter_add_(1, places, torch.full_like(wanted, -1.0))  # probabilities, minus one at the wanted token
        if slope is not None:
            gradient *= slope
        if head.scale != 1.0:
            gradient *= head.scale
        own.copy_(gradient)
    return torch.cat(losses)
