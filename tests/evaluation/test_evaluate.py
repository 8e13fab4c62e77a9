"""Answers through the engine: base and adapter side by side, kept by digest, never kept in part."""

from pathlib import Path

import pytest

from fakes import random_lora, tiny_base
from lorimer.data.example import Message
from lorimer.evaluation.evaluate import Answer, answers_of, ask
from lorimer.evaluation.task import Sample, Task
from lorimer.inference.composition import Composition, Part
from lorimer.inference.engine import Engine


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


def test_stopped_evaluation_keeps_nothing(home: Path) -> None:
    answers = ask(engine_with(), task(), (None,))
    next(answers)
    answers.close()
    assert not (home / "answers").exists()
