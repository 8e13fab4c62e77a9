"""Intents in five languages from 300 rows each (xSID): accuracy on the test files, and how long training took.

    make bench-xsid

A row is right when greedy decoding gives exactly its intent. Training is the product's own loop with the plan's defaults but for what
the command line says.
"""

import argparse
import sys
import time
from pathlib import Path

from report import Row, draw_bars, write_results
from train import DATA, gemma

from lorimer.data.example import Message
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.training.batching import batches
from lorimer.training.loop import Learner, StepMetrics, train
from lorimer.training.optim import OptimizerConfig, make_optimizer
from lorimer.training.scoring import score_rows

LANGUAGES = ("en", "de", "it", "nl", "tr")


def read_conll(path: Path) -> list[tuple[str, str]]:
    """(text, intent) of every block."""
    found, text = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# text ="):
            text = line.partition("=")[2].strip()
        elif line.startswith("# intent ="):
            found.append((text, line.partition("=")[2].strip()))
    return found


def render(base: Base, pairs: list[tuple[str, str]], system: str) -> list[Rendered]:
    """Rows as the product renders them; all begin with the list of intents, which the engine computes once a micro-batch."""
    first = [Message(role="system", content=system)] if system else []
    return [base.renderer.render([*first, Message(role="user", content=t), Message(role="assistant", content=i)]) for t, i in pairs]


def main() -> None:
    """Train once, score each language, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--labels", action="store_true", help="begin every row with the list of intents")
    parser.add_argument("--dry", action="store_true", help="print, but write no results")
    args = parser.parse_args()
    base, folder = load_base(str(gemma())), DATA.parents[1] / "xsid"
    pairs = [pair for language in LANGUAGES for pair in read_conll(folder / f"{language}.valid.conll")]
    system = f"Say which intent the request has: {', '.join(sorted({intent for _, intent in pairs}))}." if args.labels else ""
    rows = render(base, pairs, system)
    num_steps = round(args.epochs * len(rows) / args.batch)
    lora = initialise(
        LoRAConfig(rank=args.rank, alpha=32.0, target_modules=tuple(base.layers), dropout=args.dropout), base.layers, args.seed
    )
    config = OptimizerConfig(learning_rate=args.rate)
    steps = batches(
        rows, batch_size=args.batch, num_steps=num_steps, tokens_per_micro_batch=2048, seed=args.seed, share_prefixes=not args.dropout
    )
    learner = Learner(run_id="xsid", lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=num_steps)
    start = time.perf_counter()
    for event in train(base, [learner]):
        assert isinstance(event, StepMetrics), event
        if event.step % 25 == 0:
            print(f"step {event.step} of {num_steps}, loss {event.loss:.3f}, {event.tokens_per_second:.0f} tokens/s", file=sys.stderr)
    seconds = time.perf_counter() - start
    found = [Row(system="lorimer", case="training, 1,500 rows", metric="seconds", value=seconds, unit="s")]
    for language in LANGUAGES:
        scores = score_rows(base, lora, render(base, read_conll(folder / f"{language}.test.conll"), system), 2048)
        found.append(Row(system="lorimer", case=f"{language}, 500 test rows", metric="intent_accuracy", value=scores.exact, unit="share"))
    for row in found:
        print(f"{row.case:24} {row.metric:16} {row.value:.4f} {row.unit}")
    if not args.dry:
        accuracies = {row.case: row.value for row in found[1:]}
        write_results("xsid", found, {"intent_accuracy_min": min(accuracies.values()), "training_minutes": seconds / 60})
        title = f"Intent accuracy, five languages, 1,500 rows, {seconds / 60:.1f} minutes of training"
        draw_bars("xsid", title, "share of test rows answered exactly", {f"lorimer, {case}": value for case, value in accuracies.items()})


if __name__ == "__main__":
    main()
