"""A suite's file, read strictly: which tasks, of which kind, scored how, held to which rule."""

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from lorimer.config import Strict
from lorimer.evaluation.results import Family
from lorimer.evaluation.scorers.catalogue import SCORERS
from lorimer.evaluation.task import Kind, Template

Against = Literal["base", "incumbent"]
METRICS: dict[Kind, frozenset[str]] = {
    "answer": frozenset({*SCORERS, "voice", "judge"}),
    "choice": frozenset({"choice", "choice_by_len", "exposure"}),
    "text": frozenset({"perplexity", "divergence", "membership"}),
}
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
