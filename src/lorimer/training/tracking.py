"""Where a run's metrics also go: MLflow, TensorBoard, Weights & Biases. Knows nothing of training; the run's own folder stays the record.

Nothing leaves the machine unless the user says so: MLflow writes to a store under the home folder unless `MLFLOW_TRACKING_URI` is set,
Weights & Biases stays offline unless `WANDB_MODE` is set, and the usage and error reports of both are off unless their variables say on.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module  # the extras are optional, for the type checker too
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lorimer.config import Tracker as TrackerName
from lorimer.config import home
from lorimer.errors import ConfigError
from lorimer.storage import explain_disk_errors

PROJECT = "lorimer"
RUN_TAG = "lorimer.run_id"
MAX_PARAMS_A_REQUEST = 100  # MLflow's own limit: mlflow/utils/validation.py, MAX_PARAMS_TAGS_PER_BATCH
FLUSH_SECONDS = 10
DEFAULT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # a server that is gone holds one step up for half a minute, once; MLflow's own defaults are several minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

logger = logging.getLogger("lorimer")


class Tracker(Protocol):
    """One place where one run's metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record one step's values."""

    def finish(self, state: str) -> None:
        """Record how the run ended; nothing is logged after it."""


def open_trackers(
    names: Sequence[TrackerName], *, run_id: str, adapter_name: str, parameters: Mapping[str, Any], folder: Path
) -> list[Tracker]:
    """Open each named tracker for a new run, or for the same one resumed; from then on none of them raises.

    Raises:
        ConfigError: if packages are missing, or a tracker cannot be opened; all of them in one message.
    """
    missing = [name for name in dict.fromkeys(names) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"`track` asks for {', '.join(missing)}, not installed here: `pip install lorimer[tracking]`, or leave it out")
    for variable, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)  # both libraries read them while they are imported
    plain = json.loads(json.dumps(parameters, default=str))
    opened: list[Tracker] = []
    problems = []
    for name in dict.fromkeys(names):
        try:
            opened.append(Sheltered(name, _open(name, run_id, adapter_name, plain, folder)))
        except Exception as exc:  # whatever a stranger's library raises, the reader gets it in one sentence with the others
            problems.append(f"{name} ({_first_line(exc)})")
    if problems:
        for tracker in opened:
            tracker.finish("failed")
        raise ConfigError(f"`track` asks for what cannot be opened: {'; '.join(problems)}: put it right, or leave it out of `track`")
    return opened


def _open(name: TrackerName, run_id: str, adapter_name: str, parameters: dict[str, Any], folder: Path) -> Tracker:
    if name == "mlflow":
        return MLflow(run_id, adapter_name, parameters)
    if name == "tensorboard":
        return TensorBoard(parameters, folder / "tensorboard")
    return WeightsAndBiases(run_id, adapter_name, parameters, folder)


class Sheltered:
    """A tracker that is left alone after its first failure, with one warning: a lost network must not stop a training."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._failed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record one step's values, if the tracker still answers."""
        self._try(lambda: self._tracker.log(metrics, step), f"at step {step}")

    def finish(self, state: str) -> None:
        """Record how the run ended, if the tracker still answers."""
        self._try(lambda: self._tracker.finish(state), "at the end")

    def _try(self, action: Callable[[], None], when: str) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as exc:
            self._failed = True
            logger.warning(
                "%s failed %s and gets nothing more; the run goes on and its own folder has every step: %s",
                self._name,
                when,
                _first_line(exc),
            )


class MLflow:
    """A run in MLflow, found again by its tag when it is resumed."""

    def __init__(self, run_id: str, adapter_name: str, parameters: Mapping[str, Any]) -> None:
        self._entities: Any = import_module("mlflow.entities")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it creates
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client: Any = import_module("mlflow").MlflowClient(tracking_uri=uri or _local_store())
        experiment = self._experiment(None if uri else (home() / "mlflow" / "artifacts").as_uri())
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=f"{adapter_name} {run_id}", tags={RUN_TAG: run_id}).info.run_id
            self._log_parameters(parameters)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One request a step."""
        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._entities.Metric(key, value, now, step) for key, value in metrics.items()])

    def finish(self, state: str) -> None:
        """MLflow's own word for the state, and ours as a tag."""
        self._client.set_tag(self._id, "lorimer.state", state)
        self._client.set_terminated(self._id, {"succeeded": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name, artifact_location=artifacts))

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in parameters.items()}
        params = [self._entities.Param(key, text) for key, text in texts.items()]
        for start in range(0, len(params), MAX_PARAMS_A_REQUEST):
            self._client.log_batch(self._id, params=params[start : start + MAX_PARAMS_A_REQUEST])


def _local_store() -> str:
    """MLflow's SQLite store: it needs no server and nothing beyond mlflow-skinny and the core's SQLAlchemy and Alembic.

    The older store of plain files is refused by MLflow 3 unless `MLFLOW_ALLOW_FILE_STORE` is set.
    """
    path = home() / "mlflow" / "mlflow.db"
    if "?" in str(path) or "%" in str(path):  # the URI has no spelling for them that MLflow and every SQLAlchemy 2 read alike
        raise ConfigError(f"it cannot keep a store in {str(path.parent)!r}, because of the `?` or `%`: set MLFLOW_TRACKING_URI")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


class TensorBoard:
    """Event files in a folder of the run's own."""

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:
        self._open_writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        self._parameters = parameters
        self._folder = folder
        self._writer: Any = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """The first step decides from where on an earlier attempt's steps no longer count."""
        if self._writer is None:
            self._start(step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, state: str) -> None:
        """Event files have no place for the state."""
        if self._writer is not None:
            self._writer.close()

    def _start(self, step: int) -> None:
        is_new = not self._folder.exists()
        self._writer = self._open_writer(str(self._folder), purge_step=step, flush_secs=FLUSH_SECONDS)
        if is_new:
            self._writer.add_text("parameters", f"```\n{json.dumps(self._parameters, indent=2)}\n```", 0)


class WeightsAndBiases:
    """A run of Weights & Biases under the run's folder, offline unless `WANDB_MODE` says otherwise (`wandb sync` uploads it later)."""

    def __init__(self, run_id: str, adapter_name: str, parameters: Mapping[str, Any], folder: Path) -> None:
        wandb: Any = import_module("wandb")
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder where there is none
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run_id,
            name=f"{adapter_name} {run_id}",
            config=dict(parameters),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE") or "offline",
            resume="allow",
            reinit="create_new",  # packed runs are open side by side
            # metrics were asked for: not the screen, the source code or the git remote
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, save_code=False),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Handed to wandb's own process, which writes or uploads it."""
        self._run.log(dict(metrics), step=step)

    def finish(self, state: str) -> None:
        """Wait until everything is written or uploaded."""
        self._run.summary["lorimer.state"] = state
        self._run.finish(exit_code=0 if state == "succeeded" else 1)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0].strip() or type(exc).__name__
