"""One adapter and eight of them, evaluated on the same 1,000 items beside their base: what the others cost.

    make bench-evaluate
    python bench/evaluate.py --items 200         quicker

Items are the quick start's tickets (answers) and questions about their wording (choices), asked as `lorimer evaluate --suite` asks them:
every model in one pass over one base, nothing kept from before. Adapters are random ones of rank 16 on all linear layers.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from report import Row, draw_bars, write_results
from train import WORK, gemma

from lorimer.data.example import Message
from lorimer.evaluation.evaluate import ask
from lorimer.evaluation.task import Kind, Sample, Task
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.judging import EVALUATION_SEQUENCES
from lorimer.model.base import Base, load_base
from lorimer.model.lora import LoRA, LoRAConfig, initialise
from lorimer.model.machine import prepare_for_many_shapes
from lorimer.storage import read_jsonl

TICKETS = Path(__file__).parents[1] / "src" / "lorimer" / "data" / "helpdesk" / "tickets.jsonl"
NUM_ADAPTERS, RANK = 8, 16
MAX_TOKENS = 12


def tasks(num_items: int) -> list[Task]:
    """Short answers to tickets, and which of four words a ticket goes on with."""
    texts = [row["prompt"][:240] for row in read_jsonl(TICKETS)]
    texts = [texts[n % len(texts)] + f" ({n})" for n in range(num_items)]
    prompts = [(Message(role="user", content=text),) for text in texts]
    answers = tuple(Sample(id=str(n), prompt=prompt, target="ok") for n, prompt in enumerate(prompts))
    choices = (" billing", " delivery", " account", " product")
    chosen = tuple(Sample(id=str(n), prompt=prompt, target=choices[n % 4], choices=choices) for n, prompt in enumerate(prompts))
    kinds: list[tuple[Kind, str, tuple[Sample, ...]]] = [("answer", "contains", answers), ("choice", "choice", chosen)]
    return [
        Task(name=kind, metric=metric, samples=samples, dataset_digest="bench", kind=kind, max_tokens=MAX_TOKENS)
        for kind, metric, samples in kinds
    ]


def seconds_of(base: Base, loras: dict[str, LoRA], task: Task, models: Sequence[str | None]) -> float:
    """A whole task with an engine of its own: neither answers nor keys and values are kept from before."""
    engine = Engine(base, EngineConfig(max_sequences=EVALUATION_SEQUENCES))
    for name, lora in loras.items():
        engine.adapters.add(name, lora)
    shutil.rmtree(Path(os.environ["LORIMER_HOME"]) / "answers", ignore_errors=True)
    start = time.perf_counter()
    for _ in ask(engine, task, models):
        pass
    return time.perf_counter() - start


def random_lora(base: Base, seed: int) -> LoRA:
    """An adapter that changes answers."""
    lora = initialise(LoRAConfig(rank=RANK, alpha=2.0 * RANK, target_modules=tuple(base.layers)), base.layers, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in lora.weights.values():
            own.b.normal_(0, 0.01, generator=generator)
    return lora


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    folder = Path(gemma()).absolute()
    os.environ["LORIMER_HOME"] = str(WORK / "evaluate")
    prepare_for_many_shapes()
    base = load_base(str(folder))
    loras = {f"{number:02x}": random_lora(base, number) for number in range(NUM_ADAPTERS)}
    names = list(loras)
    rows, ratios = list[Row](), dict[str, float]()
    for task in tasks(args.items):
        cases = {"base": [None], "1 adapter": [None, names[0]], "8 adapters": [None, *names]}
        found: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(args.repeats):
            for case, models in cases.items():
                found[case].append(seconds_of(base, loras, task, models))
                print(f"{task.kind:8} {case:12} {found[case][-1]:8.1f} s", flush=True)
        rows += [
            Row(system="lorimer", case=f"{task.kind}, {case}", metric="seconds", value=statistics.median(own), unit="s")
            for case, own in found.items()
        ]
        pairs = zip(found["8 adapters"], found["1 adapter"], strict=True)
        ratios[f"{task.kind}_8_over_1"] = statistics.median(eight / one for eight, one in pairs)
    write_results("evaluate", rows, ratios)
    title = f"Evaluating on {args.items} items beside the base"
    draw_bars("evaluate", title, "seconds", {f"lorimer, {row.case}": row.value for row in rows})


if __name__ == "__main__":
    main()
