"""Training speed and memory: TRL as it comes, a tuned plain loop over PEFT, and Lorimer, on the same rows, in turns.

    make bench-train                     all cases, three repeats
    python bench/train.py --repeats 1 --cases gemma3-270m

The peers run in an environment of their own (`make .venv-peers`), by the scripts in the folder that LORIMER_PEERS names.
"""

import argparse
import os
import sys
from pathlib import Path

from report import Row, draw_bars, keep_rows, kept_rows, median_rows, run_json, value_of, write_results

ROOT = Path(__file__).parents[1]
PEERS = Path(os.environ.get("LORIMER_PEERS", ROOT.parent / "shared" / "peers"))
DATA = Path(os.environ.get("LORIMER_SHARED_DATA", ROOT.parent / "shared" / "data")) / "banking77" / "train.csv"
PEERS_PYTHON = str(ROOT / ".venv-peers" / "bin" / "python")
WORK = ROOT / "bench" / ".work"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def gemma() -> Path:
    """The quick start's base, prepared on first use."""
    from lorimer.model.base import find_base

    return find_base("gemma3-270m")


def random_qwen2() -> Path:
    """Qwen2 in its 0.5B shape with random weights, and a tokenizer trained on the rows; made once."""
    folder = WORK / "qwen2-0.5b-random"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<eos>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(DATA.read_text(encoding="utf-8").splitlines(), trainer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return folder


def ours(model: Path, *options: str) -> dict[str, float]:
    """One case of Lorimer."""
    return run_json([sys.executable, str(ROOT / "bench" / "ours.py"), str(model), str(DATA), *options], OFFLINE)


def peer(script: str, model: Path, *options: str) -> dict[str, float]:
    """One case of a peer."""
    return run_json([PEERS_PYTHON, str(PEERS / script), str(model), str(DATA), *options], OFFLINE)


def measure_against_peers(case: str, model: Path) -> list[Row]:
    """All three systems once, one after the other."""
    found = {
        "trl": peer("trl_sft.py", model, "--steps", "6"),
        "peft loop": peer("peft_loop.py", model, "--steps", "8"),
        "lorimer": ours(model, "--steps", "15"),
    }
    rows = []
    for system, values in found.items():
        rows.append(Row(system=system, case=case, metric="tokens_per_second", value=values["tokens_per_second"], unit="tokens/s"))
        rows.append(Row(system=system, case=case, metric="peak_rss", value=values["peak_rss_gb"], unit="GB"))
    rows.append(Row(system="lorimer", case=case, metric="share_of_gemm_rate", value=found["lorimer"]["share_of_gemm_rate"], unit="share"))
    return rows


def measure_prefix(model: Path) -> list[Row]:
    """Rows after the same 500 tokens, shared and not."""
    rows = []
    for system, options in (("lorimer, unshared", ("--unshared",)), ("lorimer", ())):
        values = ours(model, "--prefix-tokens", "500", "--steps", "5", *options)
        for metric, unit in (("tokens_per_second", "tokens/s"), ("peak_rss_gb", "GB"), ("last_loss", "nats")):
            rows.append(Row(system=system, case="500-token instruction", metric=metric, value=values[metric], unit=unit))
    return rows


def measure_packed(model: Path, batch: int) -> list[Row]:
    """Eight adapters one after the other, and in one pass."""
    rows = []
    for system, options in (("lorimer, one after the other", ()), ("lorimer, packed", ("--packed",))):
        values = ours(model, "--adapters", "8", "--batch", str(batch), "--steps", "8", *options)
        for metric, unit in (("seconds", "s"), ("tokens_per_second", "tokens/s"), ("peak_rss_gb", "GB")):
            rows.append(Row(system=system, case=f"8 adapters, batch {batch}", metric=metric, value=values[metric], unit=unit))
    one = ours(model, "--batch", str(batch), "--steps", "8")
    rows.append(
        Row(system="lorimer, one adapter", case=f"8 adapters, batch {batch}", metric="peak_rss_gb", value=one["peak_rss_gb"], unit="GB")
    )
    return rows


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of every case; what earlier calls measured at this commit counts too")
    parser.add_argument("--cases", nargs="+", default=["gemma3-270m", "prefix", "packed", "qwen2-0.5b"])
    args = parser.parse_args()
    models = {"gemma3-270m": gemma, "qwen2-0.5b": random_qwen2}
    for repeat in range(args.repeats):
        for case in args.cases:
            if case in models:
                rows = measure_against_peers(case, models[case]())
            elif case == "prefix":
                rows = measure_prefix(gemma())
            else:
                rows = [row for batch in (1, 4, 16) for row in measure_packed(gemma(), batch)]
            keep_rows("train", rows)
            print(f"repeat {repeat + 1} of {args.repeats}: {case} measured", file=sys.stderr, flush=True)
    kept = kept_rows("train")
    medians = median_rows(kept)
    ratios = ratios_of(medians, cases_in(medians))
    write_results("train", medians, ratios)
    speeds = {f"{row.system}, {row.case}": row.value for row in medians if row.metric == "tokens_per_second" and row.case in models}
    draw_bars(
        "train", "Training: rank 16 on all linear layers, banking77, 16 rows a step", "tokens/s", speeds, note="median of repeats in turns"
    )
    for name, ratio in ratios.items():
        print(f"{name:40} {ratio:.3f}")


def cases_in(rows: list[Row]) -> list[str]:
    """Which cases have been measured."""
    there = {row.case for row in rows}
    names = {"gemma3-270m": "gemma3-270m", "qwen2-0.5b": "qwen2-0.5b", "500-token instruction": "prefix", "8 adapters, batch 4": "packed"}
    return [name for case, name in names.items() if case in there]


def ratios_of(rows: list[Row], cases: list[str]) -> dict[str, float]:
    """What the goals are stated in."""
    ratios = dict[str, float]()
    for case, suffix in (("gemma3-270m", ""), ("qwen2-0.5b", "_qwen2")):
        if case in cases:
            speed = value_of(rows, "lorimer", case, "tokens_per_second")
            ratios[f"tokens_per_second_vs_trl{suffix}"] = speed / value_of(rows, "trl", case, "tokens_per_second")
            ratios[f"tokens_per_second_vs_peft_loop{suffix}"] = speed / value_of(rows, "peft loop", case, "tokens_per_second")
            ratios[f"peak_rss_vs_trl{suffix}"] = value_of(rows, "lorimer", case, "peak_rss") / value_of(rows, "trl", case, "peak_rss")
            ratios[f"share_of_gemm_rate{suffix}"] = value_of(rows, "lorimer", case, "share_of_gemm_rate")
    if "prefix" in cases:
        case = "500-token instruction"
        shared, alone = (value_of(rows, system, case, "tokens_per_second") for system in ("lorimer", "lorimer, unshared"))
        ratios["shared_prefix_speedup"] = shared / alone
    if "packed" in cases:
        for batch, suffix in ((4, ""), (1, "_batch1"), (16, "_batch16")):
            case = f"8 adapters, batch {batch}"
            if not any(row.case == case for row in rows):
                continue
            packed, alone = (value_of(rows, system, case, "seconds") for system in ("lorimer, packed", "lorimer, one after the other"))
            ratios[f"packed8_time_vs_sequential{suffix}"] = packed / alone
            one = value_of(rows, "lorimer, one adapter", case, "peak_rss_gb")
            ratios[f"packed8_extra_gb{suffix}"] = value_of(rows, "lorimer, packed", case, "peak_rss_gb") - one
    return ratios


if __name__ == "__main__":
    main()
