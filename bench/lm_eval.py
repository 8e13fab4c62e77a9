"""Scores beside lm-eval's, item by item: ARC, BoolQ and GSM8K on the quick start's base, the same wording, the same rows.

    LORIMER_LM_EVAL=/opt/lm_eval/bin/python make bench-lm-eval

lm-eval runs the base through transformers (`--model hf`), in an environment of its own; its samples are read by the product's importer and
asked again through the product's own evaluation. An item differs "by rounding" if what decides it, here and there, is closer together than
the log-likelihoods of the two are apart; any other difference is counted as unexplained, and each is printed.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval_tasks import rows_of, sample_of, write_tasks
from report import Row, write_results
from train import DATA, WORK, gemma

from lorimer.evaluation.evaluate import ask, score_answer
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask
from lorimer.evaluation.outside.lm_eval import LmEvalModel, read_lm_eval, run_lm_eval
from lorimer.evaluation.task import Kind, Sample, Task
from lorimer.inference.engine import Engine
from lorimer.model.base import load_base

METRICS = {
    "acc": "choice",
    "acc_norm": "choice_by_len",
    "exact_match@strict-match": "gsm8k_strict",
    "exact_match@flexible-extract": "gsm8k_flexible",
}
"""lm-eval's, and what they are called here."""
STOP = "Question:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One item, here and there."""

    number: int
    metric: str
    ours: float | None
    theirs: float | None
    apart: float
    """Largest difference of a choice's log-likelihood, in nats; 1 where two answers are other texts, else 0."""
    gap: float
    """By how much the best choice leads the second, in nats (a character, for the metric by length); the smaller of here and there."""

    @property
    def is_same(self) -> bool:
        """Whether both say right, or both wrong."""
        return self.ours == self.theirs

    @property
    def is_rounding(self) -> bool:
        """Whether rounding alone can have decided."""
        return self.gap <= 2 * self.apart


def main() -> None:
    """Ask there, ask here, compare, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choices", type=int, default=300, help="rows of ARC challenge, ARC easy and BoolQ each")
    parser.add_argument("--answers", type=int, default=60, help="rows of GSM8K")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--theirs", type=Path, help="a folder of a run of lm-eval on the same rows; else it is run")
    parser.add_argument("--dry", action="store_true", help="print, but write no results")
    args = parser.parse_args()
    os.environ.setdefault("LORIMER_HOME", str(WORK / "home"))
    counts = {"arc_challenge": args.choices, "arc_easy": args.choices, "boolq": args.choices, "gsm8k": args.answers}
    rows = {name: own[: counts[name]] for name, own in rows_of(DATA.parents[1]).items() if counts[name]}
    folder = gemma()
    if args.theirs:
        tasks = read_lm_eval(args.theirs)
    else:
        work = WORK / "lm_eval" / f"{args.dtype}-{args.choices}-{args.answers}-{args.tokens}-{os.getpid()}"
        write_tasks(work / "tasks", rows, args.tokens)
        model = LmEvalModel(kind="hf", arguments={"pretrained": str(folder), "dtype": args.dtype})
        names = [f"own_{name}" for name in rows]
        tasks = run_lm_eval(model, names, work / "out", definitions=work / "tasks", options=["--device", "cpu", "--batch_size", "4"])
    engine = Engine(load_base(str(folder), dtype=getattr(torch, args.dtype)))
    found, ratios = list[Row](), dict[str, float | str | None]()
    unexplained = 0
    for task in tasks:
        name = task.name.removeprefix("own_")
        samples = tuple(sample_of(name, number, row) for number, row in enumerate(rows[name]))
        for metric, compared in compare(engine, task, samples, args.tokens).items():
            found += rows_for(f"{name}, {len(samples)} rows", metric, compared)
            unexplained += sum(not one.is_same and not one.is_rounding for one in compared)
            for one in compared:
                if not one.is_same:
                    print(f"{name} {metric}: {one} {'by rounding' if one.is_rounding else 'UNEXPLAINED'}", file=sys.stderr)
    same = [row.value for row in found if row.metric.endswith("_same")]
    ratios |= {"same_min": min(same), "unexplained_items": float(unexplained)}
    for row in found:
        print(f"{row.system:8} {row.case:28} {row.metric:36} {row.value:.6f} {row.unit}")
    if not args.dry:
        write_results("lm-eval", found, ratios)
    sys.exit(1 if unexplained else 0)


def compare(engine: Engine, theirs: ImportedTask, samples: tuple[Sample, ...], num_tokens: int) -> dict[str, list[Compared]]:
    """Every item of a task by each metric; lm-eval keeps the order of the rows."""
    items = theirs.items
    if len(items) != len(samples):
        raise SystemExit(f"{theirs.name}: lm-eval has {len(items)} items, here are {len(samples)}: ask for the same rows")
    for item, sample in zip(items, samples, strict=True):
        if not sample.prompt[0].content.rstrip().endswith(item.prompt.rstrip()):
            raise SystemExit(f"{theirs.name}: row {sample.id} is another one there: {item.prompt[-200:]!r}")
    kind: Kind = "choice" if samples[0].choices else "answer"
    found = dict[str, list[Compared]]()
    values = dict[int, object]()
    for metric in theirs.metrics:
        task = Task(
            name=theirs.name, metric=METRICS[metric], samples=samples, dataset_digest="", kind=kind, template="none",
            max_tokens=num_tokens if kind == "answer" else None,
        )  # fmt: skip
        values = values or {answer.sample_index: answer.value for answer in ask(engine, task, (None,))}
        found[metric] = [
            compare_item(number, metric, task, sample, values.get(number), item)
            for number, (sample, item) in enumerate(zip(samples, items, strict=True))
        ]
    return found


def compare_item(number: int, metric: str, task: Task, sample: Sample, value: object, item: ImportedItem) -> Compared:
    """One item by one metric."""
    ours = score_answer(task, sample, value).value
    if task.kind == "answer":
        said, read = (text.partition(STOP)[0].strip() for text in (str(value), item.answer))
        apart = float(said != read)
        return Compared(number=number, metric=metric, ours=ours, theirs=item.scores[metric], apart=apart, gap=0.0 if apart else 1.0)
    here = list(value[0])  # type: ignore[index]
    there = list(map(float, json.loads(item.answer)))
    lengths = [len(text) for text in sample.choices] if metric == "acc_norm" else [1] * len(here)
    apart = max(abs(one - other) for one, other in zip(here, there, strict=True))
    gap = min(lead([value / length for value, length in zip(own, lengths, strict=True)]) for own in (here, there))
    return Compared(number=number, metric=metric, ours=ours, theirs=item.scores[metric], apart=apart, gap=gap)


def lead(values: Sequence[float]) -> float:
    """The best before the second."""
    first, second = sorted(values, reverse=True)[:2]
    return first - second


def rows_for(case: str, metric: str, compared: Sequence[Compared]) -> list[Row]:
    """The figures of one task and metric."""
    count, different = len(compared), [one for one in compared if not one.is_same]
    shares = {
        f"{metric}_same": (count - len(different)) / count,
        f"{metric}_by_rounding": sum(one.is_rounding for one in different) / count,
        f"{metric}_ours": sum(one.ours or 0.0 for one in compared) / count,
        f"{metric}_theirs": sum(one.theirs or 0.0 for one in compared) / count,
    }
    found = [Row(system="lorimer", case=case, metric=name, value=value, unit="share") for name, value in shares.items()]
    is_choice = metric.startswith("acc")
    largest = max(one.apart for one in compared) if is_choice else sum(one.apart for one in compared) / count
    return [
        *found,
        Row(system="lorimer", case=case, metric=f"{metric}_apart", value=largest, unit="nats" if is_choice else "share of other texts"),
    ]


if __name__ == "__main__":
    main()
