"""The real base in its own precision: a mixed batch's rows beside PEFT alone with each row's adapter, 200 prompts."""

import gc
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from fakes import random_lora
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import find_base, load_base

NUM_PROMPTS, NUM_ADAPTERS, NUM_TOKENS = 200, 8, 24
TIE = 4.0
"""A token that PEFT in bfloat16 does not choose is at a tie if, in float32, it is behind the best by at most so many times what rounding to
bfloat16 does to PEFT's own logits there (standard deviation): either way of rounding may choose it."""
SUBJECTS = ("a lost parcel", "the second invoice", "an exchange rate", "my broken kettle", "a refund in dollars", "the opening hours",
            "a password that expired", "the colour of a chair", "a train to Ghent", "two tickets for Sunday")  # fmt: skip
TASKS = ("Summarise in a sentence", "Answer politely", "Name the department", "Translate to French", "List the facts")


def prompts() -> list[str]:
    """200 that differ in task, subject and length."""
    found = []
    for number in range(NUM_PROMPTS):
        subject, task = SUBJECTS[number % 10], TASKS[number // 10 % 5]
        found.append(f"{task}. Customer {number} wrote about {subject}" + ", again and again" * (number // 50 * 3) + ".\nAnswer:")
    return found


@pytest.mark.real_base
def test_mixed_batch_says_what_peft_says_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = find_base("gemma3-270m")
    base = load_base(str(folder))
    loras = {f"a{n}": random_lora(base, seed=n, rank=(4, 8, 16)[n % 3], size=0.02) for n in range(NUM_ADAPTERS)}
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    for name, lora in loras.items():
        save_adapter(lora, tmp_path / name, base, lock)
    engine = Engine(base)
    for name in loras:
        engine.adapters.load(name, tmp_path / name)
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    asked = [
        Sequence(prompt_ids=tuple(base.renderer.tokenise_prompt(text)), params=params, composition=alone(f"a{number % NUM_ADAPTERS}"))
        for number, text in enumerate(prompts())
    ]
    list(generate(engine, asked))
    del engine, base
    gc.collect()
    rounded, exact = (peft_model(folder, tmp_path, list(loras), dtype) for dtype in (torch.bfloat16, torch.float32))
    num_same, num_off, num_off_in_peft, ties = 0, 0, 0, list[tuple[float, float]]()
    for number, sequence in enumerate(asked):
        name, said = f"a{number % NUM_ADAPTERS}", torch.tensor(sequence.output_ids)
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.output_ids]])
        by_rounded, by_exact = (next_logits(model, name, ids, len(said)) for model in (rounded, exact))  # (n, V)
        other = (by_rounded.argmax(1) != said).nonzero()[:, 0]
        num_same += len(other) == 0
        num_off += int((by_exact.argmax(1) != said).sum())
        num_off_in_peft += int((by_exact.argmax(1) != by_rounded.argmax(1)).sum())
        for place in other.tolist():
            gap = by_exact[place].max() - by_exact[place, said[place]]
            noise = (by_rounded[place] - by_exact[place]).std()  # what bfloat16 alone does to PEFT's own logits there
            ties.append((float(gap), float(noise)))
    with capsys.disabled():
        print(f"\n{num_same} of {NUM_PROMPTS} texts are PEFT's; {len(ties)} of {NUM_PROMPTS * NUM_TOKENS} tokens are not, all at ties")
        print("behind in float32, in standard deviations of rounding: " + ", ".join(f"{gap / noise:.2f}" for gap, noise in sorted(ties)))
        print(f"not what PEFT says in float32: {num_off} of our tokens, {num_off_in_peft} of PEFT's in bfloat16")
    assert max((gap / noise for gap, noise in ties), default=0) <= TIE
    assert num_off <= 1.25 * num_off_in_peft + 5
    assert num_same >= NUM_PROMPTS / 2


def peft_model(base: Path, adapters: Path, names: list[str], dtype: torch.dtype) -> PeftModel:
    """PEFT as it comes, with these adapters."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = PeftModel.from_pretrained(model, str(adapters / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(adapters / name), adapter_name=name)
    return model.to(dtype).eval()


@torch.inference_mode()
def next_logits(model: PeftModel, name: str, ids: Tensor, num_last: int) -> Tensor:
    """(n, V) of the tokens before each of the last n, float32."""
    model.set_adapter(name)
    return model(ids).logits[0, -num_last - 1 : -1].float()
