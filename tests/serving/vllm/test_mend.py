"""Rows that no adapter was asked for stay as they are, whatever an operator makes of the index -1."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lorimer.errors import EngineError
from lorimer.serving.vllm.mend import MODULES, OPERATORS, keeping_base_rows, leaves_base_rows, mend_operators


def shrink(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, scaling: float = 1.0) -> None:
    """As vLLM 0.32 has it."""
    outputs = torch.einsum("bi, boi -> bo", inputs, weights[indices].squeeze(1))
    output[:, : outputs.shape[1]] = scaling * outputs


def expand(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, add_inputs: bool = True) -> None:
    output += torch.einsum("bi, boi -> bo", inputs, weights[indices].squeeze(1)) * add_inputs


def expand_slice(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, offset: int, size: int, add_inputs: bool = True) -> None:
    expand(inputs, weights, output[:, offset : offset + size], indices, add_inputs)


OLD = {"bgmv_shrink": shrink, "bgmv_expand": expand, "bgmv_expand_slice": expand_slice}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_mended_and_is_else_the_same(name: str) -> None:
    operator, options = OLD[name], OPERATORS[name]
    mended = keeping_base_rows(operator)
    assert not leaves_base_rows(operator, options)
    assert leaves_base_rows(mended, options)
    inputs, weights, indices = torch.randn(4, 3), torch.randn(2, 1, 3, 3), torch.tensor([1, 0, -1, 1])
    ours, theirs = torch.randn(4, 3), torch.zeros(4, 3)
    before = ours.clone()
    theirs.copy_(ours)
    mended(inputs, weights, ours, indices, *options)
    operator(inputs, weights, theirs, indices, *options)
    assert torch.equal(ours[[0, 1, 3]], theirs[[0, 1, 3]])
    assert torch.equal(ours[2], before[2])


def modules(monkeypatch: pytest.MonkeyPatch, operators: dict[str, Any]) -> list[ModuleType]:
    """vLLM's, as far as they are looked at."""
    names = {part for name in MODULES for part in (name, name.rpartition(".")[0], "vllm", "vllm.lora", "vllm.lora.ops")}
    for name in sorted(names):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        if name in MODULES:
            module.__dict__.update(operators)
    return [sys.modules[name] for name in MODULES]


def test_names_are_replaced_wherever_they_were_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = modules(monkeypatch, OLD)
    assert mend_operators() == list(OPERATORS)
    assert all(leaves_base_rows(getattr(module, name), options) for module in patched for name, options in OPERATORS.items())
    assert mend_operators() == []


def test_what_cannot_be_mended_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_rows(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, *options: Any) -> None:
        del inputs, weights, indices, options

    modules(monkeypatch, {**OLD, "bgmv_shrink": all_rows})
    with pytest.raises(EngineError, match="bgmv_shrink changes rows that no adapter was asked for"):
        mend_operators()
