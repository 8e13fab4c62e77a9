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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorimer.config import home, read_keys
from lorimer.data.dataset import read_dataset
from lorimer.data.features import place_of
from lorimer.errors import ConfigError, DataError, NotFoundError
from lorimer.evaluation.items import read_items
from lorimer.evaluation.judge.spec import JudgeSpec, read_judge
from lorimer.evaluation.results import Family
from lorimer.evaluation.suite_spec import Rule, SuiteSpec, TaskSpec
from lorimer.evaluation.task import Sample, Task, task_from_dataset
from lorimer.storage import digest_of, write_bytes, write_text

SHIPPED = Path(__file__).parent / "suites"


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
        return replace(self, tasks=tuple(replace(one, task=replace(one.task, samples=samples)) for one, samples in parts))


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
