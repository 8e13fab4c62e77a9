"""Comparison runs leave a run folder like any other, learn, are kept, and are judged on the test split as decoding would."""

from pathlib import Path
from typing import Any

import pytest

from fakes import random_lora, save_tiny_base
from lorimer.config import COMPARISON_METHODS, Method, Recipe
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset, write_dataset
from lorimer.data.example import Example, Message
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, DataError, IntegrityError, StorageError, TrainingError
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.storage import read_json, read_jsonl, write_jsonl
from lorimer.training import contenders
from lorimer.training.comparison import ComparisonResult, ComparisonRun, num_bytes_in, score_run, train_comparison
from lorimer.training.loop import StepMetrics
from lorimer.training.runs import cancel_run, list_runs, read_details, run_folder
from lorimer.training.scoring import score_rows

RATES = {"full": 1e-2, "prompt_tuning": 0.3, "prefix_tuning": 0.3, "bottleneck": 3e-2}  # a tiny random base needs more than a real one
all_methods = pytest.mark.parametrize("method", COMPARISON_METHODS)


def examples(split: str, count: int) -> tuple[Example, ...]:
    messages = [(Message(role="user", content=f"{split} {i}"), Message(role="assistant", content="ok")) for i in range(count)]
    return tuple(Example(messages=pair, source=f"{split}.jsonl:{i + 1}") for i, pair in enumerate(messages))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def make_dataset(folder: Path, num_test: int = 7) -> Dataset:
    """Few rows, under the card of some that were curated."""
    write_jsonl(folder / "rows.jsonl", [{"prompt": f"ticket {i}", "completion": "ok"} for i in range(60)])
    splits = Splits(train=examples("train", 12), validation=(), test=examples("test", num_test))
    return write_dataset("tickets", splits, curate([folder / "rows.jsonl"], name="tickets").card)


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    save_tiny_base(tmp_path / "base", "gemma3")
    return tmp_path / "base"


def recipe(folder: Path, method: Method = "full", **keys: Any) -> Recipe:
    return Recipe(
        base=str(folder), dataset="tickets", method=method, **{"batch_size": 4, "steps": 3, "learning_rate": RATES[method], **keys}
    )


def run(recipe_: Recipe, dataset: Dataset) -> tuple[ComparisonRun, list[StepMetrics], ComparisonResult]:
    first, *steps, last = list(train_comparison(recipe_, dataset))
    assert isinstance(first, ComparisonRun)
    assert isinstance(last, ComparisonResult)
    return first, steps, last


@all_methods
def test_run_leaves_a_folder_like_any_other(method: Method, base_folder: Path, dataset: Dataset) -> None:
    started, steps, result = run(recipe(base_folder, method), dataset)
    (recorded,) = list_runs()
    assert (recorded["id"], recorded["state"], recorded["method"], recorded["adapter_name"]) == (started.id, "succeeded", method, "tickets")
    assert (recorded["dataset_digest"], recorded["base_digest"]) == (dataset.digest, load_base(str(base_folder)).digest)
    assert [row["step"] for row in read_jsonl(started.folder / "metrics.jsonl")] == [step.step for step in steps] == [1, 2, 3]
    assert {step.run_id for step in steps} == {started.id}
    assert recorded["actual"] == result.to_json()
    assert result.saved_bytes == num_bytes_in(result.result_folder) > 0
    details = read_details(started.id)
    assert {path.name for path in details.pictures} == {"loss.svg", "learning_rate.svg"}
    assert (details.recipe, details.needs, details.last_step["step"]) == (started.recipe, {}, 3)


@all_methods
def test_what_was_learned_is_found_again_on_the_test_rows(method: Method, base_folder: Path, dataset: Dataset) -> None:
    untrained, _, _ = run(recipe(base_folder, method, steps=1, learning_rate=1e-9), dataset)
    trained, steps, _ = run(recipe(base_folder, method, steps=30), dataset)
    assert steps[-1].loss < steps[0].loss
    before, after = score_run(untrained.id), score_run(trained.id)
    assert after.loss < before.loss
    assert len(after.exact) == len(dataset.test)
    assert not any(before.exact)


def test_scores_are_kept_and_not_computed_again(base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    started, _, _ = run(recipe(base_folder), dataset)
    first = score_run(started.id)
    kept = read_json(started.folder / "test_scores.json")
    assert kept == {"exact": list(first.exact), "loss": first.loss, "rows": 7, "dataset_digest": dataset.digest}
    monkeypatch.setattr("lorimer.training.comparison.load_contender", None)
    assert score_run(started.id) == first


def test_adapters_are_scored_by_their_saved_files(base_folder: Path, dataset: Dataset) -> None:
    started, _, _ = run(recipe(base_folder), dataset)  # a folder to put an adapter's run into
    base = load_base(str(base_folder))
    turn_into_an_adapters_run(started, base)
    found = score_run(started.id)
    rows = [base.renderer.render_example(example) for example in dataset.test]
    wanted = score_rows(base, random_lora(base), rows, 2048)
    assert (found.exact, found.loss) == (wanted.is_exact, pytest.approx(wanted.loss, rel=1e-3))


def turn_into_an_adapters_run(started: ComparisonRun, base: Base) -> None:
    (started.folder / "recipe.yaml").write_text(f"base: {base.name}\ndataset: tickets\n")
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id=started.id)
    save_adapter(random_lora(base), started.folder / "adapter", base, lock)


@all_methods
def test_same_seed_same_loss(method: Method, base_folder: Path, dataset: Dataset) -> None:
    first, second = ([step.loss for step in run(recipe(base_folder, method), dataset)[1]] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("method", "rate"), [("full", 1e-4), ("prompt_tuning", 0.1), ("prefix_tuning", 0.3), ("bottleneck", 3e-3)])
def test_every_method_has_a_rate_of_its_own(method: Method, rate: float, base_folder: Path, dataset: Dataset) -> None:
    started, _, _ = run(recipe(base_folder, method, learning_rate=None, steps=1), dataset)
    assert started.schedule.learning_rate == pytest.approx(rate)
    assert read_json(started.folder / "plan.json")["reasons"]["learning_rate"] != "given in the recipe"


def test_keys_without_a_meaning_are_refused_together(base_folder: Path, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"method 'bottleneck' has no use for `rank`, `quantise`, `patience`: leave them out"):
        run(recipe(base_folder, "bottleneck", rank=4, quantise="int8", patience=2), dataset)
    assert list_runs() == []


def test_cancelled_run_stops_after_its_step(base_folder: Path, dataset: Dataset) -> None:
    events = train_comparison(recipe(base_folder, steps=50), dataset)
    started = next(events)
    next(events)
    cancel_run(started.id)
    assert list(events) == []
    (recorded,) = list_runs()
    assert recorded["state"] == "cancelled"
    assert not started.result_folder.exists()
    with pytest.raises(TrainingError, match="is cancelled: only a run that has succeeded"):
        score_run(started.id)


@pytest.mark.parametrize("num_events", [1, 2])
def test_run_that_is_left_says_so(num_events: int, base_folder: Path, dataset: Dataset) -> None:
    events = train_comparison(recipe(base_folder, steps=50), dataset)
    for _ in range(num_events):
        next(events)
    events.close()
    assert list_runs()[0]["state"] == "interrupted"


def test_run_that_breaks_says_why(base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(contenders, "save_full", full)
    with pytest.raises(StorageError):
        run(recipe(base_folder), dataset)
    (recorded,) = list_runs()
    assert (recorded["state"], recorded["error"]) == ("failed", "the disk is full")


def test_full_fine_tuning_that_memory_cannot_hold_is_refused(base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "MAX_SHARE_OF_MEMORY", 1e-6)
    with pytest.raises(TrainingError, match=r"full fine-tuning of base .* needs at least .* GB"):
        run(recipe(base_folder), dataset)


def test_missing_package_is_named(base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lorimer\[methods\]'"):
        run(recipe(base_folder, "prefix_tuning"), dataset)


def test_changed_base_and_missing_test_rows_are_refused(base_folder: Path, tmp_path: Path) -> None:
    started, _, _ = run(recipe(base_folder), make_dataset(tmp_path, num_test=0))
    with pytest.raises(DataError, match="no test row"):
        score_run(started.id)
    save_tiny_base(base_folder, "gemma3", seed=1)
    with pytest.raises(IntegrityError, match="put the base back"):
        score_run(started.id)


def test_rows_beyond_a_runs_own_limit_count_all_the_same(base_folder: Path, dataset: Dataset) -> None:
    limit = max(len(load_base(str(base_folder)).renderer.render_example(example).ids) for example in dataset.train)
    long, _, _ = run(recipe(base_folder), dataset)
    short, _, _ = run(recipe(base_folder, max_len=limit), dataset)
    assert len(score_run(long.id).exact) == len(score_run(short.id).exact) == 7
    assert run_folder(short.id).is_dir()
