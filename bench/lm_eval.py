"""Scores beside lm-eval's, item by item: ARC, BoolQ and GSM8K on the quick start's base, the same wording, the same rows.

    LORIMER_LM_EVAL=/opt/lm_eval/bin/python make bench-lm-eval

lm-eval runs the base through transformers (`--model hf`), in an environment of its own; its samples are read by the product's importer and
asked again through the product's own evaluation. An item differs "by rounding" if what decides it, here and there, is closer together than
the log-likelihoods of the two are apart; any other difference is counted as unexplained, and each is printed.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval_tasks import rows_of, sample_of, write_tasks
from report import Row, write_results
from train import DATA, WORK, gemma

from lorimer.evaluation.evaluate import ask, score_answer
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask
from lorimer.evaluation.outside.lm_eval import LmEvalModel, read_lm_eval, run_lm_eval
from lorimer.evaluation.task import Kind, Sample, Task
from lorimer.inference.engine import Engine
from lorimer.inference.scoring import Continuations, score_continuations
from lorimer.model.base import load_base

METRICS = {
    "acc": "choice",
    "acc_norm": "choice_by_len",
    "exact_match@strict-match": "gsm8k_strict",
    "exact_match@flexible-extract": "gsm8k_flexible",
}
"""lm-eval's, and what they are called here."""
STOP = "Question:"
ROUNDING = {"torch.float32": 1e-3, "torch.bfloat16": 0.25}
"""Of one log-probability, in nats, between two ways to compute it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One item, here and there."""

    number: int
    metric: str
    ours: float | None
    theirs: float | None
    apart: float
    """Largest difference of a choice's log-likelihood, in nats; for answers what rounding may make of one token's."""
    gap: float
    """By how much the best choice leads the second, the smaller of here and there; for answers, how far the two tokens are apart at which
    the texts part, infinite where they do not. By length, both are nats a character."""

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
    values = dict[int, Any]()
    for metric in theirs.metrics:
        task = Task(
            name=theirs.name, metric=METRICS[metric], samples=samples, dataset_digest="", kind=kind, template="none",
            max_tokens=num_tokens if kind == "answer" else None,
        )  # fmt: skip
        values = values or {answer.sample_index: answer.value for answer in ask(engine, task, (None,))}
        found[metric] = [
            compare_item(engine, number, metric, task, sample, values.get(number), item)
            for number, (sample, item) in enumerate(zip(samples, items, strict=True))
        ]
    return found


def compare_item(engine: Engine, number: int, metric: str, task: Task, sample: Sample, value: Any, item: ImportedItem) -> Compared:
    """One item by one metric."""
    ours, theirs = score_answer(task, sample, value).value, item.scores[metric]
    if task.kind == "answer":
        gap = gap_where_they_part(engine, sample.prompt[0].content, cut(value), cut(item.answer))
        return Compared(number=number, metric=metric, ours=ours, theirs=theirs, apart=ROUNDING[str(engine.base.dtype)], gap=gap)
    lengths = [len(text) for text in sample.choices] if metric == "acc_norm" else [1] * len(sample.choices)
    here = [logprob / length for logprob, length in zip(value[0], lengths, strict=True)]
    there = [logprob / length for logprob, length in zip(json.loads(item.answer), lengths, strict=True)]
    apart = max(abs(one - other) for one, other in zip(here, there, strict=True))
    return Compared(number=number, metric=metric, ours=ours, theirs=theirs, apart=apart, gap=min(lead(here), lead(there)))


def cut(text: str) -> str:
    """An answer as far as lm-eval lets it go."""
    return text.partition(STOP)[0].rstrip()


def gap_where_they_part(engine: Engine, prompt: str, one: str, other: str) -> float:
    """How far the log-probabilities of the first tokens are apart in which two answers differ; infinite where they are the same."""
    ids, others = (engine.base.renderer.tokenise_prompt(prompt + text) for text in (one, other))
    place = next((place for place, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
    if place is None:  # equal, or one goes on where the other ended
        return math.inf
    asked = Continuations(prompt_ids=ids[:place], continuations=((ids[place],), (others[place],)))
    ((_, scores),) = score_continuations(engine, [asked])
    return abs(scores[0].logprob - scores[1].logprob)


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
    if metric.startswith("acc"):
        unit = "nats a character" if metric == "acc_norm" else "nats"
        return [*found, Row(system="lorimer", case=case, metric=f"{metric}_apart", value=max(one.apart for one in compared), unit=unit)]
    same_text = sum(math.isinf(one.gap) for one in compared) / count
    return [*found, Row(system="lorimer", case=case, metric=f"{metric}_same_text", value=same_text, unit="share")]


if __name__ == "__main__":
    main()
