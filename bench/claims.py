"""What is said about LoRA beside what is measured here: banking77, the same rows, seed and steps for an adapter and for full fine-tuning.

    make bench-claims

Accuracy is the share of test rows that greedy decoding answers exactly. The difference is paired by row, with Tango's interval.
"""

import argparse
import csv
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import Row, draw_bars, run_json, value_of, write_results
from train import DATA, OFFLINE, ROOT, gemma

from lorimer.data.example import Message
from lorimer.evaluation.statistics.proportions import mcnemar_p, tango_interval
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA, LoRAConfig, initialise
from lorimer.training.batching import batches, make_batch
from lorimer.training.full import train_full
from lorimer.training.loop import Learner, StepMetrics, hidden_states, train
from lorimer.training.optim import OptimizerConfig, make_optimizer
from lorimer.training.scoring import score_rows

RATES = {"lora": 1e-3, "full": 1e-4}
BUDGET = 2048


def rows_of(base: Base, path: Path, num_rows: int) -> list[Rendered]:
    """Messages and intents as the product renders them."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    random.Random(0).shuffle(rows)
    chosen = [(row["text"].strip(), row["category"]) for row in rows[:num_rows]]
    return [base.renderer.render([Message(role="user", content=text), Message(role="assistant", content=label)]) for text, label in chosen]


def train_and_score(method: str, args: argparse.Namespace) -> dict[str, object]:
    """One method in this process: accuracy of each test row, seconds, peak memory, size of what is kept."""
    base = load_base(str(gemma()))
    rows, test = rows_of(base, DATA, args.rows), rows_of(base, DATA.with_name("test.csv"), args.test_rows)
    num_steps = round(args.epochs * len(rows) / args.batch)
    config = OptimizerConfig(learning_rate=RATES[method])
    options = {"batch_size": args.batch, "num_steps": num_steps, "tokens_per_micro_batch": BUDGET, "seed": 0}
    lora: LoRA | None = None
    start = time.perf_counter()
    if method == "lora":
        lora = initialise(LoRAConfig(rank=16, alpha=32.0, target_modules=tuple(base.layers)), base.layers, 0)
        steps = batches(rows, **options)
        learner = Learner(run_id="", lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=num_steps)
        events = train(base, [learner])
    else:
        events = train_full(base, rows, config, **options)
    for event in events:
        assert isinstance(event, StepMetrics), event
        if event.step % 25 == 0:
            print(f"{method}: step {event.step} of {num_steps}, loss {event.loss:.3f}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    scores = score_rows(base, lora, test, BUDGET)
    num_trained = lora.num_parameters if lora else base.num_parameters
    return {
        "is_exact": list(scores.is_exact),
        "seconds": seconds,
        "peak_rss_gb": peak,
        "num_trained": num_trained,
        "num_parameters": base.num_parameters,
        "saved_mb": _saved_bytes(base, lora) / 1e6 if lora else 2 * base.num_parameters / 1e6,
        **(_merged_cost(base, lora, test) if lora else {}),
    }


def _saved_bytes(base: Base, lora: LoRA) -> int:
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(lora, Path(folder) / "adapter", base, lock)
        return sum(path.stat().st_size for path in (Path(folder) / "adapter").iterdir())


@torch.no_grad()
def _merged_cost(base: Base, lora: LoRA, test: list[Rendered]) -> dict[str, float]:
    """Forward passes of the base alone, through the adapter, and merged, in turns; medians of nine."""
    micro = make_batch(test[:48], range(48), BUDGET).micro_batches[0]
    ready = lora.to(dtype=base.dtype, device=base.device)
    merged = {name: base.layers[name].weight + (w.scale * (w.b.float() @ w.a.float())).to(base.dtype) for name, w in ready.weights.items()}
    own = {name: base.layers[name].weight.data for name in merged}
    seconds: dict[str, list[float]] = {"base": [], "adapter": [], "merged": []}
    for _ in range(9):
        for kind, found in seconds.items():
            for name, layer in base.layers.items():
                layer.weight.data = merged[name] if kind == "merged" else own[name]
            start = time.perf_counter()
            with base.routed([AdapterRows(start=0, stop=len(micro.ids), adapter=ready if kind == "adapter" else None)]):
                hidden_states(base, micro)
            found.append(time.perf_counter() - start)
    for name, layer in base.layers.items():
        layer.weight.data = own[name]
    middle = {kind: sorted(found)[len(found) // 2] for kind, found in seconds.items()}
    return {"merged_vs_base_time": middle["merged"] / middle["base"], "adapter_vs_base_time": middle["adapter"] / middle["base"]}


def main() -> None:
    """Both methods, each in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=tuple(RATES))
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test-rows", type=int, default=1540)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(train_and_score(args.method, args)))
        return
    options = ["--rows", str(args.rows), "--test-rows", str(args.test_rows), "--epochs", str(args.epochs), "--batch", str(args.batch)]
    command = [sys.executable, str(ROOT / "bench" / "claims.py"), *options]
    lora, full = (run_json([*command, "--method", method], OFFLINE) for method in ("lora", "full"))
    write_claims(lora, full, f"banking77, {args.rows} rows, {args.epochs:g} epochs")


def points(share: float) -> str:
    """Of a hundred."""
    return f"{100 * share:+.1f}"


def write_claims(lora: dict[str, float], full: dict[str, float], case: str) -> None:
    """The figures, and a table that a reader can check them against."""
    right, wanted = list(lora.pop("is_exact")), list(full.pop("is_exact"))  # type: ignore[call-overload]
    rows = [
        Row(system=s, case=case, metric="accuracy", value=sum(x) / len(x), unit="share")
        for s, x in (("lorimer, LoRA", right), ("full", wanted))
    ]
    for system, values in (("lorimer, LoRA", lora), ("full", full)):
        for metric, unit in (("seconds", "s"), ("peak_rss_gb", "GB"), ("num_trained", ""), ("saved_mb", "MB")):
            rows.append(Row(system=system, case=case, metric=metric, value=values[metric], unit=unit))
    only_lora = sum(a and not b for a, b in zip(right, wanted, strict=True))
    only_full = sum(b and not a for a, b in zip(right, wanted, strict=True))
    interval = tango_interval(only_lora, only_full, len(right))
    difference = value_of(rows, "lorimer, LoRA", case, "accuracy") - value_of(rows, "full", case, "accuracy")
    ratios = {
        "parameters_full_vs_lora": full["num_trained"] / lora["num_trained"],
        "adapter_mb": lora["saved_mb"],
        "memory_full_vs_lora": full["peak_rss_gb"] / lora["peak_rss_gb"],
        "time_full_vs_lora": full["seconds"] / lora["seconds"],
        "accuracy_difference": difference,
        "accuracy_difference_low": interval.low,
        "accuracy_difference_high": interval.high,
        "mcnemar_p": mcnemar_p(only_lora, only_full),
        "merged_vs_base_time": lora["merged_vs_base_time"],
        "adapter_vs_base_time": lora["adapter_vs_base_time"],
    }
    write_results("claims", rows, ratios)
    accuracies = {row.system: row.value for row in rows if row.metric == "accuracy"}
    draw_bars("claims", f"Adapter and full fine-tuning: {case}", f"share of {len(right)} test rows answered exactly", accuracies)
    said = {
        "10x to 10,000x fewer trained parameters": f"{ratios['parameters_full_vs_lora']:.0f}x fewer",
        "adapter of about 30 MB or less": f"{ratios['adapter_mb']:.1f} MB",
        "memory 3x less than full fine-tuning": f"{ratios['memory_full_vs_lora']:.1f}x less, the whole process counted",
        "accuracy within 2 points of full fine-tuning": f"{points(difference)} points ({points(interval.low)} to {points(interval.high)})",
        "merged inference costs nothing": f"{ratios['merged_vs_base_time']:.2f} of the base's time",
    }
    for claim, measured in said.items():
        print(f"{claim:46} {measured}")


if __name__ == "__main__":
    main()
