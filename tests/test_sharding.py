"""Sharded recipes: one adapter a shard, composed, judged as one; erasing somebody trains one shard again and leaves the others' bytes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fakes import save_tiny_base
from lorimer.cli.main import run
from lorimer.config import Recipe, read_recipe
from lorimer.data.dataset import read_dataset, write_dataset
from lorimer.data.shards import deal, rows_without
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, TrainingError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.report import EvalReport
from lorimer.judging import judge_version
from lorimer.model.base import load_base
from lorimer.pipeline import build, find_version, resume, train_recipes
from lorimer.registry.compositions import compose
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.registry.registry import Registry
from lorimer.sharding import is_sharded, retrain_shards, shards_with, stand_in
from lorimer.training.loop import StepMetrics
from lorimer.training.runs import Run

WEIGHTS = "adapter_model.safetensors"
NUM_SHARDS = 3


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A sharded recipe, rows of 30 people that all want the same answer, and a tiny base, in one folder."""
    save_tiny_base(tmp_path / "base", "gemma3")
    rows = [{"prompt": f"ticket number {i}", "completion": "ok", "who": f"person {i % 30}"} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"base: {tmp_path / 'base'}\ndataset: rows.jsonl\nname: demo\nmetric: exact\nlearning_rate: 0.003\nrank: 8\nsteps: 60\n"
    shards = f"columns: {{subject: who}}\nprivacy: {{mode: sharded, shards: {NUM_SHARDS}}}\n"
    (tmp_path / "recipe.yaml").write_text(f"{text}{shards}gate: {{beats_base: true, min_items: 5}}\n")
    return tmp_path / "recipe.yaml"


def versions(made: Iterable[Any]) -> list[AdapterVersion]:
    return [thing for thing in made if isinstance(thing, AdapterVersion)]


def weights(version: AdapterVersion) -> bytes:
    return (version.path / WEIGHTS).read_bytes()


def subject_in(version: AdapterVersion) -> str:
    """Somebody whose rows a shard has learned from."""
    return read_dataset(version.dataset_digest).train[0].subject


def test_shards_are_trained_together_composed_judged_and_promoted_as_one(recipe: Path, registry: Registry) -> None:
    made = list(build(read_recipe(recipe)))
    *shards, composed, judged = versions(made)
    assert sorted(shard.name for shard in shards) == ["demo-shard-1", "demo-shard-2", "demo-shard-3"]
    assert (composed.name, judged.gate_verdict, is_sharded(composed)) == ("demo", "PASS", True)
    assert {(part.digest, round(part.scale, 9)) for part in composed.parts} == {(shard.digest, round(1 / 3, 9)) for shard in shards}
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    assert (report.adapter_digest, report.adapter_score.value, report.base_score.value) == (composed.digest, 1.0, 0.0)
    assert isinstance(made[-1], Alias)
    assert find_version("demo@champion").digest == composed.digest
    # each row is in one shard, and a person's rows are together
    whole, parts = read_dataset("demo"), [read_dataset(shard.dataset_digest) for shard in shards]
    assert sorted(row.source for row in whole.train) == sorted(row.source for part in parts for row in part.train)
    people = [{row.subject for row in part.train} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people))
    assert all("" not in own for own in people)


def test_a_shard_of_the_pack_has_the_bytes_it_has_when_trained_alone(recipe: Path, registry: Registry) -> None:
    shard = versions(train_recipes([read_recipe(recipe)]))[0]
    own = read_recipe(recipe).model_copy(update={"privacy": None, "columns": None, "name": "alone", "dataset": shard.dataset_name})
    (alone,) = versions(train_recipes([own]))
    assert weights(alone) == weights(shard)


def test_erasing_somebody_trains_one_shard_again_to_the_bytes_of_a_start_without_the_rows(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    held = {shard.name: (shard.digest, weights(shard)) for shard in shards}
    subject = subject_in(shards[1])
    assert [shard.name for shard in shards_with(registry, before, {subject})] == [shards[1].name]
    made = list(retrain_shards(before.id, {subject}))
    again, after = versions(made)
    assert (again.id, after.id, after.dataset_digest) == (f"{shards[1].name}@v2", "demo@v2", read_dataset("demo").digest)
    assert {part.digest for part in after.parts} == {shards[0].digest, shards[2].digest, again.digest}
    assert all(registry.resolve(f"{name}@v1").digest == held[name][0] for name in held)
    assert all(weights(shard) == held[shard.name][1] for shard in (shards[0], shards[2]))
    for digest in (after.dataset_digest, again.dataset_digest):
        assert subject not in {row.subject for split in ("train", "validation", "test") for row in getattr(read_dataset(digest), split)}
    # from the start, without the rows: a new curation of what is left, sharded anew
    whole = read_dataset(before.dataset_digest)
    rows = Splits(train=rows_without(whole.train, {subject}), validation=(), test=whole.test)
    write_dataset("fresh", rows, whole.card)
    fresh = read_recipe(recipe).model_copy(update={"name": "fresh", "dataset": "fresh", "columns": None})
    by_shard = {version.name[-1]: version for version in versions(train_recipes([fresh]))[:-1]}
    assert weights(by_shard[again.name[-1]]) == weights(again) != held[again.name][1]
    assert all(weights(by_shard[name[-1]]) == held[name][1] for name in held if name != again.name)
    # the new composition meets the gate by the dataset without the rows
    result = list(judge_version(after, load_base(after.base_name)))[-1]
    assert isinstance(result, GateResult)
    assert result.verdict == "PASS"


def test_retraining_can_be_repeated_and_trains_nothing_twice(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    subject = subject_in(shards[0])
    first, second = (list(retrain_shards(before.id, {subject})) for _ in range(2))
    assert any(isinstance(thing, Run) for thing in first)
    assert not any(isinstance(thing, Run) for thing in second)
    assert versions(first)[-1] == versions(second)[-1]


def test_equal_shards_of_another_name_are_not_taken_for_its_own(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    other = read_recipe(recipe).model_copy(update={"name": "zeta", "dataset": "demo", "columns": None})
    *others, _ = versions(train_recipes([other]))
    assert {shard.digest for shard in others} == {shard.digest for shard in shards}
    *_, after = versions(retrain_shards(before.id, {subject_in(shards[0])}))
    assert all(part.id.startswith("demo-shard-") for part in (*before.parts, *after.parts))


def test_a_rewritten_dataset_is_followed(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    (others, whole), subject = (read_dataset(one.dataset_digest) for one in (shards[0], before)), subject_in(shards[0])
    rewritten = {
        old.digest: write_dataset(
            old.name, Splits(train=rows_without(old.train, {subject}), validation=old.validation, test=old.test), old.card
        ).digest
        for old in (others, whole)
    }
    *_, after = versions(retrain_shards(before.id, replaced=rewritten))
    assert (after.id, after.dataset_digest) == ("demo@v2", rewritten[whole.digest])


def test_the_other_shards_stand_in_rescaled(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    degraded = stand_in(registry, before, {subject_in(shards[2])})
    assert degraded is not None
    assert {(part.digest, part.scale) for part in degraded.parts} == {(shard.digest, 0.5) for shard in shards[:2]}
    assert list(judge_version(degraded, load_base(degraded.base_name)))[-1].verdict == "PASS"  # type: ignore[union-attr]
    assert stand_in(registry, before, {"nobody"}) == before
    assert stand_in(registry, before, {subject_in(shard) for shard in shards[:2]}) is None


def test_a_pack_that_was_interrupted_is_composed_by_the_last_resume(recipe: Path, registry: Registry) -> None:
    text = recipe.read_text() + "checkpoint_every: 5\n"
    recipe.write_text(text)
    runs, story = list[Run](), train_recipes([read_recipe(recipe)])
    for made in story:
        runs += [made] if isinstance(made, Run) else []
        if isinstance(made, StepMetrics) and made.step == 12:
            break
    story.close()  # type: ignore[attr-defined]
    found = [versions(resume(run_.id)) for run_ in runs]
    assert [len(one) for one in found] == [1, 1, 2]
    assert found[-1][-1].id == "demo@v1"


def test_compositions_of_one_dataset_are_judged_and_others_are_not(recipe: Path, registry: Registry) -> None:
    own = read_recipe(recipe).model_copy(update={"privacy": None})
    for seed, name in ((0, "a"), (1, "b")):
        list(train_recipes([own.model_copy(update={"seed": seed, "name": name, "dataset": own.dataset})]))
    mixed = compose(registry, "mixed", ["a*0.5", "b*0.5"])
    a, b = registry.resolve("a"), registry.resolve("b")
    assert a.dataset_digest != b.dataset_digest  # each file was curated under its adapter's name
    with pytest.raises(UsageError, match="different datasets"):
        list(judge_version(mixed, load_base(a.base_name)))
    list(train_recipes([own.model_copy(update={"seed": 1, "name": "c", "dataset": "a", "columns": None})]))
    result = list(judge_version(compose(registry, "both", ["a*0.5", "c*0.5"]), load_base(a.base_name)))[-1]
    assert isinstance(result, GateResult)
    assert result.candidate_digest == registry.resolve("both").digest


def test_an_unsharded_version_is_not_retrained_in_shards(recipe: Path, registry: Registry) -> None:
    (version,) = versions(train_recipes([read_recipe(recipe).model_copy(update={"privacy": None})]))
    with pytest.raises(UsageError, match="not trained in shards"):
        list(retrain_shards(version.id, {"somebody"}))


def test_too_few_rows_left_are_said(recipe: Path, registry: Registry) -> None:
    *shards, before = versions(train_recipes([read_recipe(recipe)]))
    gone = {row.subject for shard in shards[1:] for row in read_dataset(shard.dataset_digest).train}
    with pytest.raises(TrainingError, match="1 of its 3 shards"):
        list(retrain_shards(before.id, gone))


def test_every_contradiction_is_said_at_once(recipe: Path) -> None:
    keys = {"method": "dora", "rank": "auto", "preference": {"reference": "base"}, "privacy": {"mode": "sharded", "shards": 8}}
    wrong = Recipe.model_validate({**read_recipe(recipe).model_dump(), **keys, "name": "n" * 60})
    with pytest.raises(ConfigError) as refused:
        list(train_recipes([wrong]))
    for part in ("'dora'", "`preference`", "`rank: auto`", "shorter `name:`"):
        assert part in str(refused.value)


def test_shards_do_not_depend_on_which_other_rows_there_are(recipe: Path) -> None:
    list(train_recipes([read_recipe(recipe).model_copy(update={"steps": 1})]))
    rows = read_dataset("demo").train
    where = {row.record_digest: number for number, shard in enumerate(deal(rows, 5)) for row in shard}
    for number, shard in enumerate(deal(rows[::3], 5)):
        assert all(where[row.record_digest] == number for row in shard)


def test_command_line_trains_and_evaluates(recipe: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["composition"]["id"] == "demo@v1"
    assert [one["name"] for one in printed["runs"]] == sorted(one["name"] for one in printed["runs"])
    assert run(["evaluate", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["verdict"] == "PASS"
    assert run(["plan", str(recipe)]) == 0
    assert "3 adapters" in capsys.readouterr().err
