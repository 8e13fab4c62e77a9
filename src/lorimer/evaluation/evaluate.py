"""An adapter beside its base on the same items, through the engine that serves: greedy, base and adapter in one batch."""

from collections.abc import Iterator
from typing import NamedTuple

from lorimer.evaluation.task import Task
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence

ROOM_TOKENS = 8  # beyond the longest target: enough to see that an answer went on too long
FREE_TOKENS = 256  # where a longer answer may still be right


class Answer(NamedTuple):
    """What one model said to one sample."""

    sample_index: int
    adapter: str | None
    """Digest; None for the base."""
    text: str
    num_tokens: int


def ask(engine: Engine, task: Task, adapters: tuple[str | None, ...]) -> Iterator[Answer]:
    """Put every sample to every adapter (None is the base); yields answers as they come, in any order.

    Raises:
        EngineError: if a prompt is longer than the base can read, or an adapter is not resident.
    """
    renderer = engine.base.renderer
    params = SamplingParams(max_tokens=answer_len(engine, task))
    asked: dict[int, tuple[int, str | None]] = {}
    sequences = []
    for index, sample in enumerate(task.samples):
        prompt_ids = renderer.render_prompt(sample.prompt)
        for adapter in adapters:
            sequence = Sequence(prompt_ids=prompt_ids, params=params, adapter=adapter)
            asked[sequence.id] = index, adapter
            sequences.append(sequence)
    for sequence in generate(engine, sequences):
        index, adapter = asked[sequence.id]
        yield Answer(index, adapter, renderer.decode(sequence.output_ids), len(sequence.output_ids))


def answer_len(engine: Engine, task: Task) -> int:
    """Tokens an answer may take: a little more than the longest target, more where only a part has to match."""
    longest = max(len(engine.base.renderer.tokenise_prompt(sample.target)) for sample in task.samples)
    return longest + (FREE_TOKENS if task.metric == "contains" else ROOM_TOKENS)


def answers_of(answers: list[Answer], adapter: str | None, num_samples: int) -> list[str | None]:
    """One adapter's answers in the order of the samples; None where it gave none."""
    by_index = {answer.sample_index: answer.text for answer in answers if answer.adapter == adapter}
    return [by_index.get(index) for index in range(num_samples)]
