"""How far do adapters move on text that is none of their business, and what have they lost? The evidence for two limits of `general`.

    make bench-drift
    python bench/drift.py --only desk-1e-4       train and ask one; those that are trained stay

Asked are the adapters of bench/harmed.py (trained there before) and others that were trained as one would for a job, from gently to
strongly: all items of `choice`, `reading` and `maths`, and the texts of `divergence` and `perplexity`. docs/gate-statistics.md says what
was found.
"""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from harmed import CHAMPION, SETTINGS, TRAINED, USUAL, rows_of, train_now
from report import Row, write_results
from train import DATA as BANKING
from train import WORK, gemma

from lorimer.config import Recipe
from lorimer.data.shards import write_rows
from lorimer.data.split import Splits
from lorimer.database import open_database
from lorimer.errors import NotFoundError
from lorimer.evaluation.evaluate import ask
from lorimer.evaluation.results import SuiteReport
from lorimer.evaluation.statistics.means import compare_means
from lorimer.evaluation.statistics.proportions import Interval
from lorimer.evaluation.suite import Suite, find_suite
from lorimer.inference.engine import Engine
from lorimer.judging import SuiteFinding, judge_suites, load_engine
from lorimer.model.base import load_base
from lorimer.model.machine import prepare_for_many_shapes
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry

Estimated = tuple[float, Interval]
"""A mean, and its one-sided 95% bounds."""
KNOWLEDGE = ("choice", "reading", "maths")
"""What shows that something is lost: items that have a right answer."""
TEXT = ("divergence", "perplexity")
SUPPORT = BANKING.parents[1] / "bitext_customer_support" / "bitext_customer_support.csv"
TICKETS = Path(__file__).parents[1] / "src" / "lorimer" / "data" / "helpdesk" / "tickets.jsonl"
DESK = {key: value for key, value in USUAL.items() if key != "learning_rate"}
"""The rows, steps and rank of the bench's champion, whose learning rate is 5e-4."""
JOBS: dict[str, dict[str, Any]] = {
    "desk-1e-4": {**DESK, "learning_rate": 1e-4},
    "desk-2e-4": {**DESK, "learning_rate": 2e-4},
    "desk-1e-3": {**DESK, "learning_rate": 1e-3},
    "banking": {
        "dataset": str(BANKING), "columns": {"prompt": "text", "completion": "category"}, "preset": "classification",
        "batch_size": 16, "steps": 60,
    },
    "support": {
        "dataset": str(SUPPORT), "columns": {"prompt": "instruction", "completion": "response"}, "learning_rate": 3e-4,
        "batch_size": 8, "steps": 40,
    },
    "helpdesk": {"dataset": str(TICKETS), "preset": "extraction", "batch_size": 8, "epochs": 1.3},
}  # fmt: skip
"""Jobs that adapters are trained for; `helpdesk` is the quick start's, at the product's own learning rate of 1e-3, as is `banking`."""


def trained(name: str, base_folder: Path) -> AdapterVersion:
    """The adapter of that name, trained now if it is not there."""
    registry = Registry(open_database())
    try:
        return registry.find(name)
    except NotFoundError:
        keys = {"dataset": desk_rows() if name.startswith("desk") else "", **JOBS[name]}
    return train_now(Recipe.model_validate({"base": str(base_folder), "name": name, **keys}))


def desk_rows() -> str:
    """The champion's rows as a dataset, by digest."""
    splits = Splits(train=rows_of(CHAMPION, held_out=False), validation=(), test=rows_of(CHAMPION, held_out=True))
    return write_rows("desk", splits, {}).digest


def knowledge_part() -> Suite:
    """The tasks of `general` whose items have a right answer and are scored without writing; none of their items sealed."""
    suite = find_suite("general")
    return replace(suite, name="general-knowledge", reserve=0.0, tasks=tuple(one for one in suite.tasks if one.task.name in KNOWLEDGE))


def movement(engine: Engine, version: AdapterVersion) -> dict[str, Estimated]:
    """How much worse the adapter foresees the neutral texts than its base does, and how far it is from it; nats a token."""
    (task,) = (one.task for one in find_suite("general").tasks if one.task.name == "divergence")
    values = [answer.value for answer in ask(engine, task, (version.digest,))]
    losses = compare_means([own - base for own, base, _ in values], limits=None)
    distances = compare_means([distance for _, _, distance in values], limits=None)
    return {"perplexity": (losses.difference, losses.bounds), "divergence": (distances.difference, distances.bounds)}


def losses_of(report: SuiteReport) -> dict[str, Estimated]:
    """Share of right answers lost or won, by task and all together."""
    items = {task.name: list(task.items) for task in report.tasks}
    items["knowledge"] = list(chain.from_iterable(items.values()))
    found = dict[str, Estimated]()
    for name, own in items.items():
        differences = [float(item.candidate.value or 0) - float(item.base.value or 0) for item in own]
        compared = compare_means(differences, [item.group for item in own], limits=(-1.0, 1.0))
        found[name] = (compared.difference, compared.bounds)
    return found


def main() -> None:
    """Train what is not there, ask all, write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*TRAINED, "identity", *JOBS], help="which adapters")
    parser.add_argument("--home", default=str(WORK / "harmed"), help="where they are kept: that of bench/harmed.py")
    parser.add_argument("--dry", action="store_true", help="print, but write no results")
    args = parser.parse_args()
    prepare_for_many_shapes()
    folder = gemma().absolute()
    os.environ["LORIMER_HOME"] = args.home
    registry = Registry(open_database())
    wanted = [name for name in args.only if name not in JOBS]
    versions = [*(registry.find(name) for name in wanted), *(trained(name, folder) for name in args.only if name in JOBS)]
    base = load_base(str(folder))
    engine = load_engine(base, registry, versions)
    rows = list[Row]()
    for version in versions:  # one by one, so that each is seen as soon as it is asked
        found = movement(engine, version)
        for made in judge_suites(engine, registry, [knowledge_part()], [version], incumbent=None, opens_reserve=False):
            if isinstance(made, SuiteFinding):
                found |= losses_of(made.report)
        shown = ", ".join(f"{name} {value:+.3f} ({bounds.low:+.3f} to {bounds.high:+.3f})" for name, (value, bounds) in found.items())
        print(f"{version.name:10} {shown}", flush=True)
        rows += rows_of_case(version.name, found)
    if not args.dry:
        write_results("drift", rows, ratios_of(rows))


def rows_of_case(name: str, found: Mapping[str, Estimated]) -> Iterator[Row]:
    """Each figure with the bounds that would decide."""
    for metric, (value, bounds) in found.items():
        for suffix, shown in (("", value), ("_low", bounds.low), ("_high", bounds.high)):
            if math.isfinite(shown):
                unit = "nats" if metric in TEXT else "share"
                yield Row(system="lorimer", case=name, metric=metric + suffix, value=shown, unit=unit)


def ratios_of(rows: Sequence[Row]) -> dict[str, float | str | None]:
    """Where the healthy end and where the one begins that was trained to forget."""
    value = {(row.case, row.metric): row.value for row in rows}
    healthy = sorted({row.case for row in rows} - set(SETTINGS) - {"identity"})
    ratios: dict[str, float | str | None] = {}
    for metric in TEXT:
        ratios[f"{metric}_healthy_max"] = max(value[name, metric] for name in healthy)
        ratios[f"{metric}_forget"] = value.get(("forget", metric))
    return ratios


if __name__ == "__main__":
    main()
