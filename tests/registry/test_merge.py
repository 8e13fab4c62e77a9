"""Merges: the changes they combine, against the plain sum and against PEFT; and the versions they make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.utils.merge_utils
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from typer.testing import CliRunner

from fakes import random_lora, tiny_base, tiny_model
from lorimer.cli.main import app
from lorimer.errors import IntegrityError, NotFoundError, UsageError
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base
from lorimer.model.changes import drop, factorise, read_factors, trim
from lorimer.model.lora import LoRA
from lorimer.registry.audit import read_audit
from lorimer.registry.compositions import compose
from lorimer.registry.merge import Merged, MergeRecipe, merge_adapters
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry

Register = Callable[..., AdapterVersion]
LAYER = "model.layers.0.self_attn.q_proj"
MLP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base("llama")


@pytest.fixture
def register(registry: Registry, base: Base, tmp_path: Path) -> Register:
    """Adapters of several ranks on several layers."""

    def make(name: str, seed: int, *, rank: int = 4, targets: tuple[str, ...] = (LAYER, MLP), **other: Any) -> AdapterVersion:
        lora = random_lora(base, seed=seed, rank=rank, targets=targets)
        digests = {"base_digest": base.digest, "template_digest": base.renderer.template_digest, "dataset_digest": "d" * 64, **other}
        folder = tmp_path / "runs" / name
        save_adapter(lora, folder, base, Lock(base_name=base.name, run_id="run-1", **digests))
        numbers = {"rank": rank, "alpha": 2.0 * rank, "num_parameters": lora.num_parameters}
        new = NewVersion(name=name, source=folder, base_name=base.name, dataset_name="t", run_id="run-1", **digests, **numbers)
        return registry.register(new)

    return make


def deltas(lora: LoRA) -> dict[str, Tensor]:
    return {name: own.scale * (own.b @ own.a).detach() for name, own in lora.weights.items()}


def merge(registry: Registry, *names: str, **recipe: Any) -> Merged:
    return merge_adapters(registry, names, name="merged", recipe=MergeRecipe(**recipe), actor="ada")


@pytest.mark.parametrize("weights", [None, (0.7, -1.5)])
def test_linear_is_the_sum_of_the_changes(registry: Registry, register: Register, base: Base, weights: tuple[float, ...] | None) -> None:
    """Different ranks and different layers; read back as any adapter is."""
    first, second = register("a", 1, rank=4), register("b", 2, rank=2, targets=(LAYER,))
    made = merge(registry, "a", "b", method="linear", weights=weights)
    found = deltas(load_adapter(made.version.path, base))
    one, two = (deltas(load_adapter(version.path, base)) for version in (first, second))
    w1, w2 = weights or (1.0, 1.0)
    torch.testing.assert_close(found[LAYER], w1 * one[LAYER] + w2 * two[LAYER], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[MLP], w1 * one[MLP], atol=1e-5, rtol=0)
    assert (made.version.rank, made.kept_share) == (6, 1.0)
    assert json.loads((made.version.path / "adapter_config.json").read_text())["rank_pattern"] == {MLP: 4}


def test_linear_of_peft_is_not_the_sum(registry: Registry, register: Register, base: Base) -> None:
    """It adds A to A and B to B: what comes of it is far from the sum of the changes, which is what ours and its `cat` are."""
    paths = [register("a", 1).path, register("b", 2).path]
    wanted = sum(deltas(load_adapter(path, base))[LAYER] for path in paths)
    assert torch.dist(of_peft(paths, "cat")[LAYER], wanted) < 1e-4
    assert torch.dist(of_peft(paths, "linear")[LAYER], wanted) > 0.5 * torch.linalg.norm(wanted)


def of_peft(paths: list[Path], kind: str, **options: Any) -> dict[str, Tensor]:
    """What PEFT makes of adapters, as changes by layer."""
    model = PeftModel.from_pretrained(tiny_model("llama", attention="eager"), paths[0], adapter_name="a0")
    for number, path in enumerate(paths[1:], start=1):
        model.load_adapter(path, adapter_name=f"a{number}")
    names = [f"a{number}" for number in range(len(paths))]
    model.add_weighted_adapter(names, options.pop("weights", [1.0] * len(paths)), "merged", combination_type=kind, **options)
    layers = dict(model.base_model.model.named_modules())
    return {name: layers[name].get_delta_weight("merged").detach() for name in (LAYER, MLP)}


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ({"method": "linear", "weights": (0.7, 1.2)}, "cat"),
        ({"method": "svd", "weights": (0.7, 1.2)}, "svd"),
        ({"method": "svd", "rank": 3}, "svd"),
        ({"method": "ties", "weights": (0.7, 1.2), "density": 0.3}, "ties_svd"),
        ({"method": "ties", "density": 0.9, "rank": 8}, "ties_svd"),
        ({"method": "dare", "weights": (0.7, 1.2), "density": 0.4}, "dare_linear_svd"),
    ],
)
def test_merge_is_that_of_peft(
    registry: Registry, register: Register, base: Base, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], kind: str
) -> None:
    versions = [register("a", 1, rank=4), register("b", 2, rank=6)]
    made = deltas(load_adapter(merge(registry, "a", "b", **recipe).version.path, base))
    options = {key: recipe[key] for key in ("density",) if key in recipe} | ({"svd_rank": recipe["rank"]} if "rank" in recipe else {})
    if kind.startswith("dare"):  # PEFT draws from torch's global generator: give it our draws instead
        drawn = iter([(version, layer) for layer in (LAYER, MLP) for version in versions])

        def ours(tensor: Tensor, density: float, rescale: bool) -> Tensor:
            version, layer = next(drawn)
            return drop(tensor, density, key=f"0 {version.digest} {layer}")

        monkeypatch.setattr(peft.utils.merge_utils, "random_pruning", ours)
    theirs = of_peft([version.path for version in versions], kind, weights=list(recipe.get("weights", (1.0, 1.0))), **options)
    for layer in (LAYER, MLP):
        torch.testing.assert_close(made[layer], theirs[layer], atol=2e-5, rtol=1e-4)


def test_trim_keeps_the_largest() -> None:
    assert trim(torch.tensor([[1.0, -5.0], [2.0, 0.5]]), 0.5).tolist() == [[0.0, -5.0], [2.0, 0.0]]


def test_drop_is_fair_and_repeatable() -> None:
    ones = torch.ones(400, 400)
    dropped = drop(ones, 0.3, key="k")
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.3])
    assert torch.equal(dropped, drop(ones, 0.3, key="k"))
    assert not torch.equal(dropped, drop(ones, 0.3, key="other"))


def test_large_changes_are_factorised_by_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randn(120, 6, generator=torch.Generator().manual_seed(1)) @ torch.randn(6, 100)
    monkeypatch.setattr("lorimer.model.changes.EXACT_SVD", 50)
    factors, kept, whole = factorise(delta, 6)
    torch.testing.assert_close(factors.delta(), delta, atol=1e-3, rtol=1e-3)
    assert kept / whole == pytest.approx(1, abs=1e-5)


def test_share_that_a_rank_holds_is_told(registry: Registry, register: Register, base: Base) -> None:
    paths = [register("a", 1).path, register("b", 2).path]
    made = merge(registry, "a", "b", method="svd", rank=2)
    wanted = {layer: sum(deltas(load_adapter(path, base))[layer] for path in paths) for layer in (LAYER, MLP)}
    found = deltas(load_adapter(made.version.path, base))
    lost = sum(float((found[layer] - wanted[layer]).square().sum()) for layer in wanted)
    assert made.kept_share == pytest.approx(1 - lost / sum(float(own.square().sum()) for own in wanted.values()), abs=1e-4)
    assert made.kept_share < 0.95


def test_merge_is_a_version_with_parents_and_a_record(registry: Registry, register: Register) -> None:
    first, second = register("a", 1), register("b", 2)
    version = merge(registry, "a", "b@v1", method="dare", seed=3).version
    assert (version.id, version.parents, version.dataset_name) == ("merged@v1", (first.digest, second.digest), "t")
    assert registry.resolve("merged") == version
    assert merge(registry, "a", "b", method="dare", seed=3).version == version  # the same bytes
    assert merge(registry, "a", "b", method="dare", seed=4).version.id == "merged@v2"
    (entry,) = read_audit(registry.engine, "merged@v1")
    assert (entry.actor, entry.action, entry.details["merge"]["seed"]) == ("ada", "merge", 3)
    assert entry.details["parents"] == [first.digest, second.digest]


def test_compositions_in_it_count_as_their_parts(registry: Registry, register: Register) -> None:
    register("a", 1), register("b", 2), register("c", 3)
    compose(registry, "both", ["a*0.5", "b"])
    made = merge(registry, "both", "c", method="linear", weights=(2.0, 1.0))
    plain = merge(registry, "a", "b", "c", method="linear", weights=(1.0, 2.0, 1.0))
    ours, theirs = read_factors(made.version.path)[LAYER].delta(), read_factors(plain.version.path)[LAYER].delta()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("names", "recipe", "said"),
    [
        (["a"], {}, "one adapter alone is itself"),
        (["a", "a@v1"], {}, "'a@v1' is in it twice"),
        (["a", "b"], {"weights": (1.0,)}, "2 adapters have 1 weights"),
        (["a", "b"], {"weights": (1.0, float("nan"))}, "not a finite number"),
        (["a", "b"], {"density": 0.0}, "density 0 is none"),
        (["a", "b"], {"rank": 0, "density": 2.0}, "density 2 is none.*rank 0 is none"),
        (["a", "elsewhere"], {}, "different bases: .*a@v1 for 000000000000"),
        (["a", "template"], {}, "different chat templates"),
    ],
)
def test_what_does_not_go_together_is_refused_with_every_reason(
    registry: Registry, register: Register, names: list[str], recipe: dict[str, Any], said: str
) -> None:
    register("a", 1), register("b", 2)
    register("elsewhere", 3, base_digest="e" * 64), register("template", 4, template_digest="e" * 64)
    with pytest.raises(UsageError, match=said):
        merge(registry, *names, **{"method": "linear", **recipe})
    assert registry.history("merged") == ()


def test_command(registry: Registry, register: Register) -> None:
    register("a", 1), register("b", 2)
    command = ["adapters", "merge", "a", "b", "--name", "merged", "--method", "ties", "--weights", "0.5,1", "--json"]
    made = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    assert (made["id"], made["rank"], len(made["parents"])) == ("merged@v1", 4, 2)
    assert 0 < made["kept_share"] < 1
    for more, said in ((["--method", "magic"], "no way to merge"), (["--weights", "much"], "are no weights")):
        refused = CliRunner().invoke(app, ["adapters", "merge", "a", "b", "--name", "merged", *more])
        assert isinstance(refused.exception, UsageError)
        assert said in str(refused.exception)


def test_changed_and_unknown_adapters_are_refused(registry: Registry, register: Register) -> None:
    register("a", 1)
    with pytest.raises(NotFoundError):
        merge(registry, "a", "nobody", method="linear")
    (register("b", 2).path / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="files of b@v1"):
        merge(registry, "a", "b", method="linear")
