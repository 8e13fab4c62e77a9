"""Putting a module of ours in the place of each one it equals, whatever the architecture calls its parts."""

from collections.abc import Callable

from torch import nn


def replace_equal(model: nn.Module, ending: str, equal: Callable[[nn.Module], nn.Module | None]) -> int:
    """Replace every module whose class name ends so by what `equal` makes of it; None leaves it. Returns how many were replaced."""
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith(ending)]
    num_replaced = 0
    for name, module in found:
        if (ours := equal(module)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ours)
            num_replaced += 1
    return num_replaced
