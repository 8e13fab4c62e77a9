"""Choosing the next token: the likeliest, or a draw that a seed repeats and a nucleus bounds."""

import pytest
import torch

from lorimer.inference.sampling import Row, SamplingParams, choose, likeliest


def test_draws_stay_in_the_nucleus() -> None:
    logits = torch.tensor([[3.0, 2.9, -5.0, -6.0]]).log_softmax(-1)
    params = SamplingParams(temperature=1.0, top_p=0.9)
    generator = torch.Generator().manual_seed(0)
    drawn = {choose(logits, [Row(params=params, generator=generator)])[0].token_id for _ in range(200)}
    assert drawn == {0, 1}


def test_greedy_rows_and_drawn_rows_share_a_call() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [50.0, 0.0, 0.0]])
    drawn = Row(params=SamplingParams(temperature=1.0), generator=torch.Generator().manual_seed(1))
    assert [choice.token_id for choice in choose(logits, [Row(params=SamplingParams()), drawn])] == [1, 0]


@pytest.mark.parametrize("vocabulary_len", [16, 48, 1024, 1000, 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_is_the_first_maximum(vocabulary_len: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, vocabulary_len, generator=generator).to(dtype)
    logits[0] = 1.0
    logits[1, 5] = logits[1, 11] = 9.0
    found = likeliest(logits)
    assert torch.equal(logits.gather(1, found[:, None])[:, 0], logits.amax(-1))
    assert found[:2].tolist() == [0, 5]
