"""What can be said to a base: its renderer, and how many tokens it knows and takes. All that a gateway needs of it, and no weights."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from lorimer.model.base import Base, end_ids_in
from lorimer.model.chat import Renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseText:
    """A base as those who talk to it know it."""

    name: str
    digest: str
    renderer: Renderer
    max_len: int
    """Longest sequence its positions allow."""
    vocabulary_len: int
    """Logits it gives for each place."""
    num_ids: int
    """Token ids it can be asked with; some bases have more logits than that, or fewer."""


def text_of(base: Base) -> BaseText:
    """That of a loaded base."""
    vocabulary_len = int(base.head.weight.shape[0])
    num_ids = min(vocabulary_len, int(base.model.get_input_embeddings().weight.shape[0]))
    return BaseText(
        name=base.name,
        digest=base.digest,
        renderer=base.renderer,
        max_len=base.max_len,
        vocabulary_len=vocabulary_len,
        num_ids=num_ids,
    )


def read_base_text(name: str, folder: Path, digest: str) -> BaseText:
    """That of a base whose weights somebody else holds."""
    logging.set_verbosity_error()
    config, generation = AutoConfig.from_pretrained(folder), None
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    text = config.get_text_config()
    return BaseText(
        name=name,
        digest=digest,
        renderer=Renderer(AutoTokenizer.from_pretrained(folder), end_ids=end_ids_in(generation, config)),
        max_len=int(text.max_position_embeddings),
        vocabulary_len=int(text.vocab_size),
        num_ids=int(text.vocab_size),
    )
