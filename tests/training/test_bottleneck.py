"""Bottleneck adapters start near the identity, can be switched off, and find the sub-layers of every architecture."""

import pytest
import torch
from torch import nn

from fakes import tiny_model
from lorimer.errors import TrainingError
from lorimer.training.bottleneck import BottleneckLayer, bottleneck_config


@pytest.mark.parametrize("architecture", ["gemma3", "llama", "qwen2", "qwen3", "mistral", "phi"])
def test_attention_and_mlp_of_every_layer_are_followed(architecture: str) -> None:
    config = bottleneck_config(tiny_model(architecture), 4)
    assert len(config.target_modules or ()) == 2 * 3
    assert (config.width, config.peft_type) == (4, "BOTTLENECK")


def test_base_with_other_names_is_refused() -> None:
    model = tiny_model("qwen2")
    model.model.layers[0].mlp.down_proj = nn.Identity()
    with pytest.raises(TrainingError, match=r"should have 6 linear layers .* found 5"):
        bottleneck_config(model, 4)


def test_layer_starts_near_the_identity_and_can_be_switched_off() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(8, 12), torch.randn(5, 8)
    layer = BottleneckLayer(linear, "default", 4)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=0.01)
    assert not torch.equal(layer(x), linear(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), linear(x))


def test_layer_adds_what_the_paper_says() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(8, 12), torch.randn(5, 8)
    layer = BottleneckLayer(linear, "default", 4)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    for weight in (down.weight, up.weight, down.bias, up.bias):
        nn.init.normal_(weight)
    y = linear(x)
    torch.testing.assert_close(layer(x), y + nn.functional.gelu(y @ down.weight.T + down.bias) @ up.weight.T + up.bias)


def test_layer_of_a_bfloat16_base_answers_in_bfloat16() -> None:
    layer = BottleneckLayer(nn.Linear(8, 12).bfloat16(), "default", 4)
    for weight in (*layer.bottleneck_down.parameters(), *layer.bottleneck_up.parameters()):
        weight.data = weight.data.float()
    assert layer(torch.randn(5, 8).bfloat16()).dtype == torch.bfloat16
