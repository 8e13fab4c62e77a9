"""What people said about answers, read strictly: a judge is held to it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorimer.errors import ConfigError, DataError
from lorimer.evaluation.judge.judge import Item
from lorimer.evaluation.judge.spec import JudgeSpec

MIN_LABELS = 100
NUM_SHOWN = 5
FIELDS = {"score": ("question", "answer", "label"), "pair": ("question", "answer_a", "answer_b", "label")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a person said about an item."""

    item: Item
    label: str


def read_labels(path: Path, spec: JudgeSpec) -> list[Label]:
    """Read what people said: JSONL, one `{question, answer, label}` or `{question, answer_a, answer_b, label}` a line, `reference` besides.

    Raises:
        DataError: if there are fewer than `MIN_LABELS`, a line is none of these, or an item is there twice; every such line is named.
    """
    problems: list[str] = []
    labels: list[Label] = []
    seen: dict[Item, int] = {}
    for number, line in _lines(path):
        try:
            label = _read_label(line, spec)
        except ValueError as exc:
            problems.append(f"line {number}: {exc}")
            continue
        if (first := seen.setdefault(label.item, number)) != number:
            problems.append(f"line {number}: the same item as line {first}: give it once, with the label that holds")
        labels.append(label)
    if problems:
        rest = f"; and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise DataError(f"labels {str(path)!r}: {'; '.join(problems[:NUM_SHOWN])}{rest}")
    if len(labels) < MIN_LABELS:
        raise DataError(
            f"labels {str(path)!r} hold {len(labels)} items: to say how far a judge agrees with people, give {MIN_LABELS} or more"
        )
    return labels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError(f"labels {str(path)!r} do not exist: give a JSONL file of what people said (docs/judges.md)") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"labels {str(path)!r} cannot be read as a UTF-8 text file: {exc}") from exc
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_label(line: str, spec: JudgeSpec) -> Label:
    """One line; raises ValueError with what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON ({exc})") from exc
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, not an object")
    fields = FIELDS[spec.kind]
    if missing := [name for name in fields if name not in row]:
        raise ValueError(f"{', '.join(missing)} missing (a judge of kind {spec.kind!r} needs {', '.join(fields)})")
    if unknown := sorted(set(row) - {*fields, "reference"}):
        raise ValueError(f"unknown key {', '.join(map(repr, unknown))} (known: {', '.join(fields)}, reference)")
    texts = [name for name in (*fields[:-1], "reference") if not isinstance(row.get(name, ""), str)]
    if texts:
        raise ValueError(f"{', '.join(texts)} must be text")
    found = row["label"]
    spelled = {one.casefold(): one for one in spec.allowed}
    label = spelled.get(str(found).strip().casefold()) if isinstance(found, str | int) and not isinstance(found, bool) else None
    if label is None:
        raise ValueError(f"label {found!r} is none of {', '.join(spec.allowed)}")
    answers = tuple(row[name] for name in fields[1:-1])
    return Label(item=Item(question=row["question"], answers=answers, reference=row.get("reference", "")), label=label)
