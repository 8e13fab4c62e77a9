"""What an adapter changes, layer by layer, as factors; and the ways in which several such changes become one. It knows no versions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lorimer.errors import AdapterError
from lorimer.model.peft_config import read_peft_config

WEIGHTS_FILE, PREFIX = "adapter_model.safetensors", "base_model.model."
EXACT_SVD = 2048
"""Changes with no side shorter than this are factorised by random projection (Halko et al. 2011), in a hundredth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One layer's change: b @ a."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank), the scale in it

    def delta(self) -> Tensor:
        """The change itself: (out, in)."""
        return self.b @ self.a


def read_factors(folder: Path) -> dict[str, Factors]:
    """The change an adapter's files make to each layer, by the layer's name.

    Raises:
        AdapterError: if they are not of an adapter that could be merged.
    """
    config = read_peft_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {WEIGHTS_FILE} is missing or damaged ({exc}): restore it") from exc
    found = {}
    for key, a in tensors.items():
        layer = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if key == f"{PREFIX}{layer}.lora_A.weight" and (b := tensors.get(f"{PREFIX}{layer}.lora_B.weight")) is not None:
            found[layer] = Factors(a=a.float(), b=b.float() * config.scale_of(layer, a.shape[0]))
    if 2 * len(found) != len(tensors) or not found:
        raise AdapterError(f"adapter in {str(folder)!r} holds other tensors than pairs of lora_A and lora_B: it cannot be merged")
    return found


def concatenate(own: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted sum, exactly: factors side by side, ranks added up."""
    b = torch.cat([weight * factors.b for weight, factors in zip(weights, own, strict=True)], 1)
    return Factors(a=torch.cat([factors.a for factors in own]), b=b)


def truncate(factors: Factors, rank: int) -> tuple[Factors, float, float]:
    """The closest change of a rank, from the factors alone: the singular values of B A are those of the small R_b R_a^T."""
    if rank >= factors.a.shape[0]:
        return factors, 1.0, 1.0
    q_b, r_b = torch.linalg.qr(factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    a, b = vh[:rank] @ q_a.T, (q_b @ u[:, :rank]) * s[:rank]
    return Factors(a=a.float(), b=b.float()), *_shares(s, rank)


def factorise(delta: Tensor, rank: int, *, seed: int = 0) -> tuple[Factors, float, float]:
    """The closest product of a rank to a change (out, in); with how much of its squared size that holds, and the whole."""
    rank = min(rank, *delta.shape)
    if min(delta.shape) <= EXACT_SVD:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return Factors(a=vh[:rank].contiguous(), b=(u[:, :rank] * s[:rank]).contiguous()), *_shares(s, rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(delta, q=min(rank + 16, *delta.shape), niter=8)
    kept = float(s[:rank].double().square().sum())
    return Factors(a=v[:, :rank].T.contiguous(), b=(u[:, :rank] * s[:rank]).contiguous()), kept, float(delta.double().square().sum())


def _shares(singular: Tensor, rank: int) -> tuple[float, float]:
    squares = singular.double().square()
    return float(squares[:rank].sum()), float(squares.sum())


def ties(own: Sequence[Factors], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect, and average those who agree. Signs are elected before weights are applied, as in PEFT."""
    trimmed = torch.stack([trim(factors.delta(), density) for factors in own])
    elected = torch.where(trimmed.sum(0) >= 0, 1, -1)
    agrees = trimmed.sign() == elected
    total: Tensor = (trimmed * torch.tensor(weights).view(-1, 1, 1) * agrees).sum(0)
    return total / agrees.sum(0).clamp(min=1)


def trim(delta: Tensor, density: float) -> Tensor:
    """A change's largest entries, the others zero."""
    if density >= 1:
        return delta
    keep = delta.abs().flatten().topk(int(density * delta.numel())).indices
    mask = torch.zeros(delta.numel())
    mask[keep] = 1
    return delta * mask.view_as(delta)


def dare(own: Sequence[Factors], weights: Sequence[float], density: float, keys: Sequence[str]) -> Tensor:
    """Drop, rescale, add; what is dropped of each follows from its key."""
    dropped = [weight * drop(factors.delta(), density, key=key) for weight, factors, key in zip(weights, own, keys, strict=True)]
    return torch.stack(dropped).sum(0)


def drop(delta: Tensor, density: float, *, key: str) -> Tensor:
    """A change with entries dropped at random and the rest scaled up, so that what is expected stays the same; equal keys drop equally."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    mask = torch.bernoulli(torch.full_like(delta, density), generator=torch.Generator().manual_seed(seed))
    return delta * mask / density
