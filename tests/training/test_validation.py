"""Looks at the validation split: patience, and the best weights put back."""

import pytest
import torch

from fakes import CLEAN, random_lora, tiny_base
from lorimer.errors import IntegrityError
from lorimer.model.base import Base
from lorimer.training.checkpoints import TrainingState
from lorimer.training.loop import Learner
from lorimer.training.optim import OptimizerConfig, make_optimizer
from lorimer.training.validation import NUM_VERIFIED, has_gained_nothing, keep_best, validate, verify_saved

BUDGET = 512


def state_of(base: Base) -> TrainingState:
    config, lora = OptimizerConfig(learning_rate=1e-3), random_lora(base)
    optimizer = make_optimizer(lora, config)
    return TrainingState(learner=Learner(run_id="r", lora=lora, optimizer=optimizer, config=config, batches=iter(()), num_steps=9))


@pytest.mark.parametrize(("num_looks", "patience", "expected"), [(9, None, False), (1, 2, False), (2, 2, True), (3, 2, True)])
def test_nothing_is_gained_after_as_many_looks_as_patience(num_looks: int, patience: int | None, expected: bool) -> None:
    state = state_of(tiny_base("llama"))
    state.num_looks_since_best = num_looks
    assert has_gained_nothing(state, patience) is expected


def test_best_weights_are_remembered_and_put_back() -> None:
    base = tiny_base("llama")
    state, rows = state_of(base), [base.renderer.render_example(example) for example in CLEAN]
    weights = next(iter(state.learner.lora.weights.values()))
    best, looks = weights.b.detach().clone(), []
    for step, change in ((1, 0.0), (2, 5.0), (3, 5.0)):
        state.learner.step = step
        with torch.no_grad():
            weights.b.add_(change)
        looks.append(validate(base, state, rows, budget=BUDGET, patience=2))
    assert [(look.step, look.is_best, look.num_rows) for look in looks] == [(1, True, 4), (2, False, 4), (3, False, 4)]
    assert state.learner.is_stopped
    assert keep_best(state) == 1
    assert torch.equal(weights.b, best)


def test_without_looks_the_last_weights_are_kept() -> None:
    state = state_of(tiny_base("llama"))
    state.learner.step = 7
    assert keep_best(state) == 7


def test_saved_weights_are_compared_on_some_rows_and_all_are_scored() -> None:
    base = tiny_base("llama")
    rows = [base.renderer.render_example(example) for example in CLEAN] * (NUM_VERIFIED // 4 + 1)
    scores = verify_saved(base, random_lora(base), random_lora(base), rows, budget=BUDGET, run_id="r")
    assert scores is not None
    assert len(scores.is_exact) == len(rows)
    assert verify_saved(base, random_lora(base), random_lora(base, seed=2), [], budget=BUDGET, run_id="r") is None
    with pytest.raises(IntegrityError, match="run 'r': the saved adapter scores"):
        verify_saved(base, random_lora(base), random_lora(base, seed=2), rows, budget=BUDGET, run_id="r")
