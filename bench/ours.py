"""Lorimer's own part of `make bench-train`: one case in a process of its own, one JSON line.

The prompts, their order, rank, alpha and batch are those of the peers' scripts. Rows are tokenised before the clock starts, as in the
plain loop beside it.
"""

import argparse
import csv
import json
import random
import resource
import statistics
import time

import torch

from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.model.machine import prepare_for_many_shapes
from lorimer.training.batching import batches
from lorimer.training.footprint import flops
from lorimer.training.loop import Learner, StepMetrics, train
from lorimer.training.optim import OptimizerConfig, make_optimizer

SKIP = 3  # steps before measuring, as the peers' scripts skip
INSTRUCTION = "Classify the customer's message into one banking intent.\n"
POLICY = (
    "You answer for a bank. Read the customer's message, find what it asks for, and name one intent from the list that follows. "
    "Prefer the narrower intent where two fit. A question about a fee is about the fee, not about the card it was charged to. "
)


def rows_of(base: Base, path: str, num_rows: int, prefix_tokens: int) -> list[Rendered]:
    """banking77 as the peers' scripts shape it; with `prefix_tokens`, after a policy of about so many tokens."""
    random.seed(0)
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.shuffle(rows)
    tokenizer = base.renderer.tokenizer
    labels = ", ".join(sorted({row["category"] for row in rows}))
    policy = tokenizer((POLICY + labels + ". ") * 8).input_ids[:prefix_tokens] if prefix_tokens else []
    found = []
    for row in rows[:num_rows]:
        prompt = tokenizer(f"{INSTRUCTION}Message: {row['text'].strip()}\nIntent:", add_special_tokens=not policy).input_ids
        answer = [*tokenizer(" " + row["category"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = (*policy, *prompt, *answer)
        found.append(Rendered(ids=ids, supervised=tuple(i >= len(ids) - len(answer) for i in range(len(ids)))))
    return found


def learner(base: Base, rows: list[Rendered], args: argparse.Namespace, seed: int) -> Learner:
    """One adapter in training."""
    lora = initialise(LoRAConfig(rank=16, alpha=32.0, target_modules=tuple(base.layers)), base.layers, seed)
    config = OptimizerConfig(learning_rate=5e-4)
    steps = batches(
        rows,
        batch_size=args.batch,
        num_steps=args.steps,
        tokens_per_micro_batch=args.micro_batch,
        seed=seed,
        share_prefixes=not args.unshared,
    )
    return Learner(
        run_id=str(seed), lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=args.steps, seed=seed
    )


def product_rate() -> float:
    """Operations a second of the machine's best bf16 product of the base's shape; the best of many, as others use the machine too."""
    x, w = torch.randn(1024, 640, dtype=torch.bfloat16), torch.randn(2048, 640, dtype=torch.bfloat16)
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        torch.mm(x, w.T)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024 * 640 * 2048 / min(seconds)


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("csv")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=2048)
    parser.add_argument("--prefix-tokens", type=int, default=0)
    parser.add_argument("--unshared", action="store_true")
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--packed", action="store_true")
    args = parser.parse_args()
    if args.packed:
        prepare_for_many_shapes()
    base, rate = load_base(args.model), product_rate()
    rows = rows_of(base, args.csv, args.steps * args.batch, args.prefix_tokens)
    learners = [learner(base, rows, args, seed) for seed in range(args.adapters)]
    packs = [learners] if args.packed else [[one] for one in learners]
    seconds = tokens = supervised = 0.0
    losses, rates = list[float](), list[float]()
    for pack in packs:
        clock = time.perf_counter()
        for event in train(base, list(pack), mode="fused" if args.packed else "strict", tokens_per_micro_batch=args.micro_batch):
            assert isinstance(event, StepMetrics), event
            losses.append(event.loss)
            if event.step == SKIP:
                clock = time.perf_counter()
            elif event.step > SKIP:
                tokens, supervised = tokens + event.num_tokens, supervised + event.num_supervised
                rates.append(event.tokens_per_second)
        seconds += time.perf_counter() - clock
    operations = flops(
        base.model.config.get_text_config(), learners[0].lora.config, row_len=round(tokens / (args.steps - SKIP) / args.batch)
    )
    rate = max(rate, product_rate())  # before and after: a slow spell in one of them does not make us look better
    again = batches(rows, batch_size=args.batch, num_steps=args.steps, tokens_per_micro_batch=args.micro_batch, seed=0,
                    share_prefixes=not args.unshared)  # fmt: skip
    computed = sum(len(micro.ids) for step in list(again)[SKIP:] for micro in step.micro_batches) * args.adapters
    achieved = operations.total(computed, supervised) / seconds  # places computed, not tokens: what is shared is not work
    print(
        json.dumps(
            {
                "system": "lorimer",
                "tokens_per_second": tokens / seconds,
                "median_step_tokens_per_second": statistics.median(rates),
                "seconds": seconds,
                "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "gemm_flops_per_second": rate,
                "share_of_gemm_rate": achieved / rate,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
