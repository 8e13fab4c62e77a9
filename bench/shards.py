"""What sharding costs and saves: the quick start's tickets trained whole and in 2, 4 and 8 shards, and one person taken out of each.

    make bench-shards
    python bench/shards.py --shards 4 8          only these; what this commit measured before is kept beside them

All are judged as they would be served, on the same test rows, through the engine. The scale of the shards' sum is tried on the
validation split, by teacher forcing; the product always takes the mean.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from report import Row, draw_bars, keep_rows, kept_rows, value_of, write_results
from train import WORK, gemma

from lorimer.config import GateRecipe, PrivacyRecipe, Recipe
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example
from lorimer.data.shards import write_rows
from lorimer.data.split import Splits
from lorimer.database import open_database
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.report import EvalReport
from lorimer.evaluation.statistics.proportions import compare_pairs
from lorimer.judging import judge_version
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base, load_base
from lorimer.model.lora import LoRA, LoRAWeights
from lorimer.model.machine import prepare_for_many_shapes
from lorimer.pipeline import Made, train_recipes
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.sharding import retrain_shards, shards_of, stand_in
from lorimer.storage import digest_of
from lorimer.training.loop import StepMetrics
from lorimer.training.runs import Run
from lorimer.training.scoring import score_rows

TICKETS = Path(__file__).parents[1] / "src" / "lorimer" / "data" / "helpdesk" / "tickets.jsonl"
COUNTS = (1, 2, 4, 8)
ROWS_EACH = 4
"""Of one person: tickets have no names, so people are made up."""
STEPS_OF_SCALE = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Times the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One adapter or composition on the test rows."""

    report: EvalReport
    verdict: str

    @property
    def right(self) -> list[bool]:
        """By test row."""
        return [item.adapter_value == 1.0 for item in self.report.items]


def tickets(num_train: int, num_test: int) -> Dataset:
    """So many rows to learn from, each of a made-up person with four of them, and what is left to be judged by."""
    curated = curate([TICKETS], name="tickets")
    train = tuple(_of_person(row, number // ROWS_EACH) for number, row in enumerate(curated.train[:num_train]))
    test = (*curated.test, *curated.train[num_train:])[:num_test]
    return write_rows("tickets", Splits(train=train, validation=curated.validation, test=test), curated.card["curation"])


def _of_person(row: Example, number: int) -> Example:
    return replace(row, subject=digest_of(number)[:32])


def timed(made: Iterable[Made]) -> tuple[AdapterVersion, float]:
    """The last version a pipeline makes, and the seconds from the last run's opening to the last step of any."""
    start, seconds, version = time.perf_counter(), 0.0, None
    for thing in made:
        if isinstance(thing, Run):
            start = time.perf_counter()
        elif isinstance(thing, StepMetrics):
            seconds = time.perf_counter() - start
            if thing.step % 25 == 0:
                print(f"step {thing.step} of {thing.num_steps}, loss {thing.loss:.3f}", file=sys.stderr)
        elif isinstance(thing, AdapterVersion):
            version = thing
    assert version is not None
    return version, seconds


def judged(version: AdapterVersion, base: Base, dataset: Dataset) -> Judged:
    """A version on the test rows."""
    made = list(judge_version(version, base, dataset=dataset))
    report, gate = (next(thing for thing in made if isinstance(thing, kind)) for kind in (EvalReport, GateResult))
    assert isinstance(report, EvalReport)
    assert isinstance(gate, GateResult)
    return Judged(report=report, verdict=gate.verdict)


def summed(loras: Sequence[LoRA], scale: float) -> LoRA:
    """Adapters as one of their ranks together, each at a scale."""
    layers = {name: [lora.weights[name] for lora in loras] for name in loras[0].weights}
    weights = {
        name: LoRAWeights(a=torch.cat([own.a for own in each]), b=torch.cat([own.b * own.scale for own in each], 1), scale=scale)
        for name, each in layers.items()
    }
    return LoRA(config=loras[0].config, weights=weights)


def scale_rows(shards: Sequence[AdapterVersion], base: Base, dataset: Dataset, case: str) -> Iterator[Row]:
    """Loss and exact answers on the validation split by what the sum of the shards is multiplied by."""
    loras, rows = [load_adapter(shard.path, base) for shard in shards], [base.renderer.render_example(row) for row in dataset.validation]
    mean = 1 / len(shards)
    alone = [sum(score_rows(base, lora, rows, 2048).is_exact) / len(rows) for lora in loras]
    yield row_of(f"{case}, each alone", "validation_exact", sum(alone) / len(alone), "share")
    scales = {f"{factor:g}/S": factor * mean for factor in STEPS_OF_SCALE} | {"1/sqrt(S)": math.sqrt(mean), "1": 1.0}
    for name, scale in scales.items():
        with torch.inference_mode():
            scores = score_rows(base, summed(loras, scale), rows, 2048)
        yield row_of(f"{case}, scale {name}", "validation_loss", scores.loss, "nats")
        yield row_of(f"{case}, scale {name}", "validation_exact", sum(scores.is_exact) / len(rows), "share")


def row_of(case: str, metric: str, value: float, unit: str) -> Row:
    """One figure of ours, printed as it is found."""
    print(f"{case:28} {metric:24} {value:.4f} {unit}", flush=True)
    return Row(system="lorimer", case=case, metric=metric, value=value, unit=unit)


def accuracy_rows(case: str, own: Judged, whole: Judged) -> Iterator[Row]:
    """Accuracy with its interval, and the difference to training whole, item by item."""
    score, paired = own.report.adapter_score, compare_pairs(zip(own.right, whole.right, strict=True))
    yield row_of(case, "accuracy", score.value or 0.0, "share")
    yield row_of(case, "accuracy_low", score.interval.low, "share")
    yield row_of(case, "accuracy_high", score.interval.high, "share")
    yield row_of(case, "difference", paired.difference, "share")
    yield row_of(case, "difference_low", paired.interval.low, "share")
    yield row_of(case, "difference_high", paired.interval.high, "share")
    yield row_of(case, "gate_passed", float(own.verdict == "PASS"), "")


def main() -> None:
    """Train whole and sharded, judge all, take one person out of each, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1100, help="to learn from")
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=1.3)
    parser.add_argument("--longer", action="store_true", help="each shard takes as many steps as the whole: S times the training")
    parser.add_argument("--base", default="", help="a base's folder; by default the quick start's")
    parser.add_argument("--shards", type=int, nargs="*", default=COUNTS, help="how many; 1 is the whole, which the others need")
    parser.add_argument("--dry", action="store_true", help="print, but write no results")
    args = parser.parse_args()
    prepare_for_many_shapes()
    folder = Path(args.base or gemma()).absolute()
    os.environ["LORIMER_HOME"] = str(WORK / f"shards-{args.rows}-{args.epochs:g}")
    dataset, base = tickets(args.rows, args.test), load_base(str(folder))
    recipe = Recipe(
        base=str(folder), dataset=dataset.digest, name="whole", preset="extraction", batch_size=8, epochs=args.epochs,
        gate=GateRecipe(at_least=0.8, min_items=100),
    )  # fmt: skip
    for count in args.shards:
        rows = list(whole_rows(recipe, dataset, base) if count == 1 else shard_rows(recipe, dataset, base, count, longer=args.longer))
        if not args.dry:
            keep_rows("shards", rows)
    if not args.dry:
        write(kept_rows("shards"), args.rows, args.test)


def whole_rows(recipe: Recipe, dataset: Dataset, base: Base) -> Iterator[Row]:
    """One adapter of all rows."""
    version, seconds = timed(train_recipes([recipe]))
    own = judged(version, base, dataset)
    yield row_of("whole", "training", seconds, "s")
    yield from accuracy_rows("whole", own, own)


def shard_rows(recipe: Recipe, dataset: Dataset, base: Base, count: int, *, longer: bool) -> Iterator[Row]:
    """So many adapters; one of them dropped; one of them trained again without a person's rows."""
    registry, subject = Registry(open_database()), dataset.train[0].subject
    case = f"{count} shards" + (", longer" if longer else "")
    changes = {"name": f"tickets{count}", "privacy": PrivacyRecipe(mode="sharded", shards=count)}
    changes |= {"epochs": (recipe.epochs or 1.0) * count, "name": f"longer{count}"} if longer else {}
    whole = judged(registry.resolve("whole"), base, dataset)
    version, seconds = timed(train_recipes([recipe.model_copy(update=changes)]))
    yield row_of(case, "training", seconds, "s")
    yield from accuracy_rows(case, judged(version, base, dataset), whole)
    yield from scale_rows(shards_of(registry, version), base, dataset, case)
    degraded = stand_in(registry, version, {subject})
    if degraded is not None:
        yield from accuracy_rows(f"{case}, one dropped", judged(degraded, base, dataset), whole)
    _, seconds = timed(retrain_shards(version.id, {subject}, base=base))
    yield row_of(case, "erasing_one_person", seconds, "s")


def write(rows: Sequence[Row], num_train: int, num_test: int) -> None:
    """The file and the picture."""
    whole = value_of(rows, "lorimer", "whole", "training")
    named = [(row.case.replace(",", "").replace(" ", "_"), row) for row in rows]
    ratios = {f"{case}_difference": row.value for case, row in named if row.metric == "difference" and case != "whole"}
    ratios |= {f"{case}_erasing_over_training_whole": row.value / whole for case, row in named if row.metric == "erasing_one_person"}
    write_results("shards", rows, ratios)
    title = f"Accuracy on {num_test} tickets after {num_train} to learn from, whole and in shards"
    shown = {f"lorimer, {row.case}": row.value for row in rows if row.metric == "accuracy"}
    draw_bars("shards", title, "share of test rows answered exactly", shown)


if __name__ == "__main__":
    main()
