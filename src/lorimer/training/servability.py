"""Which engines could serve the adapter of a plan, and with which flags: by their own sources, read in November 2026, not by trying.

How each reads an adapter in PEFT's format, where it matters:
- vLLM: `vllm/lora/peft_helper.py` refuses DoRA (issue 10849; pull request 47395 is open), ranks above `max_lora_rank`, and drops
  `rank_pattern` and `alpha_pattern` unread: all layers are scaled by alpha / r, or alpha / sqrt(r) if `use_rslora` is set.
  `MaxLoRARanks` in `vllm/config/lora.py` names the values of the flag; its table of supported models says which bases take adapters.
- SGLang: `lora_manager.py` refuses DoRA (pull request 22125); `lora.py` scales all layers by alpha / r and ignores `use_rslora`
  (issue 40835, open). Its documentation says that rank and targets are inferred from the adapters named at the start.
- llama.cpp: `convert_lora_to_gguf.py` stops at tensors other than lora_A and lora_B and keeps one alpha; `llama-adapter.h` scales each
  layer by alpha over its own rank. Its server takes a scale for each adapter with each request (`tools/server/README.md`).

Our adapters scale all layers alike, whatever their ranks, and are written without `use_rslora`: right on the first two.
"""

from dataclasses import dataclass
from typing import Literal

from lorimer.model.lora import LoRAConfig

Engine = Literal["lorimer", "vllm", "sglang", "llama.cpp"]
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_TAKES_ADAPTERS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "granite"})
VLLM_TAKES_NONE = frozenset({"falcon", "gpt2", "gptj", "gpt_neox", "mpt", "stablelm", "gemma3n_text"})
SGLANG_SHOWN = frozenset({"llama", "qwen3"})  # in its documentation and its developers' own runs
SGLANG_TARGETS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
LLAMA_CPP_CONVERTS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3"})

SCALED_BY_RANK = (
    "ranks differ between layers, and it scales each by its own rank where the adapter scales all alike: answers would be wrong"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an engine could serve the adapter, answering as it was trained to."""

    engine: Engine
    ok: bool | None
    """None: not known."""
    reason: str
    flags: tuple[str, ...] = ()
    """What it has to be told."""


def servable(lora: LoRAConfig, model_type: str) -> tuple[Verdict, ...]:
    """One verdict for each engine; `model_type` is the one in the base's configuration (`llama`, `gemma3_text`)."""
    return _lorimer(lora), _vllm(lora, model_type), _sglang(lora, model_type), _llama_cpp(lora, model_type)


def servable_together(num_adapters: int) -> tuple[Verdict, ...]:
    """For several adapters that answer as one."""
    return (
        Verdict(engine="lorimer", ok=True, reason=f"{num_adapters} adapters composed, each with its scale"),
        Verdict(engine="vllm", ok=False, reason="it answers with one adapter at a time: merge them into one for it"),
        Verdict(engine="sglang", ok=False, reason="it answers with one adapter at a time: merge them into one for it"),
        Verdict(engine="llama.cpp", ok=None, reason="its server takes several adapters with a scale each; not tried here"),
    )


def _lorimer(lora: LoRAConfig) -> Verdict:
    if lora.kind == "dora":
        return Verdict(engine="lorimer", ok=False, reason="DoRA is trained for comparison and not served")
    return Verdict(engine="lorimer", ok=True, reason="any rank, each layer with its own rank and scale")


def _vllm(lora: LoRAConfig, model_type: str) -> Verdict:
    rank = _rank_on_disk(lora)
    allowed = next((value for value in VLLM_RANKS if value >= rank), None)
    if lora.kind == "dora":
        return Verdict(engine="vllm", ok=False, reason="it refuses DoRA")
    if model_type in VLLM_TAKES_NONE:
        return Verdict(engine="vllm", ok=False, reason=f"it takes no adapters on {model_type!r} bases")
    if allowed is None:
        return Verdict(engine="vllm", ok=False, reason=f"rank {rank} is above the highest it takes, {VLLM_RANKS[-1]}")
    flags = ("--enable-lora", f"--max-lora-rank {allowed}")
    if model_type not in VLLM_TAKES_ADAPTERS:
        return Verdict(engine="vllm", ok=None, reason=f"whether it takes adapters on {model_type!r} bases was not looked up", flags=flags)
    return Verdict(engine="vllm", ok=True, reason=f"with {' '.join(flags)}", flags=flags)


def _sglang(lora: LoRAConfig, model_type: str) -> Verdict:
    targets = sorted({name.rpartition(".")[2] for name in lora.target_modules})
    if lora.kind == "dora":
        return Verdict(engine="sglang", ok=False, reason="it refuses DoRA")
    flags = ("--enable-lora", f"--max-lora-rank {_rank_on_disk(lora)}", f"--lora-target-modules {' '.join(targets)}")
    if unnamed := [target for target in targets if target not in SGLANG_TARGETS]:
        return Verdict(engine="sglang", ok=None, reason=f"whether it adapts layers named {', '.join(unnamed)} is not known", flags=flags)
    if model_type not in SGLANG_SHOWN:
        return Verdict(engine="sglang", ok=None, reason=f"it does not say whether it takes adapters on {model_type!r} bases", flags=flags)
    return Verdict(engine="sglang", ok=True, reason=f"with {' '.join(flags)}", flags=flags)


def _llama_cpp(lora: LoRAConfig, model_type: str) -> Verdict:
    if lora.kind == "dora":
        return Verdict(engine="llama.cpp", ok=False, reason="its converter stops at DoRA's magnitudes")
    if not _has_one_rank(lora):
        return Verdict(engine="llama.cpp", ok=False, reason=SCALED_BY_RANK)
    flags = ("--lora FILE.gguf",)
    if model_type not in LLAMA_CPP_CONVERTS:
        return Verdict(engine="llama.cpp", ok=None, reason=f"whether it converts {model_type!r} bases was not looked up", flags=flags)
    reason = "converted by its convert_lora_to_gguf.py; any rank, each layer with its own, and a scale with each request"
    return Verdict(engine="llama.cpp", ok=True, reason=reason, flags=flags)


def _rank_on_disk(lora: LoRAConfig) -> int:
    """The highest in the adapter's files; PiSSA is kept as plain LoRA of twice the rank."""
    rank = max((lora.rank_of(name) for name in lora.target_modules), default=lora.rank)
    return 2 * rank if lora.kind == "pissa" else rank


def _has_one_rank(lora: LoRAConfig) -> bool:
    return len({lora.rank_of(name) for name in lora.target_modules}) <= 1
