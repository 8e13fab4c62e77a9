"""Answers held to grammars: what comes out is what was described, whatever the model would have liked to say."""

import json
from typing import Any

import pytest
import torch

from fakes import byte_tokenizer, tiny_base
from lorimer.errors import UsageError
from lorimer.inference.constraint import Grammar, Grammars
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.chat import Renderer

RENDERER = Renderer(byte_tokenizer())
GRAMMARS = Grammars(RENDERER, 264)
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "is": {"enum": ["a", "b"]}}, "required": ["x", "is"]}
CLOSED = {**POINT, "additionalProperties": False}


def ids_of(text: str) -> list[int]:
    return list(RENDERER.tokenizer(text, add_special_tokens=False).input_ids)


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether every token may come where it comes, and the answer may end there."""
    constraint = grammar.start()
    for token in [*ids_of(text), 1]:
        if constraint.is_done:
            return token == 1
        logits = torch.zeros(264)
        constraint.mask(logits)
        if not torch.isfinite(logits[token]):
            return False
        if token != 1:
            constraint.accept(token)
    return True


@pytest.mark.parametrize(
    ("schema", "text", "is_accepted"),
    [
        (CLOSED, '{"x": 1, "is": "a"}', True),
        (CLOSED, '{"x":1,"is":"b"}', True),
        (CLOSED, '{\n  "x": -12,\n  "is": "a"\n}', True),
        (CLOSED, '{"x": 1}', False),
        (CLOSED, '{"x": 1, "is": "c"}', False),
        (CLOSED, '{"x": 1, "is": "a", "y": 2}', False),
        (CLOSED, '{"x": 1, "is": "a"} ', False),
        (CLOSED, "{" + " " * 17 + '"x": 1, "is": "a"}', False),
        ({**CLOSED, "x-guidance": {"whitespace_pattern": "x"}}, '{x"x":1,"is":"a"}', False),
        ({"type": "object"}, '{"a": [1, {"b": null}], "é": "x y"}', True),
        ({"type": "object"}, "[1]", False),
        ({}, "[1]", True),
    ],
)
def test_answer_is_what_the_schema_describes(schema: dict[str, Any], text: str, is_accepted: bool) -> None:
    assert accepts(GRAMMARS.of_schema(schema), text) is is_accepted


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, "Unimplemented keys"),
        ({"$ref": "http://elsewhere/schema.json"}, "not present"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
        ({"type": "string", "format": "no-such"}, "Unknown format"),
    ],
)
def test_schema_that_cannot_be_held_is_refused_with_the_reason(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        GRAMMARS.of_schema(schema)
    assert len(str(caught.value)) < 400


def test_answers_to_one_grammar_go_their_own_ways() -> None:
    grammar = GRAMMARS.of_lark('%llguidance {}\nstart: "ab" | "cd"\n')
    first, second = grammar.start(), grammar.start()
    first.accept(*ids_of("a"))
    second.accept(*ids_of("c"))
    for constraint, wanted in ((first, "b"), (second, "d")):
        logits = torch.zeros(264)
        constraint.mask(logits)
        assert torch.isfinite(logits).nonzero().flatten().tolist() == ids_of(wanted)


def test_no_special_token_is_ever_text() -> None:
    logits = torch.zeros(264)
    constraint = GRAMMARS.of_lark("%llguidance {}\nstart: /(.|\\n)*/\n").start()
    constraint.mask(logits)
    allowed = set(torch.isfinite(logits).nonzero().flatten().tolist())
    assert {i for i in allowed if RENDERER.is_special(i)} == RENDERER.stop_ids
    assert not {260, 261, 262, 263} & allowed


def test_constraint_that_fails_ends_its_answer_and_says_why() -> None:
    constraint = GRAMMARS.of_schema(CLOSED).start()
    constraint.accept(*ids_of("z"))  # never allowed
    logits = torch.zeros(264)
    constraint.mask(logits)
    assert set(torch.isfinite(logits).nonzero().flatten().tolist()) == RENDERER.stop_ids
    assert constraint.is_done
    assert constraint.failure
    assert GRAMMARS.of_schema(CLOSED).start().failure is None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_engine_says_nothing_else(temperature: float) -> None:
    base = tiny_base()
    engine = Engine(base, EngineConfig(max_sequences=4, max_tokens_per_step=64, cache_bytes=4_000_000))
    grammar = Grammars(base.renderer, 264).of_schema(CLOSED)
    params = [SamplingParams(max_tokens=200, temperature=temperature, seed=seed) for seed in range(3)]
    held = [Sequence(prompt_ids=(2, 40), params=own, constraint=grammar.start()) for own in params]
    free = Sequence(prompt_ids=(2, 40), params=SamplingParams(max_tokens=20))
    list(generate(engine, [*held, free]))
    for sequence in held:
        if sequence.finish_reason == "stop":
            assert json.loads(base.renderer.decode(sequence.output_ids)).keys() == {"x", "is"}
    assert [sequence.finish_reason for sequence in held].count("stop") >= 1
    alone = Sequence(prompt_ids=(2, 40), params=SamplingParams(max_tokens=20))
    list(generate(Engine(base), [alone]))
    assert free.output_ids == alone.output_ids
