"""Put tasks to the base and to adapters, through the engine that serves: all of them in one pass over one base.

Answers are greedy, in wide batches. Choices and texts are scored without generating. What was asked before is kept
(kept.py): a base's answers serve every adapter that is compared with it, and who was interrupted goes on where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lorimer.evaluation.kept import Kept
from lorimer.evaluation.memory.exposure import exposure
from lorimer.evaluation.scorers.catalogue import score
from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample, Task
from lorimer.inference.composition import Composition, alone
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.scoring import Continuations, compare_texts, score_continuations
from lorimer.inference.sequence import Sequence as Decoded

ROOM_TOKENS = 8  # beyond the longest target: enough to see that an answer went on too long
FREE_TOKENS = 256  # where a longer answer may still be right


class Answer(NamedTuple):
    """What one model said to one sample."""

    sample_index: int
    adapter: str | None
    """Digest, of an adapter or of a composition; None for the base."""
    value: Any
    """The text of an answer; for choices `[logprob of each, tokens of each]`; for a text its loss, the base's, their divergence."""
    num_tokens: int
    """Generated or scored for it now; 0 where the answer was kept from before."""


Models = Sequence[str | Composition | None]
"""Adapters by digest, or compositions; None is the base."""


def ask(engine: Engine, task: Task, adapters: Models) -> Iterator[Answer]:
    """Put every sample to every model; yields answers as they come, in any order.

    Raises:
        EngineError: if a prompt is longer than the base can read, or an adapter is not resident.
    """
    compositions = [adapter if isinstance(adapter, Composition) else alone(adapter) for adapter in adapters]
    named = {composition.digest or None: composition for composition in compositions}
    how = {"max_tokens": answer_len(engine, task)} if task.kind == "answer" else {}
    kept = {model: Kept(engine, task.digest, model, **how) for model in named}
    there = {model: own.read(len(task.samples)) for model, own in kept.items()}
    for model, values in there.items():
        yield from (Answer(index, model, value, 0) for index, value in values.items())
    missing = {model: [i for i in range(len(task.samples)) if i not in values] for model, values in there.items()}
    way = {"answer": _generate, "choice": _score_choices, "text": _compare_texts}[task.kind]
    for answer in way(engine, task, {model: own for model, own in named.items() if missing[model]}, missing):
        kept[answer.adapter].add({answer.sample_index: answer.value})
        yield answer


def answers_of(answers: Sequence[Answer], adapter: str | None, num_samples: int) -> list[Any]:
    """One model's answers in the order of the samples; None where it gave none."""
    by_index = {answer.sample_index: answer.value for answer in answers if answer.adapter == adapter}
    return [by_index.get(index) for index in range(num_samples)]


def score_answer(task: Task, sample: Sample, value: Any) -> Score:
    """What an answer is worth; see `Answer.value`."""
    if value is None:
        return Score(value=None, answer="", explanation="no answer was given")
    if task.kind == "answer" and task.metric == "voice":  # which all answers have together: checks.py
        return scored(bool(value.strip()), value, "says nothing")
    if task.kind == "answer":
        return score(task.metric, value, sample)
    if task.kind == "text":
        loss, base_loss, divergence = value
        own = {"perplexity": loss, "divergence": divergence, "membership": base_loss - loss}[task.metric]
        return Score(value=own, answer=f"{loss:.4f} nats a token, base {base_loss:.4f}, divergence {divergence:.4f}")
    return _score_choice(task.metric, sample, *value)


def _score_choice(metric: str, sample: Sample, logprobs: list[float], lengths: list[int]) -> Score:
    place = sample.choices.index(sample.target)
    if metric == "exposure":
        bits = exposure(logprobs, place)
        return Score(value=bits, answer=f"rank {len(logprobs) / 2**bits:g} of {len(logprobs)}")
    values = logprobs if metric == "choice" else [own / max(1, len(text)) for own, text in zip(logprobs, sample.choices, strict=True)]
    best = max(range(len(values)), key=values.__getitem__)
    answer = sample.choices[best]
    return Score(value=float(best == place), answer=answer, explanation="" if best == place else "another one is likelier")


def answer_len(engine: Engine, task: Task) -> int:
    """Tokens an answer may take: as the task says, else a little more than the longest target, more where only a part has to match."""
    if task.max_tokens is not None:
        return task.max_tokens
    longest = max(len(engine.base.renderer.tokenise_prompt(sample.target)) for sample in task.samples)
    return longest + (ROOM_TOKENS if task.metric in ("exact", "exact_json", "label") else FREE_TOKENS)


def prompt_ids_of(engine: Engine, task: Task, sample: Sample) -> tuple[int, ...]:
    """A sample's prompt as the base reads it."""
    renderer = engine.base.renderer
    return renderer.tokenise_prompt(sample.prompt[0].content) if task.template == "none" else renderer.render_prompt(sample.prompt)


Named = Mapping[str | None, Composition]
Missing = Mapping[str | None, list[int]]


def _generate(engine: Engine, task: Task, models: Named, missing: Missing) -> Iterator[Answer]:
    """One model after the other: batches are wide anyway, and rows of one adapter cost less than rows of many (`make bench-evaluate`)."""
    params = SamplingParams(max_tokens=answer_len(engine, task))
    prompts = {index: prompt_ids_of(engine, task, task.samples[index]) for model in models for index in missing[model]}
    for model, composition in models.items():
        asked = {}
        for index in missing[model]:
            sequence = Decoded(prompt_ids=prompts[index], params=params, composition=composition)
            asked[sequence] = index
        for sequence in generate(engine, asked):
            yield Answer(asked[sequence], model, engine.base.renderer.decode(sequence.output_ids), len(sequence.output_ids))


def _score_choices(engine: Engine, task: Task, models: Named, missing: Missing) -> Iterator[Answer]:
    for model, composition in models.items():
        asked = [_continuations(engine, task, task.samples[index]) for index in missing[model]]
        for place, scores in score_continuations(engine, asked, composition):
            value = [[own.logprob for own in scores], [own.num_tokens for own in scores]]
            yield Answer(missing[model][place], model, value, asked[place].num_tokens)


def _continuations(engine: Engine, task: Task, sample: Sample) -> Continuations:
    """A prompt and its choices, cut where the prompt ends: a tokenizer may join its last letters with a choice's first.

    Then the whole text is tokenised, and what lies behind the tokens that all share with the prompt is scored (as lm-eval does).
    """
    renderer = engine.base.renderer
    if task.template == "chat":
        prompt_ids = renderer.render_prompt(sample.prompt)
        return Continuations(prompt_ids=prompt_ids, continuations=tuple(_plain(engine, choice) for choice in sample.choices))
    text = sample.prompt[0].content
    stripped = text.rstrip()
    prompt_ids, rest = renderer.tokenise_prompt(stripped), text[len(stripped) :]
    whole = [renderer.tokenise_prompt(stripped + rest + choice) for choice in sample.choices]
    return Continuations(prompt_ids=prompt_ids, continuations=tuple(ids[len(prompt_ids) :] for ids in whole))


def _plain(engine: Engine, text: str) -> tuple[int, ...]:
    """Tokens of a text that goes on where something else ended."""
    renderer = engine.base.renderer
    start = renderer.tokenise_prompt("")
    ids = renderer.tokenise_prompt(text)
    return ids[len(start) :] if ids[: len(start)] == start else ids


def _compare_texts(engine: Engine, task: Task, models: Named, missing: Missing) -> Iterator[Answer]:
    indices = sorted({index for model in models for index in missing[model]})
    texts, num_given = list[tuple[int, ...]](), list[int]()
    for sample in (task.samples[index] for index in indices):
        prompt_ids = prompt_ids_of(engine, task, sample) if sample.prompt else ()
        texts.append((*prompt_ids, *_plain(engine, sample.target)) if prompt_ids else engine.base.renderer.tokenise_prompt(sample.target))
        num_given.append(len(prompt_ids) or 1)
    for place, distances in compare_texts(engine, texts, list(models.values()), num_given=num_given):
        for model, own in zip(models, distances, strict=True):
            if indices[place] in missing[model]:
                yield Answer(indices[place], model, [own.loss, own.base_loss, own.divergence], own.num_tokens)
