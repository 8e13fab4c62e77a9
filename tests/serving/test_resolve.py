"""From `model` to what answers: names, versions, aliases, digests; paths are only names nobody has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorimer.errors import NotFoundError
from lorimer.evaluation.gates import Check, GateResult
from lorimer.registry.promotion import promote
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.refusals import ApiError
from lorimer.serving.resolve import DEFAULT_BASE, Models, Target, base_for

Register = Callable[..., AdapterVersion]


@pytest.fixture
def models(registry: Registry, base_digest: str) -> Models:
    return Models(registry, base_name="tiny-gemma3", base_digest=base_digest, max_len=512)


@pytest.fixture
def base_digest() -> str:
    return f"{0:064x}"


def promote_version(registry: Registry, version: AdapterVersion) -> None:
    check = Check(name="beats_base", verdict="PASS", value=0.1, interval=None, threshold=0.0, num_items=50, reason="So.")
    digests = {"report_digest": "e" * 64, "candidate_digest": version.digest, "base_digest": version.base_digest}
    promote(registry, registry.record_gate(GateResult(verdict="PASS", checks=(check,), created_at="now", **digests), version))


@pytest.mark.parametrize("model", ["base", "tiny-gemma3"])
def test_base_is_found_by_name_and_as_base(models: Models, model: str) -> None:
    assert models.resolve(model) == Target(id="tiny-gemma3")


def test_adapter_is_found_by_every_name(models: Models, registry: Registry, register: Register) -> None:
    first, second = register("helpdesk", 1), register("helpdesk", 2)
    for model, version in (("helpdesk", second), ("helpdesk@v1", first), (f"helpdesk@sha256:{first.digest[:8]}", first)):
        assert models.resolve(model) == Target(id=version.id, digest=version.digest, folder=version.path)
    promote_version(registry, first)
    assert models.resolve("helpdesk").id == models.resolve("helpdesk@champion").id == "helpdesk@v1"


def test_cards_mean_what_resolve_finds(models: Models, registry: Registry, register: Register) -> None:
    first, _ = register("helpdesk", 1), register("helpdesk", 2)
    register("billing", 3)
    register("elsewhere", 4, base_digest="e" * 64)
    promote_version(registry, first)
    cards = models.cards()
    assert [card.id for card in cards] == [
        "tiny-gemma3", "billing", "billing@v1", "helpdesk", "helpdesk@champion", "helpdesk@v1", "helpdesk@v2",
    ]  # fmt: skip
    for card in cards[1:]:
        assert card.root == models.resolve(card.id).digest
        assert models.card(card.id) == card


def test_adapter_of_another_base_is_refused(models: Models, register: Register) -> None:
    register("elsewhere", 1, base_digest="e" * 64)
    with pytest.raises(ApiError, match="was made for base 'tiny-gemma3' \\(eeeeeeeeeeee\\)") as caught:
        models.resolve("elsewhere")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "wrong_base", "model")


@pytest.mark.parametrize("model", ["helpdsk", "Helpdesk", "helpdesk@v9", "helpdesk@champ", "helpdesk@"])
def test_unknown_name_is_a_404_with_near_names(models: Models, register: Register, model: str) -> None:
    register("helpdesk", 1)
    with pytest.raises(ApiError, match="did you mean 'helpdesk") as caught:
        models.resolve(model)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["helpdesk@sha256:", "helpdesk@sha256:ab", "helpdesk@sha256:zzzzzzzz"])
def test_digest_that_is_none_is_a_400(models: Models, register: Register, model: str) -> None:
    register("helpdesk", 1)
    with pytest.raises(ApiError, match="hex digits") as caught:
        models.resolve(model)
    assert caught.value.status == 400


def test_paths_are_only_unknown_names(models: Models, register: Register, tmp_path: Path) -> None:
    version = register("helpdesk", 1)
    names = [
        "../../etc/passwd",
        "/etc/passwd",
        str(version.path),
        str(tmp_path),
        "helpdesk/../helpdesk",
        "helpdesk@../v1",
        "~",
        "..",
        "C:\\x",
    ]
    for model in [*names, "file:///etc/passwd", "helpdesk\0", "helpdesk\n", "helpdesk@v1\n", "%2e%2e/", "' OR 1=1 --", "x" * 1000]:
        with pytest.raises(ApiError) as caught:
            models.resolve(model)
        assert caught.value.status == 404


def test_base_for_prefers_what_is_asked(registry: Registry, register: Register) -> None:
    assert base_for(registry) == base_for(registry, "base") == DEFAULT_BASE
    register("helpdesk", 1)
    assert base_for(registry) == base_for(registry, "helpdesk@v1") == "tiny-gemma3"
    assert base_for(registry, "gemma3-270m") == "gemma3-270m"
    assert base_for(registry, "google/gemma") == "google/gemma"
    with pytest.raises(NotFoundError):
        base_for(registry, "nobody")
