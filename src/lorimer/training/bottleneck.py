"""Bottleneck adapters after each sub-layer (Houlsby et al. 2019, arXiv:1902.00751), as a method of PEFT's.

PEFT has none of its own. The nearest of its tuners are others: PEANuT puts the non-linearity into the weights and stays linear in the
input, Shadow runs a second decoder beside the first, LLaMA-Adapter changes attention. So the layer is ours, in PEFT's frame for tuners;
PEFT puts it in, freezes the base, saves and loads: files of this kind load only where this module has been imported.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from peft import PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorimer.errors import TrainingError

BOTTLENECK = "BOTTLENECK"
SUBLAYER_OUTPUTS = ("o_proj", "down_proj", "dense", "fc2")  # last linear layers of attention and MLP, by the names transformers gives them


def bottleneck_config(model: PreTrainedModel, width: int) -> "BottleneckConfig":
    """For an adapter after attention and MLP of every layer.

    Raises:
        TrainingError: if the model's layers have names this file does not know.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(SUBLAYER_OUTPUTS)]
    wanted = 2 * model.config.get_text_config().num_hidden_layers
    if len(found) != wanted:
        raise TrainingError(
            f"bottleneck adapters follow attention and MLP of every layer: {type(model).__name__} should have {wanted} linear layers "
            f"named {', '.join(SUBLAYER_OUTPUTS)}, found {len(found)}; choose another method for this base"
        )
    return BottleneckConfig(task_type=TaskType.CAUSAL_LM, width=width, target_modules=found)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A sub-layer's last linear layer and, on its output, y + up(gelu(down(y))), before the skip connection."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Linear, adapter_name: str, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        down, up = nn.Linear(base_layer.out_features, width), nn.Linear(width, base_layer.out_features)
        for linear in (down, up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)  # near the identity: the paper's section 3.6
            nn.init.zeros_(linear.bias)
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict({adapter_name: down}), nn.ModuleDict({adapter_name: up})
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(adapter_name)

    def forward(self, x: Tensor) -> Tensor:
        """x (.., in) -> (.., out)."""
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            dtype = next(down.parameters()).dtype  # float32 also where the base is not
            y = y + up(F.gelu(down(y.to(dtype)))).to(y.dtype)
        return y


@dataclass
class BottleneckConfig(PeftConfig):
    """What PEFT writes down about bottleneck adapters."""

    width: int = 64
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = BOTTLENECK


class BottleneckTuner(BaseTuner):
    """Where PEFT puts `BottleneckLayer`s in."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config.width), target)


PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckTuner  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = BottleneckTuner.prefix  # type: ignore[index]
