"""From `model` to what answers: names, versions, aliases, digests; paths are only names nobody has."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, insert

from lorimer.database import begin_write
from lorimer.errors import NotFoundError
from lorimer.evaluation.gates import Check, GateResult
from lorimer.registry.compositions import compose
from lorimer.registry.promotion import promote
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import aliases, held_routes
from lorimer.registry.tombstones import bury
from lorimer.serving.generation import NamedAdapter
from lorimer.serving.refusals import ApiError
from lorimer.serving.resolve import DEFAULT_BASE, Models, Target, TargetPart, base_for

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
        found = models.resolve(model)
        assert found == Target(id=version.id, parts=(TargetPart(id=version.id, digest=version.digest, folder=version.path),))
        assert (found.digest, found.folder, found.is_composed) == (version.digest, version.path, False)
        assert found.composition.digest == version.digest
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


def named(*parts: tuple[str, float]) -> list[NamedAdapter]:
    return [NamedAdapter(id=id, scale=scale) for id, scale in parts]


def test_several_adapters_are_named_by_their_versions(models: Models, register: Register) -> None:
    sql, tone = register("sql", 1), register("tone", 2)
    found = models.resolve("base", adapters=named(("sql", 0.7), ("tone@v1", 1.0)))
    assert (found.id, found.is_composed, found.folder) == ("sql@v1*0.7+tone@v1", True, None)
    assert dict(found.folders) == {sql.digest: sql.path, tone.digest: tone.path}
    assert {part.digest: part.scale for part in found.composition.parts} == {sql.digest: 0.7, tone.digest: 1.0}
    assert found.digest not in (None, sql.digest, tone.digest)


@pytest.mark.parametrize("scale", [0.7, -0.25, 2, 0.0, 1e-07, 0.123456789012])
def test_name_of_several_can_be_asked_for_again(models: Models, register: Register, scale: float) -> None:
    for seed, name in enumerate(("sql", "tone")):
        register(name, seed)
    found = models.resolve("tiny-gemma3", adapters=named(("tone", scale), ("sql", 1.0)))
    again = models.resolve(found.id)
    assert again == found
    assert again.composition == models.resolve("base", adapters=named(("sql", 1.0), ("tone", scale))).composition


def test_one_adapter_whole_is_that_adapter(models: Models, register: Register) -> None:
    register("sql", 1)
    assert models.resolve("base", adapters=named(("sql", 1.0))) == models.resolve("sql")
    assert models.resolve("sql*0.5").is_composed
    assert models.resolve("sql*0.5").digest != models.resolve("sql").digest


@pytest.mark.parametrize(
    ("model", "adapters", "status", "param"),
    [
        ("sql", [("tone", 1.0)], 400, "adapters"),
        ("base", [("sql", 1.0), ("sql@v1", 0.5)], 400, "adapters"),
        ("base", [("sql", 1.0), ("nobody", 0.5)], 404, "adapters"),
        ("base", [("elsewhere", 1.0)], 400, "adapters"),
        ("base", [("base", 1.0)], 404, "adapters"),
        ("base", [("sql*0.5", 1.0)], 404, "adapters"),
        ("sql+sql*2", [], 400, "model"),
        ("sql+nobody", [], 404, "model"),
        ("sql+", [], 404, "model"),
        ("sql*", [], 404, "model"),
        ("sql*x", [], 404, "model"),
        ("sql*11", [], 404, "model"),
        ("+".join(["sql"] * 9), [], 404, "model"),
        ("../sql*0.5+/etc/passwd", [], 404, "model"),
    ],
)
def test_composition_that_is_none_is_refused(
    models: Models, register: Register, model: str, adapters: list[tuple[str, float]], status: int, param: str
) -> None:
    for seed, name in enumerate(("sql", "tone")):
        register(name, seed)
    register("elsewhere", 3, base_digest="e" * 64)
    with pytest.raises(ApiError) as caught:
        models.resolve(model, adapters=named(*adapters))
    assert (caught.value.status, caught.value.param) == (status, param)


def test_named_composition_is_asked_for_as_an_adapter_is(models: Models, registry: Registry, register: Register) -> None:
    sql, tone = register("sql", 1), register("tone", 2)
    compose(registry, "reports", ["sql*0.7", "tone"])
    register("sql", 3)
    found = models.resolve("reports")
    assert (found.id, found.is_composed) == ("reports@v1", False)
    assert dict(found.folders) == {sql.digest: sql.path, tone.digest: tone.path}
    assert found.composition == models.resolve("tone+sql@v1*0.7").composition
    assert found.digest == registry.resolve("reports").digest
    assert found == models.resolve("reports@v1") == models.resolve(f"reports@sha256:{found.digest and found.digest[:8]}")
    cards = {card.id: card.root for card in models.cards()}
    assert cards["reports"] == cards["reports@v1"] == found.digest


def test_named_composition_in_a_composition_counts_as_its_parts(models: Models, registry: Registry, register: Register) -> None:
    for seed, name in enumerate(("sql", "tone", "extra")):
        register(name, seed)
    compose(registry, "reports", ["sql*0.5", "tone"])
    found = models.resolve("base", adapters=named(("reports", 0.5), ("extra", 1.0)))
    assert (found.id, found.is_composed) == ("reports@v1*0.5+extra@v1", True)
    assert found.composition == models.resolve("sql*0.25+tone*0.5+extra").composition
    with pytest.raises(ApiError, match="'reports@v1' adds what is there already") as caught:
        models.resolve("base", adapters=named(("sql", 1.0), ("reports", 1.0)))
    assert caught.value.status == 400


def test_what_is_erased_is_not_served_and_its_routes_fall_back(models: Models, registry: Registry, register: Register) -> None:
    first, second, alone = register("helpdesk", 1), register("helpdesk", 2), register("alone", 3)
    promote_version(registry, second)
    with begin_write(registry.engine) as connection:
        bury(connection, "adapter", [second.digest, alone.digest], erasure="e1")
        row = {"adapter_name": "helpdesk", "alias": "champion", "version": 2, "erasure": "e1"}
        connection.execute(delete(aliases))
        connection.execute(insert(held_routes).values(row))
    assert models.resolve("helpdesk").id == first.id  # the newest that is free of it
    for name in ("helpdesk@champion", "alone"):
        assert models.resolve(name) == Target(id="tiny-gemma3")
    for name in ("helpdesk@v2", f"helpdesk@sha256:{second.digest[:12]}", "helpdesk@v2*0.5+helpdesk@v1"):
        with pytest.raises(ApiError, match="erasure e1 has fenced it off") as caught:
            models.resolve(name)
        assert (caught.value.status, caught.value.code) == (404, "model_erased")
    assert [card.id for card in models.cards()] == ["tiny-gemma3", "helpdesk", "helpdesk@v1"]
    models.may_use_base = False
    with pytest.raises(ApiError, match="fenced it off"):
        models.resolve("alone")
