"""Checkpoints: one file holds all that changes in a run, so a killed run goes on and ends with the bytes it would have had.

The order of rows is drawn again from the seed up to the step; no other random numbers are used after the adapter is initialised.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorimer.errors import IntegrityError, TrainingError
from lorimer.storage import write_bytes
from lorimer.training.loop import Learner

NUM_KEPT = 2  # should the newest be damaged, the one before it is there


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """A learner, and the best it has been."""

    learner: Learner
    best: list[Tensor] | None = None
    """The parameters where the validation loss was lowest."""
    best_loss: float | None = None
    best_step: int | None = None
    num_looks_since_best: int = 0


def save_checkpoint(state: TrainingState, folder: Path, plan_digest: str) -> Path:
    """Write the state after its last step, whole or not at all; only the newest few are kept."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(state).items()}
    facts = {
        "step": state.learner.step,
        "plan_digest": plan_digest,
        "best_loss": state.best_loss,
        "best_step": state.best_step,
        "num_looks_since_best": state.num_looks_since_best,
        "digest": _digest(tensors),
    }
    path = folder / f"step-{state.learner.step:08d}.safetensors"
    write_bytes(path, save(tensors, metadata={"state": json.dumps(facts)}))
    for old in find_checkpoints(folder)[:-NUM_KEPT]:
        old.unlink(missing_ok=True)
    return path


def find_checkpoints(folder: Path) -> list[Path]:
    """All there are, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8}\.safetensors", path.name))


def load_checkpoint(path: Path, state: TrainingState, plan_digest: str) -> None:
    """Put a fresh state where the checkpoint was.

    Raises:
        IntegrityError: if the file is damaged.
        TrainingError: if it belongs to another plan.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        intact = _digest(tensors) == facts["digest"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        intact = False
    if not intact:
        others = [other for other in find_checkpoints(path.parent) if other != path]
        hint = f"delete it to go on from {others[-1].name!r}" if others else "there is no other: train again"
        raise IntegrityError(f"checkpoint {path.name!r} in {str(path.parent)!r} is damaged: {hint}")
    if facts["plan_digest"] != plan_digest:
        raise TrainingError(f"checkpoint {path.name!r} belongs to another plan than this run's: train again")
    _restore(state, tensors, facts)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Everything that is a tensor, by name."""
    learner = state.learner
    parameters = learner.lora.parameters()
    named = {f"parameter.{i}": tensor for i, tensor in enumerate(parameters)}
    for i, parameter in enumerate(parameters):
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            named[f"optimizer.{i}.{key}"] = value
    return named | {f"best.{i}": tensor for i, tensor in enumerate(state.best or [])}


@torch.no_grad()
def _restore(state: TrainingState, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    learner = state.learner
    for i, parameter in enumerate(learner.lora.parameters()):
        parameter.copy_(tensors[f"parameter.{i}"])
        prefix = f"optimizer.{i}."
        moments = {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}
        learner.optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}
    best = [tensors[f"best.{i}"].clone() for i in range(len(learner.lora.parameters())) if f"best.{i}" in tensors]
    state.best, learner.step = best or None, facts["step"]
    state.best_loss, state.best_step, state.num_looks_since_best = facts["best_loss"], facts["best_step"], facts["num_looks_since_best"]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
