"""The methods adapters are compared with, at work: each on its own model, trained, saved, loaded again and judged through the same words.

It knows nothing of recipes and run folders. What runs through PEFT takes a stock model, as PEFT knows no other.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from lorimer.config import Method
from lorimer.errors import ConfigError, TrainingError
from lorimer.model.base import Base, end_ids_of, find_base, load_base
from lorimer.model.chat import Rendered, Renderer
from lorimer.model.machine import probe
from lorimer.training.footprint import footprint
from lorimer.training.full import save_full, train_full
from lorimer.training.loop import StepMetrics
from lorimer.training.needs import MAX_SHARE_OF_MEMORY, MICRO_BATCH_TOKENS
from lorimer.training.optim import OptimizerConfig
from lorimer.training.scoring import score_rows

if TYPE_CHECKING:
    from peft import PeftModel

SCORED_ROWS = 16  # of a padded batch when a stock model is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a method goes through its rows."""

    learning_rate: float
    batch_size: int
    num_steps: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a run does on rows it was not trained on."""

    exact: tuple[bool, ...]
    """One entry a row: whether greedy decoding would answer exactly."""
    loss: float
    """Mean negative log-likelihood per learned token, in nats."""


class Contender(Protocol):
    """A method and the model it changes."""

    renderer: Renderer
    max_len: int
    """Longest row its base reads."""
    num_parameters: int
    """Numbers that learn."""

    def train(self, rows: Sequence[Rendered], schedule: Schedule) -> Iterator[StepMetrics]:
        """Learn from the rows, step by step."""
        ...

    def save(self, folder: Path) -> None:
        """Keep what was learned; the folder appears whole or not at all."""
        ...

    def score(self, rows: Sequence[Rendered]) -> Scores:
        """Judge by teacher forcing."""
        ...


def build_contender(method: Method, base_name: str, *, seed: int) -> Contender:
    """A method on a fresh base, about to learn.

    Raises:
        NotFoundError: if there is no base of that name.
        ConfigError: if a package the method needs is missing.
    """
    if method == "full":
        return FullContender(load_base(base_name))
    _require_peft(method)
    from lorimer.training.peft_methods import build_peft

    stock = _load_stock(base_name)
    return PeftContender(stock, build_peft(stock.model, method, init_text_ids=None, seed=seed))


def load_contender(method: Method, base_name: str, folder: Path) -> Contender:
    """What `save` kept.

    Raises:
        NotFoundError: if the base is gone.
        ConfigError: if a package the method needs is missing.
    """
    if method == "full":
        return FullContender(load_base(str(folder)))
    _require_peft(method)
    from lorimer.training.peft_methods import load_peft

    stock = _load_stock(base_name)
    return PeftContender(stock, load_peft(stock.model, folder))


class FullContender:
    """Every weight of the base learns."""

    def __init__(self, base: Base) -> None:
        self.base, self.renderer, self.max_len, self.num_parameters = base, base.renderer, base.max_len, base.num_parameters

    def train(self, rows: Sequence[Rendered], schedule: Schedule) -> Iterator[StepMetrics]:
        """See `Contender.train`.

        Raises:
            TrainingError: if the machine's memory cannot hold it, or loss or gradients are not finite.
        """
        return train_full(
            self.base,
            rows,
            OptimizerConfig(learning_rate=schedule.learning_rate),
            batch_size=schedule.batch_size,
            num_steps=schedule.num_steps,
            tokens_per_micro_batch=self._fit_memory(rows),
            seed=schedule.seed,
        )

    def save(self, folder: Path) -> None:
        """See `Contender.save`."""
        save_full(self.base, folder)

    def score(self, rows: Sequence[Rendered]) -> Scores:
        """See `Contender.score`."""
        scores = score_rows(self.base, None, rows, max(MICRO_BATCH_TOKENS, _longest(rows)))
        return Scores(exact=scores.is_exact, loss=scores.loss)

    def _fit_memory(self, rows: Sequence[Rendered]) -> int:
        """Tokens of a micro-batch that memory holds."""
        base, longest = self.base, _longest(rows)
        row_len, memory_bytes = max(2, sum(len(row.ids) for row in rows) // len(rows)), probe().memory_bytes
        counted = footprint(base.model.config.get_text_config(), None, row_len=row_len, dtype=base.dtype)
        limit, budget = MAX_SHARE_OF_MEMORY * memory_bytes, max(MICRO_BATCH_TOKENS, longest)
        while (needed := counted.peak_bytes(budget, row_len)) > limit and budget > longest:
            budget = max(longest, budget // 2)
        if needed > limit:
            raise TrainingError(
                f"full fine-tuning of base {base.name!r} needs at least {needed / 1e9:.1f} GB, this machine has "
                f"{memory_bytes / 1e9:.1f} GB: train an adapter (`method: lora`), or take a smaller base"
            )
        return budget


@dataclass(frozen=True, slots=True, kw_only=True)
class StockModel:
    """A base as transformers alone loads it."""

    model: PreTrainedModel
    renderer: Renderer


class PeftContender:
    """A learned prompt, a learned prefix, or bottleneck adapters, on a stock model."""

    def __init__(self, stock: StockModel, model: "PeftModel") -> None:
        self.model, self.renderer = model, stock.renderer
        self.max_len = int(stock.model.config.get_text_config().max_position_embeddings)
        self.num_parameters = sum(int(parameter.numel()) for parameter in model.parameters() if parameter.requires_grad)
        self.pad_id = stock.renderer.tokenizer.pad_token_id or 0  # never seen and never learned: any token would do

    def train(self, rows: Sequence[Rendered], schedule: Schedule) -> Iterator[StepMetrics]:
        """See `Contender.train`.

        Raises:
            TrainingError: if loss or gradients are not finite.
        """
        from lorimer.training.peft_methods import train_peft

        return train_peft(
            self.model,
            rows,
            pad_id=self.pad_id,
            batch_size=schedule.batch_size,
            num_steps=schedule.num_steps,
            learning_rate=schedule.learning_rate,
            seed=schedule.seed,
        )

    def save(self, folder: Path) -> None:
        """See `Contender.save`."""
        from lorimer.training.peft_methods import save_peft

        save_peft(self.model, folder)

    def score(self, rows: Sequence[Rendered]) -> Scores:
        """See `Contender.score`."""
        from lorimer.training.peft_methods import exact_answers, mean_loss

        return Scores(
            exact=tuple(exact_answers(self.model, rows, pad_id=self.pad_id, batch_size=SCORED_ROWS)),
            loss=mean_loss(self.model, rows, pad_id=self.pad_id, batch_size=SCORED_ROWS),
        )


def _load_stock(name: str) -> StockModel:
    folder, machine = find_base(name), probe()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=machine.dtype, use_safetensors=True).to(machine.device)
    return StockModel(model=model.eval(), renderer=Renderer(tokenizer, end_ids=end_ids_of(model)))


def _require_peft(method: Method) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"method {method!r} runs through PEFT, which is not installed: pip install 'lorimer[methods]'")


def _longest(rows: Sequence[Rendered]) -> int:
    return max(len(row.ids) for row in rows)
