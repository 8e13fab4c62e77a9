"""Rows without an adapter are left alone by vLLM's operators on a CPU: mended where they are not, and checked by what they compute.

vLLM marks such rows by the index -1. Its kernels for GPUs skip them; those for CPUs take it for a place in a list, the last one (vllm 0.32,
lora/ops/torch_ops/lora_ops.py; github.com/vllm-project/vllm/pull/48421). So the base, asked in one batch with adapters, answers with the
adapter in the last slot: somebody else's, perhaps. This runs in vLLM's environment, in each of its processes.
"""

import logging
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from lorimer.errors import EngineError

logger = logging.getLogger("vllm.lorimer")

OPERATORS = {"bgmv_shrink": (1.0,), "bgmv_expand": (True,), "bgmv_expand_slice": (0, 3, True)}
"""By name, what follows inputs, weights, output and indices; those for prompts (`sgmv_`) call these."""
MODULES = ("vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.ops.torch_ops", "vllm.lora.punica_wrapper.punica_cpu")
"""Where they are defined, and where others have taken their names from."""

Operator = Callable[..., Any]


def mend_operators() -> list[str]:
    """Mend the operators that need it; returns their names.

    Raises:
        EngineError: if one still changes rows that ask for nothing: then this vLLM must not serve.
    """
    modules = [import_module(name) for name in MODULES]
    mended = [name for name, options in OPERATORS.items() if not leaves_base_rows(getattr(modules[0], name), options)]
    for name in mended:
        operator = keeping_base_rows(getattr(modules[0], name))
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, operator)
    for module in modules:
        wrong = [
            name for name, options in OPERATORS.items() if hasattr(module, name) and not leaves_base_rows(getattr(module, name), options)
        ]
        if wrong:
            raise EngineError(f"vLLM's {wrong[0]} changes rows that no adapter was asked for, and could not be mended: use another version")
    if mended:
        logger.info("mended, so that the base answers by itself beside adapters: %s", ", ".join(mended))
    return mended


def leaves_base_rows(operator: Operator, options: tuple[Any, ...]) -> bool:
    """Whether of three rows that ask for the first adapter, none and the last one, the second stays as it is and the others do not."""
    import torch

    output = torch.zeros(3, 3)
    operator(torch.ones(3, 3), torch.ones(2, 1, 3, 3), output, torch.tensor([0, -1, 1]), *options)
    return output.any(1).tolist() == [True, False, True]


def keeping_base_rows(operator: Operator) -> Operator:
    """The same operator, its output's rows without an adapter put back."""

    @wraps(operator)
    def run(inputs: Any, weights: Any, output: Any, indices: Any, *options: Any, **named: Any) -> None:
        rows = (indices < 0).nonzero().flatten()
        before = output[rows]  # a copy
        operator(inputs, weights, output, indices.clamp(min=0), *options, **named)
        output[rows] = before

    return run
