"""Finished runs side by side: the same unseen items put to each, paired with the first of them, beside what each needed.

It knows nothing of how a run was trained or scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorimer.errors import UsageError
from lorimer.evaluation.statistics.proportions import PairedComparison, Proportion

MUST_BE_SAME = ("base", "dataset")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run in the comparison."""

    run_id: str
    name: str
    method: str
    exact: Proportion
    """Test rows that greedy decoding would answer exactly."""
    loss: float
    """Mean negative log-likelihood per learned token of the test rows, in nats."""
    against_first: PairedComparison | None
    """This run as the candidate, the first as the baseline; None for the first itself."""
    num_parameters: int
    saved_bytes: int
    seconds: float
    peak_bytes: int
    """Of the process that trained it: what else it did before counts too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs on one base and one dataset."""

    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str
    num_items: int
    runs: tuple[ComparedRun, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON value for programs."""
        value = asdict(self)
        for run, own in zip(value["runs"], self.runs, strict=True):
            run["exact"]["value"] = own.exact.value
        return value


def refuse_unlike(runs: Sequence[Mapping[str, Any]]) -> None:
    """Go on only with two or more runs on the same base and the same dataset; `runs` are the values of their `run.json`.

    Raises:
        UsageError: saying what differs.
    """
    if len(runs) < 2:
        raise UsageError(f"a comparison needs two runs or more, found {len(runs)}: `lorimer runs list` shows what there is")
    first, *others = runs
    differing = [
        f"run {run['id']!r} {_describe(run, what)}, run {first['id']!r} {_describe(first, what)}"
        for run in others
        for what in MUST_BE_SAME
        if run[f"{what}_digest"] != first[f"{what}_digest"]
    ]
    if differing:
        raise UsageError(f"these runs cannot be compared: {'; '.join(differing)}: name runs on one base and one dataset")


def _describe(run: Mapping[str, Any], what: str) -> str:
    return f"has {what} {run[f'{what}_name']!r} ({run[f'{what}_digest'][:12]})"
