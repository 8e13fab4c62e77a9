"""What an adapter is held to: a versioned YAML of tasks over data, each with the rule its scores must meet. It asks no model.

suite: returns-desk
version: 3
tasks:
  - name: refunds
    family: domain
    data: refunds.jsonl              # beside this file; or `dataset: refunds`, a curated one's test split
    metric: exact_json
    rule: {better_than: base}
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lorimer.config import Strict, home, read_keys
from lorimer.data.dataset import read_dataset
from lorimer.data.features import place_of
from lorimer.errors import ConfigError, DataError, NotFoundError
from lorimer.evaluation.items import read_items
from lorimer.evaluation.judge_spec import JudgeSpec, read_judge
from lorimer.evaluation.results import Family
from lorimer.evaluation.scorers import SCORERS
from lorimer.evaluation.task import Kind, Sample, Task, Template, task_from_dataset
from lorimer.storage import digest_of, write_bytes, write_text

Against = Literal["base", "incumbent"]
METRICS: dict[Kind, frozenset[str]] = {
    "answer": frozenset({*SCORERS, "voice", "judge"}),
    "choice": frozenset({"choice", "choice_by_len", "exposure"}),
    "text": frozenset({"perplexity", "divergence", "membership"}),
}
SHIPPED = Path(__file__).parent / "suites"
RESERVE = 0.2
NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Rule(Strict):
    """What a task's scores must meet; exactly one, beside the margin that goes with `not_worse_than`."""

    better_than: Against | None = None
    """The difference is above zero, beyond chance."""
    not_worse_than: Against | None = None
    """The difference is above `-margin`, beyond chance."""
    margin: float = Field(0.02, gt=0)
    """In the metric's unit: 0.02 are two points of a share."""
    at_least: float | None = None
    """The interval's lower end."""
    at_most: float | None = None
    """The interval's upper end, of a metric where less is better."""
    never: float | None = Field(None, gt=0, lt=1)
    """No item fails, and there are so many that a failure rate above this is excluded."""

    @model_validator(mode="after")
    def _ask_one_thing(self) -> "Rule":
        given = [name for name in ("better_than", "not_worse_than", "at_least", "at_most", "never") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule asks for exactly one of better_than, not_worse_than, at_least, at_most, never; this for {len(given)}")
        if "margin" in self.model_fields_set and self.not_worse_than is None:
            raise ValueError("a margin goes with not_worse_than alone")
        return self


class TaskSpec(Strict):
    """One task as a suite's file has it."""

    name: str = Field(pattern=NAME)
    family: Family
    data: str | None = None
    """A JSONL file of items beside the suite's own file."""
    dataset: str | None = None
    """A curated dataset; its test split is asked."""
    kind: Kind = "answer"
    metric: str
    max_tokens: int | None = Field(None, ge=1, le=8192)
    """Longest answer; by default a little more than the longest target."""
    template: Template = "chat"
    judge: str | None = None
    """With the metric `judge`: the file that describes it, beside the suite's own."""
    rule: Rule

    @model_validator(mode="after")
    def _fit(self) -> "TaskSpec":
        if (self.data is None) == (self.dataset is None):
            raise ValueError(f"task {self.name!r} names either `data` or `dataset`")
        if self.metric not in METRICS[self.kind]:
            raise ValueError(f"metric {self.metric!r} is not one of kind {self.kind!r}: {', '.join(sorted(METRICS[self.kind]))}")
        if (self.metric == "judge") != (self.judge is not None):
            raise ValueError(f"task {self.name!r}: the metric `judge` and the key `judge`, a file, go together")
        if self.metric == "voice" and self.rule.at_most is None:
            raise ValueError(f"task {self.name!r}: a voice is held to `at_most`, how much further than chance it may be from the targets")
        return self


class SuiteSpec(Strict):
    """A suite's file."""

    suite: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    about: str = ""
    reserve: float = Field(RESERVE, ge=0, le=0.5)
    """Share of each task's items that only the gate of a promotion asks, and no report shows."""
    tasks: list[TaskSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _name_once(self) -> "SuiteSpec":
        if repeated := [name for name, count in Counter(task.name for task in self.tasks).items() if count > 1]:
            raise ValueError(f"tasks are named more than once: {', '.join(repeated)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteTask:
    """One task with what it is held to."""

    family: Family
    rule: Rule
    task: Task
    judge: JudgeSpec | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over what is asked, how it is judged and what it is held to."""
        judge = self.judge.model_dump(exclude={"concurrency", "timeout_seconds", "key_env"}) if self.judge else None
        return digest_of([self.family, self.task.name, self.task.digest, self.rule.model_dump(), judge])


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite with its items."""

    name: str
    version: int
    about: str
    reserve: float
    tasks: tuple[SuiteTask, ...]

    @property
    def id(self) -> str:
        """`safety@v3`"""
        return f"{self.name}@v{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides a verdict."""
        tasks = [one.digest for one in self.tasks]
        return digest_of({"suite": self.name, "version": self.version, "reserve": self.reserve, "tasks": tasks})

    def is_reserved(self, sample: Sample) -> bool:
        """Whether an item is in the sealed part: by its group, else itself, so that a group is not torn."""
        return place_of(f"reserve\0{self.name}\0{sample.group or sample.id}") < self.reserve

    def open_part(self) -> "Suite":
        """What anybody may look at: without the sealed items."""
        parts = [(one, tuple(s for s in one.task.samples if not self.is_reserved(s))) for one in self.tasks]
        return replace(self, tasks=tuple(replace(one, task=replace(one.task, samples=samples)) for one, samples in parts if samples))


def shipped_suites() -> tuple[str, ...]:
    """The names of those that come with the product."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def find_suite(name: str) -> Suite:
    """A suite by its file, by the name it was added under (`desk`, or `desk@v2`), or one that comes with the product.

    Raises:
        NotFoundError: if there is none; the message says what there is.
        ConfigError, DataError: if its file or its items cannot be used.
    """
    if name.endswith((".yaml", ".yml")):
        return read_suite(Path(name))
    own = added_suites()
    wanted, _, version = name.partition("@")
    versions = sorted(int(known.partition("@v")[2]) for known in own if known.partition("@")[0] == wanted)
    if versions:
        found = f"{wanted}@{version or f'v{versions[-1]}'}"
        if found in own:
            return read_suite(own[found])
    elif wanted in shipped_suites():
        suite = read_suite(SHIPPED / f"{wanted}.yaml")
        if version in ("", f"v{suite.version}"):
            return suite
    known = ", ".join((*sorted(own), *shipped_suites()))
    raise NotFoundError(f"there is no suite {name!r}; there are {known}; name a file that ends in .yaml, or `lorimer suites add FILE`")


def added_suites() -> dict[str, Path]:
    """Files of the suites that were added here, by `name@v3`."""
    return {path.parent.name: path for path in sorted((home() / "suites").glob("*@v*/suite.yaml"))}


def read_suite(path: Path) -> Suite:
    """Read a suite's file and all its items.

    Raises:
        ConfigError: naming every wrong key.
        DataError: naming every item that cannot be used.
    """
    spec = read_keys(path, SuiteSpec, "suite", "`lorimer suites list` shows those that are there")
    problems, tasks = list[str](), list[SuiteTask]()
    for own in spec.tasks:
        try:
            judge = _read_judge(own, path.parent)
            tasks.append(SuiteTask(family=own.family, rule=own.rule, task=_read_task(own, path.parent), judge=judge))
        except (ConfigError, DataError, NotFoundError) as exc:
            problems.append(f"task {own.name!r}: {exc}")
    if problems:
        raise DataError(f"suite {str(path)!r} cannot be asked: {'; '.join(problems)}")
    return Suite(name=spec.suite, version=spec.version, about=spec.about, reserve=spec.reserve, tasks=tuple(tasks))


def _read_judge(spec: TaskSpec, folder: Path) -> JudgeSpec | None:
    if spec.judge is None:
        return None
    judge = read_judge(_path_of(folder, spec.judge))
    if judge.kind == "pair" and "base" not in (spec.rule.better_than, spec.rule.not_worse_than):
        raise ConfigError("a judge of pairs says which of two is better: give it the rule better_than or not_worse_than `base`")
    return judge


def _read_task(spec: TaskSpec, folder: Path) -> Task:
    if spec.dataset is not None:
        task = task_from_dataset(read_dataset(spec.dataset), spec.metric)
    else:
        assert spec.data is not None
        samples = read_items(_path_of(folder, spec.data), spec.kind, spec.template)
        content = digest_of([sample.to_json() for sample in samples])
        task = Task(name=spec.name, metric=spec.metric, samples=samples, dataset_digest=content)
    return replace(task, name=spec.name, kind=spec.kind, template=spec.template, max_tokens=spec.max_tokens)


def _path_of(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"data {name!r} lies outside the suite's folder: put it beside the suite's file")
    return path


def texts_by_suite() -> dict[str, Iterable[str]]:
    """What each suite that is here asks, for those who look for it in training rows."""
    return {f"suite {name!r}": _texts_of(find_suite(name)) for name in (*shipped_suites(), *added_suites())}


def _texts_of(suite: Suite) -> Iterable[str]:
    for one in suite.tasks:
        for sample in one.task.samples:
            yield "\n".join(message.content for message in sample.prompt) or sample.target


def add_suite(path: Path) -> Suite:
    """Keep a suite and its items under its name and version; the same one twice is one.

    Raises:
        ConfigError: if another one has this name and version: what was judged by it would not be the same any more.
    """
    suite = read_suite(path)
    folder = home() / "suites" / suite.id
    if suite.name in shipped_suites():
        raise ConfigError(f"suite {suite.name!r} comes with the product: give yours another name")
    if (folder / "suite.yaml").is_file():
        if read_suite(folder / "suite.yaml").digest != suite.digest:
            raise ConfigError(f"suite {suite.id} is there and asks something else: give yours the next version")
        return suite
    spec = read_keys(path, SuiteSpec, "suite", "")
    for own in spec.tasks:
        for name in filter(None, (own.data, own.judge)):
            write_bytes(folder / name, _path_of(path.parent, name).read_bytes())
    write_text(folder / "suite.yaml", path.read_text(encoding="utf-8"))
    return suite


def to_json(suite: Suite) -> Mapping[str, Any]:
    """For programs: what is asked, without the items."""
    tasks = [
        {
            "name": one.task.name, "family": one.family, "kind": one.task.kind, "metric": one.task.metric,
            "num_items": len(one.task.samples), "rule": json.loads(one.rule.model_dump_json(exclude_none=True)),
        }
        for one in suite.tasks
    ]  # fmt: skip
    return {"suite": suite.name, "version": suite.version, "about": suite.about, "digest": suite.digest, "tasks": tasks}
