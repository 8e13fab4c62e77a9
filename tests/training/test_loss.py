"""The fused, chunked cross entropy equals torch's, value and gradient."""

from types import SimpleNamespace

import pytest
import torch

from lorimer.training import loss
from lorimer.training.loss import cross_entropy_sum


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("chunk_bytes", "block_bytes"), [(10**9, 10**9), (3 * 4 * 50, 2 * 4 * 50), (1, 1)])
def test_equals_torch(
    softcap: float | None, scale: float, with_bias: bool, chunk_bytes: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(loss, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(11, 8), torch.randn(50, 8), torch.randint(0, 50, (11,))
    bias = torch.randn(50) if with_bias else None
    head = SimpleNamespace(weight=weight, bias=bias, scale=scale, softcap=softcap)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = cross_entropy_sum(ours, head, targets)
    logits = torch.nn.functional.linear(theirs, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (found * 0.5).backward()
    (wanted * 0.5).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_no_targets_cost_nothing() -> None:
    head = SimpleNamespace(weight=torch.randn(5, 3), bias=None, scale=1.0, softcap=None)
    assert float(cross_entropy_sum(torch.empty(0, 3), head, torch.empty(0, dtype=torch.long))) == 0
