"""A suite put to a base and adapters in one pass, and what comes of it for each: a report of every item."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lorimer.evaluation.evaluate import Answer, Models, answers_of, ask, score_answer
from lorimer.evaluation.judge.judge import judge_answers, judge_pairs
from lorimer.evaluation.judge.record import Judge
from lorimer.evaluation.report import prompt_text
from lorimer.evaluation.results import SEALED, ItemScores, SuiteReport, TaskResult
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.suite import Suite, SuiteTask
from lorimer.evaluation.task import Sample, Task
from lorimer.inference.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model as reports name it."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSuite:
    """What all models answered to a suite."""

    suite: Suite
    answers: tuple[tuple[Answer, ...], ...]
    """By task."""
    seconds: float


def ask_suite(engine: Engine, suite: Suite, models: Models) -> Iterator[Task | Answer | AskedSuite]:
    """Put every task to every model (None is the base); yields each task, its answers as they come, and at the end all together.

    Raises:
        EngineError: if a prompt is longer than the base can read, or an adapter is not resident.
    """
    start, answers = time.perf_counter(), list[tuple[Answer, ...]]()
    for one in suite.tasks:
        yield one.task
        own = list[Answer]()
        for answer in ask(engine, one.task, models) if one.task.samples else ():  # all of a task may be sealed: its check says so
            own.append(answer)
            yield answer
        answers.append(tuple(own))
    yield AskedSuite(suite=suite, answers=tuple(answers), seconds=time.perf_counter() - start)


def build_suite_report(
    asked: AskedSuite, *, candidate: Named, base: Named, incumbent: Named | None, judges: Mapping[str, Judge]
) -> SuiteReport:
    """One adapter beside its base and the incumbent; of sealed items nothing is quoted. `judges` are opened, by the task they judge."""
    suite = asked.suite
    models = {"base": None, "candidate": candidate.digest, **({"incumbent": incumbent.digest} if incumbent else {})}
    tasks = tuple(
        _result(suite, one, answers, models, judges.get(one.task.name)) for one, answers in zip(suite.tasks, asked.answers, strict=True)
    )
    return SuiteReport(
        suite=suite.name,
        version=suite.version,
        suite_digest=suite.digest,
        candidate_name=candidate.name,
        candidate_digest=candidate.digest,
        base_name=base.name,
        base_digest=base.digest,
        incumbent_name=incumbent.name if incumbent else None,
        incumbent_digest=incumbent.digest if incumbent else None,
        tasks=tasks,
        num_tokens=sum(answer.num_tokens for answers in asked.answers for answer in answers),
        seconds=asked.seconds,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _result(suite: Suite, one: SuiteTask, answers: Sequence[Answer], models: Mapping[str, str | None], judge: Judge | None) -> TaskResult:
    samples = one.task.samples
    values = {name: answers_of(answers, digest, len(samples)) for name, digest in models.items()}
    assert (judge is None) == (one.judge is None), f"task {one.task.name!r} is judged by a judge that was not opened"
    scores = _judge(one, judge, values) if judge else _score(one, values)
    items = tuple(
        _item(sample, {name: own[index] for name, own in scores.items()}, is_sealed=suite.is_reserved(sample))
        for index, sample in enumerate(samples)
    )
    return TaskResult(
        name=one.task.name,
        family=one.family,
        kind=one.task.kind,
        metric=one.task.metric,
        rule=one.rule.model_dump(exclude_none=True, exclude_unset=True),
        task_digest=one.task.digest,
        items=items,
    )


def _score(one: SuiteTask, values: dict[str, list[Any]]) -> dict[str, list[Score]]:
    samples = one.task.samples
    return {name: [score_answer(one.task, *both) for both in zip(samples, own, strict=True)] for name, own in values.items()}


def _judge(one: SuiteTask, judge: Judge, values: dict[str, list[Any]]) -> dict[str, list[Score]]:
    """What a model says of the answers; of pairs, candidate and base share a point, and no incumbent is judged."""
    if judge.spec.kind == "score":
        return {name: list(judge_answers(judge, one.task, own)) for name, own in values.items()}
    candidate = list(judge_pairs(judge, one.task, values["candidate"], values["base"]))
    shares = [None if score.value is None else 1 - score.value for score in candidate]
    base = [
        replace(score, value=share, answer=answer or "") for score, share, answer in zip(candidate, shares, values["base"], strict=True)
    ]
    return {"candidate": candidate, "base": base}


def _item(sample: Sample, scores: dict[str, Score], *, is_sealed: bool) -> ItemScores:
    scores = {name: _unquoted(score, is_sealed) for name, score in scores.items()}
    return ItemScores(
        id=sample.id,
        group=sample.group,
        tags=sample.tags,
        prompt=SEALED if is_sealed else prompt_text(sample.prompt),
        target=SEALED if is_sealed else sample.target,
        candidate=scores["candidate"],
        base=scores["base"],
        incumbent=scores.get("incumbent"),
    )


def _unquoted(score: Score, is_sealed: bool) -> Score:
    """Of a sealed item the score alone; that an answer is empty stays to be seen."""
    return Score(value=score.value, answer=SEALED if score.answer.strip() else "") if is_sealed else score
