"""Requests made from our own OpenAPI document, valid ones and broken ones: no server error, and nothing the document does not say.

`pytest` asks some dozens of each route, in the process; `make fuzz` asks thousands, over a socket, of a server that wants keys.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant
from lorimer.serving.keys import Keys
from lorimer.serving.server import background_server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection]
NUM_CASES = int(os.environ.get("LORIMER_FUZZ_CASES", "2000"))
GENERATION = ("/v1/chat/completions", "/v1/completions", "/generate")
MODELS = ("helpdesk", "base", "billing@v1", "helpdesk*0.5+billing", "auto")


@pytest.fixture
def stopped() -> Iterator[None]:
    """Apps that were asked in the process end with the test."""
    yield
    shutdown_lifespans()


def fuzz(schema: Any, num_cases: int, *, headers: dict[str, str], checks: Any = CHECKS) -> Counter[tuple[str, int]]:
    """Ask every route so often; returns how often each answered how."""
    seen = Counter[tuple[str, int]]()
    for found in schema.get_all_operations():
        operation = found.ok()
        cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

        @seed(1)
        @settings(
            max_examples=num_cases, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )  # fmt: skip
        @given(case=cases, model=st.sampled_from(MODELS), is_simple=st.booleans())
        def ask(case: Case, model: str, is_simple: bool) -> None:
            if case.meta.generation.mode is GenerationMode.POSITIVE:
                _make_answerable(case, model, is_simple=is_simple)
            response = case.call_and_validate(headers=headers, checks=checks)
            seen[f"{case.method} {case.operation.path}", response.status_code] += 1

        ask()
    return seen


def _make_answerable(case: Case, model: str, *, is_simple: bool) -> None:
    """Let most valid requests come as far as the engine: by a name that is there, not too long, half of them with a simple question."""
    body = case.body
    if "model" in case.path_parameters and model != "auto" and "+" not in model:
        case.path_parameters["model"] = model
    if not isinstance(body, dict):
        return
    if "lora_name" in body:
        body["lora_name"] = model
    elif case.operation.path == "/generate":
        body["parameters"] = {**(body.get("parameters") or {}), "max_new_tokens": 3, "adapter_id": "billing"}
    elif case.operation.path in GENERATION:
        body |= {"model": model, "max_tokens": 3, "n": 1}
        for name in ("adapter_id", "adapters", "max_completion_tokens", "logit_bias", "best_of"):
            body.pop(name, None)
        if is_simple:
            kept = {"prompt": "Dear", "messages": [{"role": "user", "content": "hi"}]}
            for name, value in kept.items():
                if name in body:
                    body[name] = value
            for name in ("tools", "tool_choice", "response_format", "stream_options", "top_logprobs", "echo", "ignore_eos"):
                body.pop(name, None)


@pytest.fixture
def headers(registry: Registry) -> dict[str, str]:
    """Those of who may do everything, where keys are asked for."""
    key = Keys(registry.engine).create("ops", tenant="ops", grant=Grant(is_admin=True)).text
    return {"Authorization": f"Bearer {key}"}


def config() -> SchemathesisConfig:
    return SchemathesisConfig.from_dict({"request-timeout": 300, "generation": {"with-security-parameters": False}})


def test_every_route_does_what_the_document_says(app: FastAPI, headers: dict[str, str], stopped: None) -> None:
    seen = fuzz(schemathesis.openapi.from_asgi("/openapi.json", app, config=config()), 40, headers=headers)
    assert {path for path, status in seen if status == 200} == {f"{m.upper()} {p}" for p, ms in app.openapi()["paths"].items() for m in ms}


@pytest.mark.fuzz
def test_every_route_does_what_the_document_says_for_long(app: FastAPI, headers: dict[str, str]) -> None:
    with background_server(app) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config())
        seen = fuzz(schema, NUM_CASES, headers=headers, checks=[*CHECKS, ignored_auth])
    print(f"\n{sum(seen.values())} requests")
    for (path, status), count in sorted(seen.items()):
        print(f"{path:32} {status} {count:7}")
