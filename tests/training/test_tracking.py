"""What the real trackers stored, read back with their own readers; and that none of them can stop a run or send anything unasked."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from lorimer.config import Tracker as TrackerName
from lorimer.errors import ConfigError
from lorimer.training.tracking import Sheltered, Tracker, open_trackers

# MLflow's own mapping, under SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning")
PARAMETERS = {"rank": 16, "learning_rate": 2e-4, "dataset": "helpdesk", "gate": {"at_least": None}, "path": Path("a")}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nobody has said where metrics go."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)


def open_one(name: TrackerName, folder: Path, run_id: str = "run-1") -> Tracker:
    (tracker,) = open_trackers([name], run_id=run_id, adapter_name="helpdesk", parameters=PARAMETERS, folder=folder)
    return tracker


def stored_runs(home: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'lorimer'")
    return client, list(client.search_runs([experiment.experiment_id]))


def steps_in(client: Any, run: Any, key: str) -> list[int]:
    return sorted({metric.step for metric in client.get_metric_history(run.info.run_id, key)})


def test_mlflow_keeps_a_run_in_the_home_folder_and_goes_on_with_it(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = open_one("mlflow", tmp_path)
    first.log({"loss": 2.5, "grad_norm": math.nan}, 1)
    first.log({"loss": math.inf, "grad_norm": -math.inf}, 2)
    first.finish("interrupted")
    client, (run,) = stored_runs(home)
    assert (run.info.status, run.data.tags["lorimer.state"]) == ("KILLED", "interrupted")

    resumed = open_one("mlflow", tmp_path)
    assert stored_runs(home)[1][0].info.status == "RUNNING"
    resumed.log({"loss": 1.5}, 3)
    resumed.finish("succeeded")
    open_one("mlflow", tmp_path, run_id="run-2")
    assert capfd.readouterr() == ("", "")  # `--json` and the progress bar have the screen
    runs = {run.data.tags["lorimer.run_id"]: run for run in stored_runs(home)[1]}
    assert set(runs) == {"run-1", "run-2"}
    assert runs["run-1"].info.status == "FINISHED"
    assert runs["run-1"].info.run_name == "helpdesk run-1"
    assert runs["run-1"].data.metrics["loss"] == 1.5
    assert (steps_in(client, runs["run-1"], "loss"), steps_in(client, runs["run-1"], "grad_norm")) == ([1, 2, 3], [1, 2])
    assert runs["run-1"].data.params == {
        "rank": "16",
        "learning_rate": "0.0002",
        "dataset": "helpdesk",
        "gate": '{"at_least": null}',
        "path": "a",
    }
    assert runs["run-1"].info.artifact_uri.startswith((home / "mlflow" / "artifacts").as_uri())


def test_mlflow_goes_where_the_user_says_and_a_store_that_breaks_there_is_one_warning(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "triage")
    tracker = open_one("mlflow", tmp_path)
    tracker.log({"loss": 1.0}, 1)
    assert store.exists()
    assert not (home / "mlflow").exists()
    store.write_bytes(b"no longer a database" * 1000)
    tracker.log({"loss": 1.0}, 2)
    tracker.log({"loss": 1.0}, 3)
    tracker.finish("succeeded")
    warnings = [record.message for record in caplog.records if record.name == "lorimer"]
    assert [warning.split(";")[0] for warning in warnings] == ["mlflow failed at step 2 and gets nothing more"]


@pytest.mark.parametrize("name", ["a?b", "a%41b"])
def test_mlflow_refuses_a_home_folder_its_uri_cannot_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / name))
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        open_one("mlflow", tmp_path)


def test_tensorboard_event_file_holds_every_value(tmp_path: Path) -> None:
    tracker = open_one("tensorboard", tmp_path)
    for step, loss in enumerate([2.5, math.nan, math.inf, 1.5], start=1):
        tracker.log({"loss": loss, "learning_rate": 0.001}, step)
    tracker.finish("succeeded")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 2.5),
        (2, pytest.approx(math.nan, nan_ok=True)),
        (3, math.inf),
        (4, 1.5),
    ]
    (parameters,) = events.Tensors("parameters/text_summary")
    assert b'"rank": 16' in parameters.tensor_proto.string_val[0]


def test_tensorboard_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    first, resumed = open_one("tensorboard", tmp_path), open_one("tensorboard", tmp_path)
    for step in (1, 2, 3):
        first.log({"loss": 1.0}, step)
    first.finish("interrupted")
    for step in (3, 4):
        resumed.log({"loss": 0.5}, step)
    resumed.finish("succeeded")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]


def test_tracker_that_never_logged_can_be_finished(tmp_path: Path) -> None:
    open_one("tensorboard", tmp_path).finish("failed")
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_stays_offline_in_the_runs_folder(tmp_path: Path) -> None:
    trackers = [open_one("wandb", tmp_path / "a", "a"), open_one("wandb", tmp_path / "b", "b")]  # packed runs: side by side
    for step, loss in enumerate([2.5, math.nan, math.inf], start=1):
        for tracker in trackers:
            tracker.log({"loss": loss}, step)
    for tracker in trackers:
        tracker.finish("succeeded")
    open_one("wandb", tmp_path / "a", "a").finish("failed")  # resumed: one more part of the same run, joined by `wandb sync`
    assert {path.name for path in (tmp_path / "a" / "wandb").glob("offline-run-*/run-*")} == {"run-a.wandb"}
    (record,) = (tmp_path / "b" / "wandb").glob("offline-run-*/run-b.wandb")
    stored = record.read_bytes()
    assert [part in stored for part in (b"helpdesk b", b"2.5", b"NaN", b"Infinity", b"succeeded")] == [True] * 5


def test_missing_packages_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"mlflow, wandb, not installed here: `pip install lorimer\[tracking\]`"):
        open_trackers(["mlflow", "tensorboard", "wandb", "mlflow"], run_id="r", adapter_name="a", parameters={}, folder=tmp_path)


def test_trackers_that_cannot_be_opened_are_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match=r"mlflow \(API request to .*wandb \(.*put it right, or leave it out"):
        open_trackers(["mlflow", "tensorboard", "wandb"], run_id="r", adapter_name="a", parameters={}, folder=tmp_path)


def test_nothing_is_imported_unless_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lorimer.training.tracking import open_trackers\n"
        "assert open_trackers([], run_id='r', adapter_name='a', parameters={}, folder=Path('x')) == []\n"
        "print(sorted({'mlflow', 'tensorboard', 'wandb', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout == "[]\n"


def test_usage_reports_are_off_before_the_libraries_are_imported(tmp_path: Path) -> None:
    code = (
        "import contextlib, json, os, threading; from pathlib import Path; from lorimer.training.tracking import open_trackers\n"
        "with contextlib.suppress(Exception):\n"  # nobody answers there, which is quicker than making a store
        "    open_trackers(['mlflow'], run_id='r', adapter_name='a', parameters={}, folder=Path())\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "names = [thread.name for thread in threading.enumerate()]\n"
        "print(json.dumps([str(get_telemetry_client()), os.environ['WANDB_ERROR_REPORTING'], names]))"
    )
    unset = ("CI", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING")  # the first two also switch it off
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert json.loads(done.stdout) == ["None", "false", ["MainThread"]]


class Failing:
    """Fails from its second call on."""

    def __init__(self) -> None:
        self.num_calls = 0

    def log(self, metrics: Any, step: int) -> None:
        self._call()

    def finish(self, state: str) -> None:
        self._call()

    def _call(self) -> None:
        self.num_calls += 1
        if self.num_calls > 1:
            raise ConnectionError("connection reset\nby peer")


def test_failing_tracker_is_reported_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing()
    tracker = Sheltered("wandb", failing)
    for step in (1, 2, 3):
        tracker.log({"loss": 1.0}, step)
    tracker.finish("succeeded")
    assert failing.num_calls == 2
    assert caplog.record_tuples == [
        (
            "lorimer",
            logging.WARNING,
            "wandb failed at step 2 and gets nothing more; the run goes on and its own folder has every step: connection reset",
        )
    ]
