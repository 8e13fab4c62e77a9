"""Full fine-tuning, which adapters are compared with: every weight of the base learns, on the same stream of tokens as an adapter does.

It changes the base it is given, whose digest then says no longer what it is. It knows nothing of recipes and run folders.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import logging

from lorimer.errors import TrainingError
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.storage import new_folder, require_free_bytes
from lorimer.training.batching import Batch, MicroBatch, batches
from lorimer.training.loop import StepMetrics, hidden_states
from lorimer.training.loss import cross_entropy
from lorimer.training.optim import OptimizerConfig, clip, learning_rate_at, make_adamw, take_step

DISK_MARGIN = 1.05  # configuration and tokenizer beside the weights


def train_full(
    base: Base,
    rows: Sequence[Rendered],
    config: OptimizerConfig,
    *,
    batch_size: int,
    num_steps: int,
    tokens_per_micro_batch: int,
    seed: int,
) -> Iterator[StepMetrics]:
    """Change all weights of the base in place, one yielded step after the other; the optimizer keeps them in float32.

    Raises:
        TrainingError: if the base is held in few bits, or loss or gradients are not finite; the weights are then those of the step before.
    """
    steps = batches(rows, batch_size=batch_size, num_steps=num_steps, tokens_per_micro_batch=tokens_per_micro_batch, seed=seed)
    with unfrozen(base) as masters:
        optimizer = make_adamw([{"params": list(masters.values()), "ratio": 1.0}], config)
        for step, batch in enumerate(steps):
            start = time.perf_counter()
            # 1) gradients of the mean loss over the step's supervised tokens
            loss = sum(accumulate(base, batch, micro) for micro in batch.micro_batches)
            # 2) refuse to learn from what is not a number
            grad_norm = clip(list(masters.values()), config.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise TrainingError(
                    f"step {step + 1}: loss {loss} and gradient norm {grad_norm} are not both finite: "
                    f"try a smaller learning rate than {config.learning_rate:g}"
                )
            # 3) step, and give the base what its precision holds of it
            learning_rate = learning_rate_at(step, num_steps, config.learning_rate)
            take_step(optimizer, learning_rate)
            _copy_back(masters)
            yield StepMetrics(
                step=step + 1,
                num_steps=num_steps,
                loss=loss,
                grad_norm=grad_norm,
                learning_rate=learning_rate,
                num_tokens=batch.num_tokens,
                num_supervised=batch.num_supervised,
                seconds=time.perf_counter() - start,
            )


def accumulate(base: Base, batch: Batch, micro: MicroBatch) -> float:
    """Add one micro-batch's gradients; returns its share of the step's mean loss."""
    weights = torch.full((len(micro.targets),), 1 / batch.num_supervised, device=base.device)
    hidden = hidden_states(base, micro)
    total, _ = cross_entropy(hidden.index_select(0, micro.predicting.to(base.device)), base.head, micro.targets.to(base.device), weights)
    total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach())


@contextmanager
def unfrozen(base: Base) -> Iterator[Mapping[nn.Parameter, Tensor]]:
    """Within it the base's parameters learn: their gradients go to float32 masters, by parameter, and the base is frozen again after it.

    Where the base is float32 itself, master and parameter are the same memory.

    Raises:
        TrainingError: if the base is held in few bits.
    """
    if base.quantisation is not None:
        raise TrainingError(f"base {base.name!r} is held in few bits ({base.quantisation}), which cannot learn: leave out `quantise`")
    masters = {parameter: parameter.detach().float().requires_grad_() for parameter in base.model.parameters()}
    base.model.requires_grad_(True)
    hooks = [parameter.register_post_accumulate_grad_hook(_hand_over(master)) for parameter, master in masters.items()]
    try:
        yield masters
    finally:
        base.model.requires_grad_(False)
        for hook in hooks:
            hook.remove()


def save_full(base: Base, folder: Path) -> None:
    """Write model and tokenizer in Hugging Face format, for `load_base`; the folder appears whole or not at all.

    Raises:
        StorageError: if the disk has no room.
    """
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in base.model.parameters())
    require_free_bytes(folder, int(DISK_MARGIN * num_bytes), "saving the whole model")
    logging.disable_progress_bar()
    with new_folder(folder) as temporary:
        base.model.save_pretrained(temporary)
        base.renderer.tokenizer.save_pretrained(temporary)


def _hand_over(master: Tensor) -> Callable[[Tensor], None]:
    """Add a parameter's gradient to its master's as soon as it is there, and let it go: no second set of gradients is ever kept."""

    def hand_over(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    return hand_over


@torch.no_grad()
def _copy_back(masters: Mapping[nn.Parameter, Tensor]) -> None:
    for parameter, master in masters.items():
        parameter.copy_(master)
