"""`lorimer runs` on a tiny base: an adapter's run and runs of other methods listed, shown, stopped, resumed and compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import save_tiny_base
from lorimer.cli.main import run
from lorimer.config import home, read_recipe
from lorimer.database import open_database
from lorimer.errors import ConfigError
from lorimer.model.base import load_base
from lorimer.pipeline import build, train_recipes
from lorimer.registry.registry import Registry
from lorimer.training.loop import StepMetrics
from lorimer.training.runs import list_runs

COMMON = "dataset: rows.jsonl\nname: demo\nmetric: exact\nbatch_size: 8\n"
METHODS = {
    "lora": "learning_rate: 0.02\nrank: 8\nsteps: 40\n",
    "full": "method: full\nlearning_rate: 0.01\nsteps: 20\n",
    "bottleneck": "method: bottleneck\nlearning_rate: 0.03\nsteps: 2\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, rows that all want the same answer, and a recipe for each method."""
    save_tiny_base(tmp_path / "base", "gemma3")
    rows = [{"prompt": f"ticket number {i}", "completion": "ok"} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for method, keys in METHODS.items():
        (tmp_path / f"{method}.yaml").write_text(f"base: {tmp_path / 'base'}\n{COMMON}{keys}")
    return tmp_path


class Commands:
    """Runs commands and reads what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def json(self, *arguments: str) -> Any:
        self.capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        (line,) = self.capsys.readouterr().out.splitlines()
        return json.loads(line)

    def text(self, *arguments: str) -> str:
        self.capsys.readouterr()
        assert run(list(arguments)) == 0
        return self.capsys.readouterr().out

    def refused(self, code: int, *arguments: str) -> str:
        self.capsys.readouterr()
        assert run(list(arguments)) == code
        (line,) = self.capsys.readouterr().err.strip().splitlines()
        return line


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def started(recipe: Path) -> Iterator[Any]:
    """A training that has taken its first step and goes on when asked."""
    made = train_recipes([read_recipe(recipe)])
    while not isinstance(next(made), StepMetrics):
        pass
    return made


@pytest.mark.parametrize("command", ["list", "show", "resume", "cancel", "compare"])
def test_help_has_an_example(command: str, commands: Commands) -> None:
    assert f"Example: lorimer runs {command}" in " ".join(commands.text("runs", command, "--help").split())


def test_list_of_nothing_says_what_to_do(commands: Commands) -> None:
    assert "lorimer train" in commands.text("runs", "list")
    assert commands.json("runs", "list") == {"runs": []}


def test_list_and_show_of_an_adapters_run(folder: Path, commands: Commands) -> None:
    trained = commands.json("train", str(folder / "lora.yaml"))
    (listed,) = commands.json("runs", "list")["runs"]
    assert (listed["id"], listed["state"], listed["method"]) == (trained["run"], "succeeded", "lora")
    assert trained["run"] in commands.text("runs", "list")
    shown = commands.json("runs", "show", trained["run"][:13])
    assert (shown["recipe"]["rank"], shown["last_step"]["step"]) == (8, 40)
    assert {Path(path).name for path in shown["pictures"]} == {"loss.svg", "learning_rate.svg"}
    for name, actual in (("seconds", trained["seconds"]), ("memory_bytes", trained["peak_bytes"])):
        needs = shown["needs"][name]
        assert needs["low"] <= needs["middle"] <= needs["high"]
        assert (needs["actual"], needs["ratio"]) == (actual, pytest.approx(actual / needs["middle"]))
    printed = commands.text("runs", "show", trained["run"])
    for words in ("succeeded since", "times the plan", "40 of 40, loss", "loss.svg", "rank: 8"):
        assert words in printed, words


def test_comparison_runs_are_trained_shown_and_not_registered(folder: Path, commands: Commands) -> None:
    trained = commands.json("train", str(folder / "full.yaml"))
    assert (trained["method"], trained["num_steps"]) == ("full", 20)
    assert (Path(trained["folder"]) / "model" / "config.json").is_file()
    assert not Registry(open_database()).list_versions()
    assert commands.json("runs", "show", trained["run"])["needs"] == {}
    assert "method: full" in commands.text("runs", "show", trained["run"])
    assert "keeps no checkpoints" in commands.refused(1, "runs", "resume", trained["run"])
    assert run(["train", str(folder / "bottleneck.yaml")]) == 0
    assert "Not registered: 'bottleneck' is there for comparison" in commands.capsys.readouterr().err


@pytest.mark.parametrize("options", [["--packed"], ["--packed", "--strict"]])
@pytest.mark.parametrize("recipes", [["full"], ["bottleneck"], ["lora", "full"]])
def test_comparison_methods_are_not_packed(recipes: list[str], options: list[str], folder: Path, commands: Commands) -> None:
    line = commands.refused(2, "train", *(str(folder / f"{name}.yaml") for name in recipes), *options)
    assert f"method {recipes[-1]!r} is there for comparison and is trained alone: leave out `--packed` (and `--strict`" in line
    assert list_runs() == []


def test_comparison_methods_are_neither_built_nor_planned(folder: Path, commands: Commands) -> None:
    with pytest.raises(ConfigError, match="what it makes is not registered"):
        next(build(read_recipe(folder / "full.yaml")))
    assert "is not planned" in commands.refused(2, "plan", str(folder / "full.yaml"))


def test_runs_are_compared_on_the_same_items(folder: Path, commands: Commands) -> None:
    lora, full, bottleneck = (commands.json("train", str(folder / f"{method}.yaml")) for method in METHODS)
    found = commands.json("runs", "compare", lora["run"], full["run"], bottleneck["run"])
    assert [value["method"] for value in found["runs"]] == ["lora", "full", "bottleneck"]
    first, second, third = found["runs"]
    assert first["against_first"] is None
    assert (first["exact"]["value"], third["exact"]["value"]) == (1.0, 0.0)
    assert first["exact"]["interval"]["low"] < 1.0 == first["exact"]["interval"]["high"]
    pair = third["against_first"]
    assert (pair["difference"], pair["num_only_baseline"], pair["num_items"]) == (-1.0, found["num_items"], found["num_items"])
    assert pair["mcnemar_p"] == pytest.approx(2.0 ** (1 - found["num_items"]))
    assert second["num_parameters"] == load_base(str(folder / "base")).num_parameters > first["num_parameters"] > 0
    assert second["saved_bytes"] > third["saved_bytes"] > 0
    assert (home() / "runs" / lora["run"] / "test_scores.json").is_file()
    printed = commands.text("runs", "compare", lora["run"], bottleneck["run"])
    assert "bottleneck" in printed
    assert "-100.0" in printed


def test_runs_on_different_items_are_not_compared(folder: Path, commands: Commands) -> None:
    first = commands.json("train", str(folder / "bottleneck.yaml"))["run"]
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("ok", "well"))
    save_tiny_base(folder / "base", "gemma3", seed=1)
    second = commands.json("train", str(folder / "bottleneck.yaml"))["run"]
    line = commands.refused(2, "runs", "compare", first, second)
    assert "cannot be compared" in line
    assert "has base" in line
    assert "has dataset 'demo'" in line
    assert "two runs or more, found 1" in commands.refused(2, "runs", "compare", first)


def test_cancelled_run_is_resumed_and_registered(folder: Path, commands: Commands) -> None:
    made = started(folder / "lora.yaml")
    (listed,) = list_runs()
    assert commands.json("runs", "cancel", listed["id"]) == {"run": listed["id"], "cancelled": True}
    list(made)
    assert list_runs()[0]["state"] == "cancelled"
    assert "is cancelled, not running" in commands.refused(1, "runs", "cancel", listed["id"])
    assert "is cancelled: only a run that has succeeded" in commands.refused(1, "runs", "compare", listed["id"], listed["id"])
    resumed = commands.json("runs", "resume", listed["id"])
    assert (resumed["run"], resumed["state"], resumed["id"], resumed["num_steps"]) == (listed["id"], "succeeded", "demo@v1", 40)
    assert "nothing to resume" in commands.refused(1, "runs", "resume", listed["id"])


def test_running_run_is_shown_with_its_step(folder: Path, commands: Commands) -> None:
    made = started(folder / "lora.yaml")
    next(made)
    shown = commands.json("runs", "show", list_runs()[0]["id"])
    assert (shown["state"], shown["last_step"]["step"], shown["needs"]["seconds"]["actual"]) == ("running", 1, None)
    assert "1 of 40, loss" in commands.text("runs", "show", shown["id"])
    made.close()


def make_old(run_id: str) -> None:
    """Leave of a run's folder what the first version wrote: no method, no digest of the plan, ranges without a middle."""
    path = home() / "runs" / run_id
    state, plan = (json.loads((path / name).read_text()) for name in ("run.json", "plan.json"))
    for key in ("method", "plan_digest", "actual"):
        state.pop(key, None)
    for key in ("seconds", "memory_bytes"):
        del plan[key]["middle"]
    (path / "run.json").write_text(json.dumps(state))
    (path / "plan.json").write_text(json.dumps(plan))
    (path / "learning.json").unlink()


def test_runs_of_older_versions_are_shown_as_far_as_they_go(folder: Path, commands: Commands) -> None:
    old, new = (commands.json("train", str(folder / "lora.yaml"))["run"] for _ in range(2))
    make_old(old)
    assert [(run["id"], run["method"]) for run in commands.json("runs", "list")["runs"]] == [(new, "lora"), (old, "lora")]
    assert old in commands.text("runs", "list")
    needs = commands.json("runs", "show", old)["needs"]["seconds"]
    assert needs == {"low": needs["low"], "middle": None, "high": needs["high"], "actual": None, "ratio": None}
    printed = commands.text("runs", "show", old)
    for words in ("succeeded since", "planned 0.", " minutes", "40 of 40, loss", "rank: 8"):
        assert words in printed, words
    assert f"an older version trained '{old}'" in commands.refused(1, "runs", "compare", old, new)
    assert "nothing to resume" in commands.refused(1, "runs", "resume", old)
    assert "is succeeded, not running" in commands.refused(1, "runs", "cancel", old)


def test_run_an_older_version_began_is_not_resumed(folder: Path, commands: Commands) -> None:
    started(folder / "lora.yaml").close()
    (listed,) = list_runs()
    make_old(listed["id"])
    line = commands.refused(1, "runs", "resume", listed["id"])
    assert "cannot go on: an older version began it" in line


@pytest.mark.parametrize("command", ["show", "resume", "cancel"])
def test_unknown_run_is_named_with_those_there_are(command: str, commands: Commands) -> None:
    line = commands.refused(2, "runs", command, "ghost")
    assert "'ghost' names 0 runs" in line
    assert "none yet" in line
