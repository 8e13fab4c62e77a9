"""PEFT's own mixed batch, for `make bench-serve`: eight prompts, each through its adapter, greedy, so many new tokens; one JSON line."""

import argparse
import json
import resource
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Run it twice, the first time to warm up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    names = [f"a{i}" for i in range(len(args.adapters))]
    wrapped = PeftModel.from_pretrained(model, args.adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], args.adapters[1:], strict=True):
        wrapped.load_adapter(folder, adapter_name=name)
    wrapped = wrapped.to(torch.bfloat16).eval()
    prompts = [
        "Classify the customer's message into one banking intent and then explain at length why.\n"
        f"Message: How do I locate my card? (case {row})\nIntent:"
        for row in range(args.rows)
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    chosen = [names[row % len(names)] for row in range(args.rows)]
    options = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False}
    with torch.inference_mode():
        wrapped.generate(**batch, adapter_names=chosen, max_new_tokens=4, do_sample=False)
        start = time.perf_counter()
        wrapped.generate(**batch, adapter_names=chosen, **options)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"tokens_per_second": args.rows * args.tokens / seconds, "peak_rss_gb": peak}))


if __name__ == "__main__":
    main()
