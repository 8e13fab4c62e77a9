"""The methods LoRA is compared with, run through PEFT: a learned prompt, a learned prefix, bottleneck adapters.

Right and plain rather than fast: a stock transformers model, padded batches, PEFT's own layers and files. What is trained here is
compared, never registered or served. It knows nothing of recipes, run folders or our own base.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lorimer.config import Method
from lorimer.errors import TrainingError, UsageError
from lorimer.model.chat import Rendered
from lorimer.storage import new_folder
from lorimer.training.batching import row_order
from lorimer.training.bottleneck import bottleneck_config
from lorimer.training.loop import StepMetrics
from lorimer.training.optim import learning_rate_at

LEARNING_RATES: dict[Method, float] = {  # tried on Gemma 3 270M and banking77: 40 steps of 8 rows, prefixes and bottlenecks also 100
    "prompt_tuning": 0.1,  # virtual tokens have far to go: 0.01 stays behind, 0.3 (Lester et al.'s) gains little more
    "prefix_tuning": 0.3,  # as far, with small gradients: the best of 0.01 to 0.3 in both lengths
    "bottleneck": 3e-3,  # the highest of Houlsby's own: ahead of 1e-3 in both lengths, 1e-2 is unstable
}
MAX_GRAD_NORM = 1.0


def default_learning_rate(method: Method) -> float:
    """The peak rate a method is trained with unless the recipe says otherwise.

    Raises:
        UsageError: if the method is not one of this file's.
    """
    _require_known(method)
    return LEARNING_RATES[method]


def build_peft(
    model: PreTrainedModel,
    method: Method,
    *,
    num_virtual_tokens: int = 20,
    bottleneck_width: int = 64,
    init_text_ids: Sequence[int] | None,
    seed: int,
) -> PeftModel:
    """Freeze a stock model and wrap it with what `method` trains; the model is changed in place.

    Virtual tokens start as the embeddings (prompt) or the keys and values (prefix) of real tokens, `init_text_ids` repeated or cut to
    length, else tokens sampled from the vocabulary: random vectors learn far less (Lester et al. 2021, arXiv:2104.08691, figure 3b;
    Li and Liang 2021, arXiv:2101.00190, section 7.4). A prefix leaves a sliding window with growing distance, like any text before it.

    Raises:
        UsageError: if the method is not one of this file's, or is given text it cannot start from.
        TrainingError: if the model's layers have names bottleneck adapters do not know.
    """
    _require_known(method)
    model.eval()  # no dropout: nothing of the base is learned
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if method == "bottleneck":
            if init_text_ids is not None:
                raise UsageError("bottleneck adapters have no virtual tokens: leave `init_text_ids` out")
            return _wrap(model, bottleneck_config(model, bottleneck_width))
        ids = _first_ids(model, init_text_ids, num_virtual_tokens)
        return _build_prompt(model, ids) if method == "prompt_tuning" else _build_prefix(model, ids)


def train_peft(
    model: PeftModel, rows: Sequence[Rendered], *, pad_id: int, batch_size: int, num_steps: int, learning_rate: float, seed: int
) -> Iterator[StepMetrics]:
    """Change what `build_peft` added, one yielded step after the other; the loss is that of our own loop.

    Raises:
        TrainingError: if a row has nothing to learn, or loss or gradients are not finite; the weights are then those of the step before.
    """
    _require_supervised(rows)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step, row_ids in enumerate(row_order(len(rows), batch_size=batch_size, num_steps=num_steps, seed=seed)):
        start = time.perf_counter()
        batch = [rows[row_id] for row_id in row_ids]
        # 1) gradients of the mean loss over the step's supervised tokens
        optimizer.zero_grad(set_to_none=True)
        answers = _answers(model, batch, pad_id)
        mean = F.cross_entropy(answers.logits, answers.targets)
        mean.backward()  # type: ignore[no-untyped-call]
        # 2) refuse to learn from anything that is not a number
        loss, grad_norm = mean.item(), float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {step + 1}: loss {loss} and gradient norm {grad_norm} are not both finite: "
                f"try a smaller learning rate than {learning_rate:g}"
            )
        # 3) step
        rate = learning_rate_at(step, num_steps, learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        yield StepMetrics(
            step=step + 1,
            num_steps=num_steps,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            num_tokens=sum(len(row.ids) for row in batch),
            num_supervised=len(answers.targets),
            seconds=time.perf_counter() - start,
        )


@torch.no_grad()
def exact_answers(model: PeftModel, rows: Sequence[Rendered], *, pad_id: int, batch_size: int) -> list[bool]:
    """Whether greedy decoding gives each row's answer: it does if every answer token is the likeliest after those before it.

    Raises:
        TrainingError: if a row has no answer.
    """
    _require_supervised(rows)
    exact = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        answers = _answers(model, batch, pad_id)
        wrong = answers.logits.argmax(-1) != answers.targets
        missed = set(answers.rows[wrong].tolist())
        exact += [place not in missed for place in range(len(batch))]
    return exact


@torch.no_grad()
def mean_loss(model: PeftModel, rows: Sequence[Rendered], *, pad_id: int, batch_size: int) -> float:
    """Mean negative log-likelihood per supervised token, in nats.

    Raises:
        TrainingError: if a row has no answer.
    """
    _require_supervised(rows)
    total, num_supervised = 0.0, 0
    for start in range(0, len(rows), batch_size):
        answers = _answers(model, rows[start : start + batch_size], pad_id)
        total += float(F.cross_entropy(answers.logits, answers.targets, reduction="sum"))
        num_supervised += len(answers.targets)
    return total / num_supervised


def save_peft(model: PeftModel, folder: Path) -> None:
    """Write what was trained in PEFT's format; the folder appears whole or not at all.

    `PeftModel.from_pretrained` reads it; bottleneck adapters only where bottleneck.py has been imported, as here.
    """
    with new_folder(folder) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # a card without content


def load_peft(model: PreTrainedModel, folder: Path) -> PeftModel:
    """What `save_peft` wrote, put around a fresh stock model; for inference."""
    with _without_notice():
        loaded: PeftModel = PeftModel.from_pretrained(model, folder)
    return loaded.eval()


class _Answers(NamedTuple):
    """The supervised tokens of a batch, one after the other."""

    logits: Tensor  # (N, V), float32
    targets: Tensor  # (N)
    rows: Tensor  # (N), which row of the batch each is in


def _answers(model: PeftModel, batch: Sequence[Rendered], pad_id: int) -> _Answers:
    """Run a batch, padded on the right so that every token keeps its position. A row's first token is never predicted."""
    width = max(len(row.ids) for row in batch)
    ids, mask = torch.full((len(batch), width), pad_id), torch.zeros(len(batch), width, dtype=torch.long)  # (B, T)
    learned = torch.zeros(len(batch), width, dtype=torch.bool)  # (B, T)
    for place, row in enumerate(batch):
        end = len(row.ids)
        ids[place, :end], mask[place, :end], learned[place, :end] = torch.tensor(row.ids), 1, torch.tensor(row.supervised)
    ids, mask, targets, learned = (tensor.to(model.device) for tensor in (ids, mask, ids[:, 1:], learned[:, 1:]))
    predicting = learned.any(0).nonzero()[:, 0]  # (P), places whose next token some row learns: the head sees no others
    # counted from the end, since PEFT puts a prompt's virtual tokens in front
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=predicting - width).logits  # (B, P, V)
    learned = learned[:, predicting]
    return _Answers(logits[learned].float(), targets[:, predicting][learned], learned.nonzero()[:, 0])


def _wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    with _without_notice():
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


@contextmanager
def _without_notice() -> Iterator[None]:
    """PEFT asks each model for `is_gradient_checkpointing`, a name transformers has given up: nothing a reader could change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _build_prompt(model: PreTrainedModel, ids: Tensor) -> PeftModel:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(ids), prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)
    wrapped = _wrap(model, config)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].load_state_dict({"embedding.weight": model.get_input_embeddings()(ids)})
    return wrapped


def _build_prefix(model: PreTrainedModel, ids: Tensor) -> PeftModel:
    cache = DynamicCache()  # made without the model's configuration it keeps every token, also where attention slides
    with torch.no_grad():
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    wrapped = _wrap(model, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(ids)))
    initialize_kv_prefix_from_past_key_values(wrapped, past_key_values=cache)
    return wrapped


def _first_ids(model: PreTrainedModel, init_text_ids: Sequence[int] | None, num_virtual_tokens: int) -> Tensor:
    if init_text_ids is None:
        ids = torch.randint(model.get_input_embeddings().num_embeddings, (num_virtual_tokens,))
    elif not init_text_ids:
        raise UsageError("`init_text_ids` holds no tokens: give some, or None for tokens sampled from the vocabulary")
    else:
        ids = torch.tensor(list(islice(cycle(init_text_ids), num_virtual_tokens)))
    return ids.to(model.device)


def _require_known(method: Method) -> None:
    if method not in LEARNING_RATES:
        raise UsageError(f"method {method!r} does not run through PEFT: those that do are {', '.join(LEARNING_RATES)}")


def _require_supervised(rows: Sequence[Rendered]) -> None:
    empty = [place for place, row in enumerate(rows) if not any(row.supervised[1:])]
    if empty or not rows:
        what = f"{len(empty)} of {len(rows)} rows (the first is row {empty[0]}) have" if empty else "there are no rows, so there is"
        raise TrainingError(f"{what} nothing to learn: leave such rows out of the data")
