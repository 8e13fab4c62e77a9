"""An adapter beside its base on the same items, through the engine that serves: greedy, base and adapter in one batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lorimer import __version__
from lorimer.config import home
from lorimer.evaluation.task import Task
from lorimer.inference.composition import Composition, alone
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.storage import digest_of, write_json

ROOM_TOKENS = 8  # beyond the longest target: enough to see that an answer went on too long
FREE_TOKENS = 256  # where a longer answer may still be right


class Answer(NamedTuple):
    """What one model said to one sample."""

    sample_index: int
    adapter: str | None
    """Digest, of an adapter or of a composition; None for the base."""
    text: str
    num_tokens: int
    """Generated now; 0 where the answer was kept from before."""


def ask(engine: Engine, task: Task, adapters: tuple[str | Composition | None, ...]) -> Iterator[Answer]:
    """Put every sample to every adapter or composition of several (None is the base); yields answers as they come, in any order.

    Greedy answers follow from base, adapter, task and their longest length, so they are kept by the digest of these and not
    asked for twice: the base's answers serve every adapter that is compared with it.

    Raises:
        EngineError: if a prompt is longer than the base can read, or an adapter is not resident.
    """
    renderer, max_tokens = engine.base.renderer, answer_len(engine, task)
    compositions = [adapter if isinstance(adapter, Composition) else alone(adapter) for adapter in adapters]
    named = {composition.digest or None: composition for composition in compositions}
    kept = {adapter: _answers_file(engine, task, adapter, max_tokens) for adapter in named}
    asked: dict[int, tuple[int, str | None]] = {}
    sequences = []
    for adapter, path in kept.items():
        texts = _read_answers(path, len(task.samples))
        yield from (Answer(index, adapter, text, 0) for index, text in enumerate(texts))
        for index, sample in enumerate(task.samples if not texts else ()):
            prompt_ids = renderer.render_prompt(sample.prompt)
            sequence = Sequence(prompt_ids=prompt_ids, params=SamplingParams(max_tokens=max_tokens), composition=named[adapter])
            asked[sequence.id] = index, adapter
            sequences.append(sequence)
    new: dict[str | None, dict[int, str]] = {}
    for sequence in generate(engine, sequences):
        index, adapter = asked[sequence.id]
        answer = Answer(index, adapter, renderer.decode(sequence.output_ids), len(sequence.output_ids))
        new.setdefault(adapter, {})[index] = answer.text
        yield answer
    for adapter, by_index in new.items():
        write_json(kept[adapter], [by_index[index] for index in range(len(task.samples))])


def _answers_file(engine: Engine, task: Task, adapter: str | None, max_tokens: int) -> Path:
    """Where answers are kept, by the digest of all that decides them."""
    base = engine.base
    decides = {
        "version": __version__,
        "base": base.digest,
        "dtype": str(base.dtype),
        "template": base.renderer.template_digest,
        "adapter": adapter,
        "task": task.digest,
        "max_tokens": max_tokens,
    }
    return home() / "answers" / f"{digest_of(decides)}.json"


def _read_answers(path: Path, num_samples: int) -> list[str]:
    """Answers kept before; none if there are none, or if the file is not whole."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    is_whole = isinstance(texts, list) and len(texts) == num_samples and all(isinstance(text, str) for text in texts)
    return texts if is_whole else []


def answer_len(engine: Engine, task: Task) -> int:
    """Tokens an answer may take: a little more than the longest target, more where only a part has to match."""
    longest = max(len(engine.base.renderer.tokenise_prompt(sample.target)) for sample in task.samples)
    return longest + (FREE_TOKENS if task.metric == "contains" else ROOM_TOKENS)


def answers_of(answers: list[Answer], adapter: str | None, num_samples: int) -> list[str | None]:
    """One adapter's answers in the order of the samples; None where it gave none."""
    by_index = {answer.sample_index: answer.text for answer in answers if answer.adapter == adapter}
    return [by_index.get(index) for index in range(num_samples)]
