"""Our norms equal the models' own, whatever gain they apply; a replacement that answers otherwise is refused."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fakes import byte_tokenizer, tiny_model
from lorimer.errors import EngineError
from lorimer.model.base import Base
from lorimer.model.norm import RMSNorm, replace_norms


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize("size", [0.1, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_equal_the_models_own(kind: type[torch.nn.Module], size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = kind(32, eps=1e-6)
    torch.nn.init.normal_(theirs.weight, size, size / 10)
    holder = torch.nn.Sequential(theirs.to(dtype).requires_grad_(False))
    x, dy = torch.randn(2, 5, 32, dtype=dtype), torch.randn(2, 5, 32, dtype=dtype)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = holder(one)
    wanted.backward(dy)
    assert replace_norms(holder) == 1
    found = holder(other)
    found.backward(dy)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * size} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2 * size}
    torch.testing.assert_close(found, wanted, **tolerance)
    torch.testing.assert_close(other.grad, one.grad, **tolerance)


def test_norm_that_does_something_else_stays() -> None:
    class ShiftedRMSNorm(LlamaRMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.01

    holder = torch.nn.Sequential(ShiftedRMSNorm(8))
    assert replace_norms(holder) == 0
    assert isinstance(holder[0], ShiftedRMSNorm)


def test_base_that_answers_otherwise_with_our_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: torch.nn.Module) -> int:
        model.model.norm = RMSNorm(torch.full((48,), -1.0), 0.0, 1e-6)
        return 1

    monkeypatch.setattr("lorimer.model.base.replace_norms", spoil)
    with pytest.raises(EngineError, match="computes its logits in a way"):
        Base(name="x", digest="0" * 64, model=tiny_model("gemma3"), tokenizer=byte_tokenizer())
