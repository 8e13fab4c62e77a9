"""Answers through the engine: base and adapter side by side, kept by digest as they come, gone on with after a crash."""

import math
from pathlib import Path

import pytest

from fakes import random_lora, tiny_base
from lorimer.data.example import Message
from lorimer.evaluation.evaluate import Answer, answers_of, ask, prompt_ids_of, score_answer
from lorimer.evaluation.task import Sample, Task, Template
from lorimer.inference.composition import Composition, Part, alone
from lorimer.inference.engine import Engine
from lorimer.inference.scoring import Continuations, score_continuations


def engine_with(*seeds: int) -> Engine:
    base = tiny_base()
    engine = Engine(base)
    for seed in seeds:
        engine.adapters.add(f"{seed:02x}", random_lora(base, seed=seed))
    return engine


def task(num_samples: int = 4) -> Task:
    samples = tuple(Sample(id=f"{i}", prompt=(Message(role="user", content=f"q{i}"),), target="abc") for i in range(num_samples))
    return Task(name="t", metric="exact", samples=samples, dataset_digest="d")


def texts(answers: list[Answer], adapter: str | None) -> list[str | None]:
    return answers_of(answers, adapter, 4)


def test_every_sample_is_put_to_every_adapter() -> None:
    answers = list(ask(engine_with(1, 2), task(), (None, "01", "02")))
    assert sorted((a.sample_index, a.adapter or "") for a in answers) == sorted((i, d) for i in range(4) for d in ("", "01", "02"))
    assert len({tuple(texts(answers, d)) for d in (None, "01", "02")}) == 3


def test_answers_are_kept_and_not_generated_again() -> None:
    first = list(ask(engine_with(1), task(), (None, "01")))
    again = list(ask(engine_with(1, 2), task(), (None, "01", "02")))
    for digest in (None, "01"):
        assert texts(again, digest) == texts(first, digest)
    assert {a.adapter for a in again if a.num_tokens} <= {"02"}
    assert {a.adapter for a in first if a.num_tokens} == {None, "01"}


def test_compositions_are_asked_as_they_are_served() -> None:
    both = Composition((Part(digest="01", scale=0.5), Part(digest="02", scale=0.5)))
    answers = list(ask(engine_with(1, 2), task(), (None, both, "01")))
    assert {a.adapter for a in answers} == {None, both.digest, "01"}
    assert len({tuple(texts(answers, digest)) for digest in (None, both.digest, "01")}) == 3
    whole = Composition((Part(digest="01"),))
    assert texts(list(ask(engine_with(1), task(), (whole,))), "01") == texts(answers, "01")


@pytest.mark.parametrize("damage", ["", "[", '["only one"]', "[1, 2, 3, 4]", "{}"])
def test_damaged_answers_are_asked_for_again(damage: str, home: Path) -> None:
    first = list(ask(engine_with(), task(), (None,)))
    (kept,) = (home / "answers").iterdir()
    kept.write_text(damage)
    again = list(ask(engine_with(), task(), (None,)))
    assert texts(again, None) == texts(first, None)
    assert any(a.num_tokens for a in again)


def test_stopped_evaluation_goes_on(home: Path) -> None:
    whole = list(ask(engine_with(1), task(), (None, "01")))
    for path in (home / "answers").iterdir():
        path.unlink()
    answers = ask(engine_with(1), task(), (None, "01"))
    started = [next(answers) for _ in range(3)]
    answers.close()
    (path, *_) = [path for path in (home / "answers").iterdir() if path.stat().st_size]
    with path.open("ab") as file:
        file.write(b'[3, "half a li')  # the power went while it was written
    again = list(ask(engine_with(1), task(), (None, "01")))
    assert sum(answer.num_tokens == 0 for answer in again) >= len(started)
    for digest in (None, "01"):
        assert texts(again, digest) == texts(whole, digest)
    assert all(answer.num_tokens == 0 for answer in ask(engine_with(1), task(), (None, "01")))


def choice_task(template: Template, metric: str = "choice") -> Task:
    samples = tuple(
        Sample(id=f"{i}", prompt=(Message(role="user", content=f"q{i} is"),), target=" b", choices=(" a", " b", " long one"))
        for i in range(5)
    )
    return Task(name="c", metric=metric, samples=samples, dataset_digest="d", kind="choice", template=template)


@pytest.mark.parametrize("template", ["chat", "none"])
def test_choices_are_scored_as_continuations_of_the_prompt(template: Template) -> None:
    engine = engine_with(1)
    own = choice_task(template)
    found = answers_of(list(ask(engine, own, (None, "01"))), "01", 5)
    for sample, (logprobs, lengths) in zip(own.samples, found, strict=True):
        prompt_ids = prompt_ids_of(engine, own, sample)
        assert lengths == [2, 2, 9]
        for choice, logprob, length in zip(sample.choices, logprobs, lengths, strict=True):
            ids = tuple(engine.base.renderer.tokenise_prompt(choice))[-length:]
            ((_, (score,)),) = score_continuations(engine, [Continuations(prompt_ids=prompt_ids, continuations=(ids,))], alone("01"))
            assert logprob == pytest.approx(score.logprob, abs=1e-4)
    assert all(answer.num_tokens == 0 for answer in ask(engine, own, (None, "01")))


@pytest.mark.parametrize(
    ("metric", "logprobs", "value"),
    [("choice", [-3.0, -1.0, -9.0], 1.0), ("choice", [-0.5, -1.0, -9.0], 0.0), ("choice_by_len", [-9.0, -3.0, -9.0], 0.0),
     ("choice_by_len", [-9.0, -1.0, -9.0], 1.0), ("exposure", [-3.0, -1.0, -9.0], math.log2(3)), ("exposure", [-0.5, -1.0, -0.6], 0.0)],
)  # fmt: skip
def test_choices_are_judged_by_likelihood(metric: str, logprobs: list[float], value: float) -> None:
    own = choice_task("none", metric)
    assert score_answer(own, own.samples[0], [logprobs, [2, 2, 9]]).value == pytest.approx(value)


def test_texts_are_compared_with_the_base() -> None:
    samples = tuple(Sample(id=str(n), prompt=(), target=text) for n, text in enumerate(("a text", "another, longer text")))
    for metric in ("perplexity", "divergence", "membership"):
        own = Task(name="t", metric=metric, samples=samples, dataset_digest="d", kind="text")
        answers = list(ask(engine_with(1), own, (None, "01")))
        for sample, base, adapter in zip(samples, answers_of(answers, None, 2), answers_of(answers, "01", 2), strict=True):
            assert base[0] == base[1] == adapter[1]
            assert (base[2], adapter[2] > 0) == (0, True)
            wanted = {"perplexity": adapter[0], "divergence": adapter[2], "membership": adapter[1] - adapter[0]}[metric]
            assert score_answer(own, sample, adapter).value == wanted
