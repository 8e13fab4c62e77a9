"""Answers that are labels: what was taken for what, and how sure we are of each class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorimer.evaluation.scorers.catalogue import label_of
from lorimer.evaluation.statistics.proportions import Proportion, proportion

OTHER = "other"
"""Stands for answers that are no known class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassReport:
    """One class."""

    name: str
    precision: Proportion
    """Of the answers that name it, those that are right, with Wilson's interval."""
    recall: Proportion
    """Of the items that are it, those that are answered so, with Wilson's interval."""
    f1: float | None
    """The harmonic mean of precision and recall; None where no item is of this class and no answer names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationReport:
    """All classes."""

    classes: tuple[ClassReport, ...]
    """In alphabetical order."""
    matrix: tuple[tuple[int, ...], ...]
    """A row for each class that was wanted, a column for each that was answered, and a last column for answers that are no class."""
    num_other: int
    """Answers that are no known class: they count as wrong."""
    num_unscored: int
    """Items without an answer, or whose target names no label: left out of all else."""
    accuracy: Proportion
    macro_f1: float | None
    """The mean of the classes' F1, of those that some item is of: each class counts the same, however rare; None without items."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value for programs, with the shares beside the counts."""
        value = asdict(self)
        value["accuracy"]["value"] = self.accuracy.value
        for own, report in zip(value["classes"], self.classes, strict=True):
            own["precision"]["value"], own["recall"]["value"] = report.precision.value, report.recall.value
        value["columns"] = [*(report.name for report in self.classes), OTHER]
        return value


def classification_report(answers: Sequence[str | None], targets: Sequence[str], classes: Sequence[str] = ()) -> ClassificationReport:
    """What was answered where what was wanted; labels are read as the scorer `label` reads them.

    The classes are those of the targets, and `classes` beside them: an answer that names one of these is wrong but no "other".
    """
    pairs = [(label_of(answer), label_of(target)) for answer, target in zip(answers, targets, strict=True) if answer is not None]
    pairs = [(found, wanted) for found, wanted in pairs if wanted]
    names = sorted({wanted for _, wanted in pairs} | {label_of(name) for name in classes} - {""})
    known = set(names)
    counts = Counter((wanted, found if found in known else None) for found, wanted in pairs)
    matrix = tuple(tuple(counts[wanted, found] for found in (*names, None)) for wanted in names)
    reports = tuple(_class_report(name, row, matrix) for row, name in enumerate(names))
    of_items = [report.f1 for report in reports if report.f1 is not None and report.recall.num_items]
    return ClassificationReport(
        classes=reports,
        matrix=matrix,
        num_other=sum(row[-1] for row in matrix),
        num_unscored=len(targets) - len(pairs),
        accuracy=proportion(sum(counts[name, name] for name in names), len(pairs)),
        macro_f1=sum(of_items) / len(of_items) if of_items else None,
    )


def _class_report(name: str, place: int, matrix: tuple[tuple[int, ...], ...]) -> ClassReport:
    num_right, num_items, num_answers = matrix[place][place], sum(matrix[place]), sum(row[place] for row in matrix)
    return ClassReport(
        name=name,
        precision=proportion(num_right, num_answers),
        recall=proportion(num_right, num_items),
        f1=2 * num_right / (num_items + num_answers) if num_items + num_answers else None,
    )
