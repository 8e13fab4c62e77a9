"""Named compositions: pinned, flattened, refused with every reason."""

import json
from collections.abc import Callable

import pytest

from lorimer.errors import IntegrityError, NotFoundError, UsageError
from lorimer.inference.composition import Composition, Part
from lorimer.registry.audit import read_audit
from lorimer.registry.compositions import compose
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]


@pytest.fixture
def library(registry: Registry, make_new: MakeNew) -> Registry:
    """Nine adapters of one base, one of another, one that is DoRA's."""
    for number in range(1, 10):
        registry.register(make_new(f"a{number}", f"w{number}"))
    registry.register(make_new("elsewhere", "w10", base_digest="e" * 64))
    dora = make_new("dora", "w11")
    (dora.source / "adapter_config.json").write_text(json.dumps({"r": 16, "use_dora": True}))
    registry.register(dora)
    return registry


def parts(registry: Registry, name: str) -> list[tuple[str, float]]:
    return sorted((part.id, part.scale) for part in registry.resolve(name).parts)


def test_composition_is_a_version_that_keeps_its_parts(library: Registry, make_new: MakeNew) -> None:
    made = compose(library, "reports", ["a1*0.7", "a2"], actor="ada")
    assert (made.id, made.num_bytes, made.base_digest) == ("reports@v1", 0, "b" * 64)
    library.register(make_new("a1", "another"))  # `a1` means another version now
    assert parts(library, "reports") == [("a1@v1", 0.7), ("a2@v1", 1.0)]
    assert compose(library, "reports", ["a2", "a1@v1*0.7"]).id == "reports@v1"
    assert compose(library, "reports", ["a2", "a1*0.7"]).id == "reports@v2"
    (entry,) = read_audit(library.engine, "reports@v1")
    assert (entry.actor, entry.action, entry.details["parts"]) == ("ada", "compose", [part.to_json() for part in made.parts])


def test_its_digest_is_that_of_the_same_parts_in_a_request(library: Registry) -> None:
    made = compose(library, "reports", ["a2", "a1*0.7"])
    asked = sorted((library.resolve(name).digest, scale) for name, scale in (("a1", 0.7), ("a2", 1.0)))
    assert made.digest == Composition(tuple(Part(digest=digest, scale=scale) for digest, scale in asked)).digest


def test_compositions_in_it_become_their_parts(library: Registry) -> None:
    compose(library, "reports", ["a1*0.5", "a2"])
    compose(library, "more", ["reports*0.5", "a3"])
    assert parts(library, "more") == [("a1@v1", 0.25), ("a2@v1", 0.5), ("a3@v1", 1.0)]


def test_files_of_parts_are_what_is_verified(library: Registry) -> None:
    made = compose(library, "reports", ["a1*0.7", "a2"])
    library.verify_files(made)
    (library.resolve("a2").path / "adapter_model.safetensors").write_text("changed")
    with pytest.raises(IntegrityError, match="files of a2@v1"):
        library.verify_files(made)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["a1", "elsewhere"], "different bases: .*a1@v1 for bbbbbbbbbbbb"),
        (["a1", "dora*0.5"], "'dora@v1' is a DoRA adapter"),
        (["a1"], "'a1@v1' alone is itself"),
        (["a1*0.5", "a1@v1"], "'a1@v1' is in it twice"),
        ([f"a{number}" for number in range(1, 10)], "has 9 parts, at most 8"),
        (["a1*11", "a2"], r"'a1\*11' is not an adapter with a scale"),
        (["a1*", "a2"], r"'a1\*' is not an adapter with a scale"),
        (["a1", "dora", "elsewhere"], "DoRA adapter.*; parts were made for different bases"),
    ],
)
def test_what_does_not_go_together_is_refused_with_every_reason(library: Registry, named: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compose(library, "reports", named)
    assert library.history("reports") == ()


def test_unknown_adapters_and_names_that_cannot_be_are_refused(library: Registry) -> None:
    with pytest.raises(NotFoundError, match="no adapter 'nobody'"):
        compose(library, "reports", ["a1", "nobody"])
    with pytest.raises(UsageError, match="cannot name an adapter"):
        compose(library, "My Reports", ["a1*0.5"])
