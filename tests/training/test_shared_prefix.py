"""Rows that share a prefix learn what they would learn without sharing it: loss and every gradient, short rows and long, windows too."""

import pytest
import torch

from fakes import ARCHITECTURES, random_lora, tiny_base
from lorimer.model import attention
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA
from lorimer.training.batching import make_batch
from lorimer.training.loop import hidden_states
from lorimer.training.loss import cross_entropy


def rows_with(prefix_lens: tuple[int, ...], *, seed: int = 0, learn_prefix: bool = False) -> list[Rendered]:
    """Five rows a prefix, of different lengths; the first of them is the prefix and one token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for prefix_len in prefix_lens:
        prefix = torch.randint(5, 260, (prefix_len,), generator=generator).tolist()
        for length in (1, 3, 9, 9, 17):
            ids = (*prefix, *torch.randint(5, 260, (length,), generator=generator).tolist())
            rows.append(Rendered(ids=ids, supervised=tuple(learn_prefix or i >= len(ids) - 3 for i in range(len(ids)))))
    return rows


def gradients(base: Base, lora: LoRA, rows: list[Rendered], *, share: bool) -> tuple[float, list[torch.Tensor], int]:
    total, num_places = 0.0, 0
    for parameter in lora.parameters():
        parameter.grad = None
    for micro in make_batch(rows, range(len(rows)), 10_000, share_prefixes=share).micro_batches:
        with base.routed([AdapterRows(start=0, stop=len(micro.ids), adapter=lora)]):
            hidden = hidden_states(base, micro)
            loss, _ = cross_entropy(hidden[micro.predicting], base.head, micro.targets, torch.ones(len(micro.targets)))
            loss.backward()
        total, num_places = total + float(loss.detach()), num_places + len(micro.ids)
    return total, [parameter.grad.clone() for parameter in lora.parameters()], num_places


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prefix_lens", [(20,), (40, 25)])
@pytest.mark.parametrize("learn_prefix", [False, True])
@pytest.mark.parametrize("short_scores", [512 * 512, 1])
def test_sharing_changes_nothing(
    architecture: str, prefix_lens: tuple[int, ...], learn_prefix: bool, short_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT_SCORES", short_scores)  # 1 sends all rows through torch's kernel
    base = tiny_base(architecture)
    lora, rows = random_lora(base, size=0.1), rows_with(prefix_lens, learn_prefix=learn_prefix)
    shared_loss, shared, num_shared = gradients(base, lora, rows, share=True)
    loss, alone, num_alone = gradients(base, lora, rows, share=False)
    assert num_shared == num_alone - 4 * sum(prefix_lens)
    assert shared_loss == pytest.approx(loss, rel=1e-5)
    for found, wanted in zip(shared, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
