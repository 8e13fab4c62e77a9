"""`echo` with `logprobs`: what a prompt's own tokens were worth, as transformers and PEFT say it, in OpenAI's older form."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from starlette.testclient import TestClient

from fakes import by_itself, random_lora, tiny_base, tiny_model
from lorimer.inference.composition import alone
from lorimer.inference.engine import SCORED_ROWS, Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion

TEXT = "The parcel came late; la facture était fausse."
BASE = tiny_base()
LORA = random_lora(BASE, seed=1)
KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "base", "prompt": TEXT, "temperature": 0, "max_tokens": 0, "echo": True, "logprobs": 3, **fields}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


@torch.inference_mode()
def wanted_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """(T - 1, V) of the tokens from the second, by transformers alone."""
    return model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def model_behind(version: AdapterVersion | None) -> Any:
    """The tiny base, with an adapter put on by PEFT."""
    model = tiny_model("gemma3", attention="eager")
    return model if version is None else PeftModel.from_pretrained(model, str(version.path))


@pytest.mark.parametrize("name", ["base", "helpdesk", "billing"])
def test_prompts_have_the_log_probabilities_of_transformers(
    client: TestClient, base: Base, name: str, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    ids = list(base.renderer.tokenise_prompt(TEXT))
    wanted = wanted_logprobs(model_behind({"helpdesk": helpdesk, "billing": billing}.get(name)).eval(), ids)
    (choice,) = complete(client, model=name, prompt=ids)["choices"]
    found = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert {len(found[key]) for key in KEYS} == {len(ids)}
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    own = wanted[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert found["token_logprobs"][1:] == pytest.approx(own.tolist(), abs=1e-4)
    for at, top in enumerate(found["top_logprobs"][1:]):
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(wanted[at].topk(3).values.tolist(), abs=1e-4)
        assert top[found["tokens"][at + 1]] == found["token_logprobs"][at + 1]


def test_offsets_are_those_of_the_text(client: TestClient) -> None:
    (choice,) = complete(client, prompt="A late parcel", max_tokens=4, ignore_eos=True)["choices"]
    found = choice["logprobs"]
    assert found["tokens"][:3] == ["<bos>", "A", " "]
    assert found["text_offset"][:14] == [0, *range(13)]
    assert len(found["tokens"]) == 1 + 13 + 4
    assert choice["text"].startswith("A late parcel")
    assert all(isinstance(logprob, float) for logprob in found["token_logprobs"][1:])


def test_what_the_cache_holds_is_computed_again_where_it_is_asked_for(client: TestClient) -> None:
    first = complete(client, prompt=TEXT * 3)
    assert complete(client, prompt=TEXT * 3, echo=False, max_tokens=2)["choices"][0]["logprobs"]["tokens"].__len__() == 2
    again = complete(client, prompt=TEXT * 3)
    logprobs = first["choices"][0]["logprobs"]["token_logprobs"]
    assert again["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(logprobs[1:], abs=1e-5)
    assert first["usage"] == {"prompt_tokens": len(logprobs), "completion_tokens": 0, "total_tokens": len(logprobs)}


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_streams_say_the_same(client: TestClient, max_tokens: int) -> None:
    fields = {"prompt": [TEXT, "x"], "max_tokens": max_tokens, "n": 2, "ignore_eos": True}
    whole = complete(client, **fields)["choices"]
    body = {"model": "base", "temperature": 0, "echo": True, "logprobs": 3, "stream": True, **fields}
    events = client.post("/v1/completions", json=body).text.split("\n\n")[:-2]
    choices = [choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]
    for wanted in whole:
        own = [choice for choice in choices if choice["index"] == wanted["index"]]
        assert "".join(choice["text"] for choice in own) == wanted["text"]
        joined = {key: [value for choice in own if choice["logprobs"] for value in choice["logprobs"][key]] for key in KEYS}
        assert joined["tokens"] == wanted["logprobs"]["tokens"]
        assert joined["text_offset"] == wanted["logprobs"]["text_offset"]
        assert joined["token_logprobs"][1:] == pytest.approx(wanted["logprobs"]["token_logprobs"][1:], abs=1e-4)


def test_the_token_that_ends_an_answer_has_its_place(client: TestClient, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks for one token more and cuts the last place off: were it missing, a place of the prompt's would go."""
    fields = {"prompt": "A late parcel", "max_tokens": 1, "logprobs": 1}
    (plain,) = complete(client, **fields)["choices"]
    first = by_itself(base, base.renderer.tokenise_prompt("A late parcel"), None, 1)
    monkeypatch.setattr(base.renderer, "stop_ids", frozenset(first))
    (ended,) = complete(client, **fields)["choices"]
    assert (plain["finish_reason"], ended["finish_reason"], ended["text"]) == ("length", "stop", "A late parcel")
    assert ended["logprobs"]["tokens"] == plain["logprobs"]["tokens"]
    assert ended["logprobs"]["token_logprobs"][1:] == pytest.approx(plain["logprobs"]["token_logprobs"][1:], abs=1e-5)


def test_a_prompt_that_fills_the_context_can_be_scored(client: TestClient) -> None:
    full = [7] * 512
    assert len(complete(client, prompt=full)["choices"][0]["logprobs"]["tokens"]) == 512
    body = {"model": "base", "prompt": full, "echo": True, "logprobs": 1, "max_tokens": 1}
    assert client.post("/v1/completions", json=body).json()["error"]["code"] == "context_length_exceeded"


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3 * SCORED_ROWS), st.integers(0, 6), st.sampled_from([None, "aa"])), min_size=1, max_size=6),
    st.integers(1, 90),
    st.integers(2, 12),
)
def test_scores_are_the_same_in_any_company(load: list[tuple[int, int, str | None]], tokens_per_step: int, num_blocks: int) -> None:
    engine = Engine(BASE, EngineConfig(max_tokens_per_step=tokens_per_step))
    engine.cache.blocks.__init__(num_blocks)  # type: ignore[misc]  # small enough that some are thrown out and computed again
    engine.adapters.add("aa", LORA)
    asked = [
        Sequence(
            prompt_ids=tuple((at * 7 + 11 * place) % 250 + 5 for place in range(length)),
            params=SamplingParams(max_tokens=max_tokens, num_logprobs=1, ignore_eos=True),
            composition=alone(digest),
            wants_prompt_scores=True,
        )
        for at, (length, max_tokens, digest) in enumerate(load)
        if length + max_tokens <= engine.max_len
    ]
    for sequence in generate(engine, asked):
        ids = sequence.prompt_ids
        assert [scores.token_id for scores in sequence.prompt_scores] == list(ids[1:])
        alone_engine = Engine(BASE)
        alone_engine.adapters.add("aa", LORA)
        (wanted,) = generate(
            alone_engine, [Sequence(prompt_ids=ids, params=sequence.params, composition=sequence.composition, wants_prompt_scores=True)]
        )
        assert [s.logprob for s in sequence.prompt_scores] == pytest.approx([s.logprob for s in wanted.prompt_scores], abs=1e-4)
        assert len(sequence.output_ids) == sequence.params.max_tokens
