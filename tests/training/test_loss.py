"""The fused, chunked cross entropy equals torch's, value and gradient."""

from types import SimpleNamespace

import pytest
import torch

from lorimer.training import loss
from lorimer.training.loss import cross_entropy, score_tokens, token_log_likelihoods


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
    weights = torch.rand(11)
    found, losses = cross_entropy(ours, head, targets, weights)
    logits = torch.nn.functional.linear(theirs, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    wanted = (each * weights).sum()
    (found * 0.5).backward()
    (wanted * 0.5).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(losses, each.detach())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def small_head(num_tokens: int = 50, width: int = 8) -> SimpleNamespace:
    weight = torch.randn(num_tokens, width)
    return SimpleNamespace(
        weight=weight, bias=None, scale=1.0, softcap=None, logits=lambda hidden: hidden @ weight.T, shape=lambda logits: logits
    )


def test_no_targets_cost_nothing() -> None:
    total, losses = cross_entropy(torch.empty(0, 3), small_head(5, 3), torch.empty(0, dtype=torch.long), torch.empty(0))
    assert (float(total), len(losses)) == (0, 0)


def test_log_likelihoods_carry_the_gradient_of_what_is_made_of_them() -> None:
    torch.manual_seed(0)
    head, hidden, targets = small_head(), torch.randn(7, 8), torch.randint(0, 50, (7,))
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = token_log_likelihoods(ours, head, targets)
    wanted = torch.log_softmax(head.logits(theirs), -1).gather(1, targets[:, None])[:, 0]
    torch.nn.functional.logsigmoid(found.sum()).backward()
    torch.nn.functional.logsigmoid(wanted.sum()).backward()
    torch.testing.assert_close(found, wanted.detach())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_scores_are_losses_and_whether_greedy_decoding_agrees() -> None:
    torch.manual_seed(0)
    head, hidden = small_head(), torch.randn(9, 8)
    likeliest = head.logits(hidden).argmax(1)
    targets = torch.where(torch.arange(9) % 2 == 0, likeliest, (likeliest + 1) % 50)
    scores = score_tokens(hidden, head, targets)
    assert scores.is_likeliest.tolist() == [i % 2 == 0 for i in range(9)]
    torch.testing.assert_close(scores.losses, torch.nn.functional.cross_entropy(head.logits(hidden), targets, reduction="none"))


@pytest.mark.parametrize("chunk_bytes", [10**9, 1])
def test_gradient_reaches_a_head_that_is_trained(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    head, hidden, targets, weights = small_head(), torch.randn(6, 8), torch.randint(0, 50, (6,)), torch.rand(6)
    head.bias = torch.randn(50).requires_grad_()
    head.weight.requires_grad_()
    total, _ = cross_entropy(hidden, head, targets, weights)
    (0.5 * total).backward()
    weight, bias = (part.detach().clone().requires_grad_() for part in (head.weight, head.bias))
    each = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    (0.5 * (each * weights).sum()).backward()
    torch.testing.assert_close(head.weight.grad, weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.bias.grad, bias.grad, rtol=1e-5, atol=1e-6)
