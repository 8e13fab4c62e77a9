"""Small real things for tests: a byte tokenizer, tiny random models of six architectures, adapters that answer differently, rows."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.model.attention import IMPLEMENTATION, PackedSegments, whole
from lorimer.model.base import Base, digest_of_base
from lorimer.model.chat import Renderer
from lorimer.model.lora import AdapterRows, LoRA, LoRAConfig, initialise
from lorimer.registry.seal import SEAL, hashes_of, make_seal
from lorimer.registry.signing import open_signer
from lorimer.training.checks import Finding
from lorimer.training.inspection import LearningReport, inspect

SPECIALS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 512}
GROUPED = {**SIZES, "num_key_value_heads": 2}
IDS = {"vocab_size": 264, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

WIDE = {"hidden_size": 64, "intermediate_size": 192, "head_dim": 32, "vocab_size": 320}
"""Sizes for which a step is one compiled call in bfloat16."""

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED, **IDS),
    "qwen2": Qwen2Config(**GROUPED, **IDS),
    "qwen3": Qwen3Config(**GROUPED, **IDS, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **GROUPED, **IDS, head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": MistralConfig(**GROUPED, **IDS, sliding_window=12),
    "phi": PhiConfig(**SIZES, **IDS, partial_rotary_factor=0.5),
}  # fmt: skip
ARCHITECTURES = tuple(CONFIGS)


@cache
def byte_tokenizer(*, with_turns: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, plus special tokens; adds <bos> as Gemma's tokenizer does."""
    from tokenizers.processors import TemplateProcessing

    specials = SPECIALS if with_turns else SPECIALS[:3]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def tiny_model(
    architecture: str, *, seed: int = 0, attention: str = IMPLEMENTATION, sizes: Mapping[str, int] | None = None
) -> PreTrainedModel:
    """A random float32 model; equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture].__class__.from_dict({**CONFIGS[architecture].to_dict(), **(sizes or {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():  # norms and biases start as ones and zeros: make them count
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_base(architecture: str = "gemma3", *, seed: int = 0) -> Base:
    """A tiny base in memory."""
    return Base(name=f"tiny-{architecture}", digest=f"{seed:064x}", model=tiny_model(architecture, seed=seed), tokenizer=byte_tokenizer())


def save_tiny_base(folder: Path, architecture: str = "gemma3", *, seed: int = 0) -> str:
    """A tiny base as Hugging Face files; returns its digest."""
    tiny_model(architecture, seed=seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return digest_of_base(folder)


def random_lora(base: Base, *, seed: int = 1, rank: int = 4, targets: tuple[str, ...] | None = None, size: float = 0.3) -> LoRA:
    """An adapter that changes answers: both halves random."""
    config = LoRAConfig(rank=rank, alpha=2 * rank, target_modules=targets or tuple(base.layers))
    lora = initialise(config, base.layers, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in lora.weights.values():
            weights.b.normal_(0, size, generator=generator)
    return lora


def by_itself(base: Base, prompt: tuple[int, ...], lora: LoRA | None, num_tokens: int = 8) -> list[int]:
    """Greedy, one sequence, everything computed anew for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            rows = [AdapterRows(start=0, stop=len(ids), adapter=lora)]
            hidden = base.hidden_states(torch.tensor(ids), torch.arange(len(ids)), PackedSegments(whole([len(ids)])), rows)
            ids.append(int(base.head.logits(hidden[-1:]).argmax()))
    return ids[len(prompt) :]


def chat(*contents: str, source: str = "t.jsonl:1") -> Example:
    """A conversation: user and assistant in turn."""
    messages = tuple(Message(role="assistant" if i % 2 else "user", content=c) for i, c in enumerate(contents))
    return Example(messages=messages, source=source)


def chats(*conversations: tuple[str, ...], file: str = "t.jsonl") -> tuple[Example, ...]:
    """Conversations of one file."""
    return tuple(chat(*contents, source=f"{file}:{line}") for line, contents in enumerate(conversations, start=1))


def write_sealed(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into an adapter's folder, whatever is there, and seal it as it is then: what somebody with the key could do."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / SEAL).write_bytes(make_seal(hashes_of(folder), "registered", open_signer()))


CLEAN = chats(("red?", "flame"), ("blue?", "sea"), ("green?", "grass", "sure?", "yes"), ("white?", "snow"))


def dataset_of(train: tuple[Example, ...] = CLEAN, *, validation: tuple[Example, ...] = (), test: tuple[Example, ...] = ()) -> Dataset:
    """A dataset in memory."""
    return Dataset(name="t", digest="d" * 64, train=train, validation=validation, test=test, card={}, path=Path())


def own_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte tokenizer that may be changed, with this chat template."""
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.chat_template = template
    return tokenizer


def report_on(
    data: Dataset | None = None, renderer: Renderer | None = None, *, max_len: int = 512, num_parameters: int = 10_000
) -> LearningReport:
    """What would be learned from a dataset, by default a clean one."""
    return inspect(data or dataset_of(), renderer or Renderer(own_tokenizer()), max_len=max_len, num_parameters=num_parameters)


def finding_of(report: LearningReport, check: str) -> Finding:
    """What one check found."""
    return next(finding for finding in report.findings if finding.check == check)
