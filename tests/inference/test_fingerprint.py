"""Fingerprints: rounding and other kernels pass, anything else does not; and every reason is told apart."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fakes import ARCHITECTURES, random_lora, tiny_base
from lorimer.errors import AdapterError, IntegrityError
from lorimer.inference.adapter_pool import AdapterPool
from lorimer.inference.batched_lora import BatchedLoRA
from lorimer.inference.decoder import Decoder, PlainDecoder, make_decoder
from lorimer.inference.fingerprint import (
    FINGERPRINT_FILE,
    Fingerprint,
    Prober,
    Proof,
    norms_of,
    probe_prompts,
    read_fingerprint,
    write_fingerprint,
)
from lorimer.model.attention import Segments
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAWeights, initialise, row_norms

DIGEST = "d" * 64


class Probed:
    """A base, its decoder, and what they say of adapters."""

    def __init__(self, base: Base, decoder: Decoder | None = None) -> None:
        self.base, self.decoder = base, decoder or make_decoder(base)
        self.prober = Prober(base, self.decoder)
        self.pool = AdapterPool(base, dense_weight=self.decoder.dense_weight)

    def norms(self, lora: LoRA) -> dict[str, float]:
        return norms_of(lora, self.decoder.dense_weight)

    def take(self, lora: LoRA) -> Fingerprint:
        return self.prober.take(DIGEST, self.pool.prepare(lora), self.norms(lora))

    def prove(self, lora: LoRA, recorded: Fingerprint, *, norms: dict[str, float] | None = None) -> Proof:
        return self.prober.prove(DIGEST, self.pool.prepare(lora), self.norms(lora) if norms is None else norms, recorded)


class DeafDecoder(PlainDecoder):
    """One that runs the base whatever adapter it is given, as engines do that do not know a layer's name."""

    def run(self, ids: Tensor, positions: Tensor, segments: Segments, lora: BatchedLoRA) -> Tensor:
        return super().run(ids, positions, segments, BatchedLoRA(None, {}, []))


def change_b(lora: LoRA, change: Callable[[Tensor], Tensor]) -> LoRA:
    """The adapter with other b's."""
    return replace(lora, weights={name: replace(own, b=change(own.b.detach())) for name, own in lora.weights.items()})


@pytest.fixture(scope="module")
def probed() -> Probed:
    return Probed(tiny_base())


@pytest.fixture(scope="module")
def lora(probed: Probed) -> LoRA:
    return random_lora(probed.base, seed=1)


@pytest.fixture(scope="module")
def recorded(probed: Probed, lora: LoRA) -> Fingerprint:
    return probed.take(lora)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_is_itself_through_either_decoder(architecture: str) -> None:
    base = tiny_base(architecture)
    probed, plainly, lora = Probed(base), Probed(base, PlainDecoder(base)), random_lora(base, seed=1)
    recorded = probed.take(lora)
    assert recorded.effect == "visible"
    for other in (probed, plainly):
        proof = other.prove(lora, recorded)
        assert proof.reason is None
        assert proof.difference < proof.allowed / 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_to_another_precision_passes_and_other_versions_do_not(architecture: str) -> None:
    base, coarse = tiny_base(architecture), tiny_base(architecture)
    coarse.model.to(torch.bfloat16)
    in_bf16 = Probed(coarse)
    for seed in range(1, 4):
        recorded = Probed(base).take(random_lora(base, seed=seed))
        proof = in_bf16.prove(random_lora(base, seed=seed), recorded)
        assert proof.reason is None
        assert proof.difference < proof.allowed / 1.5
        other = in_bf16.prove(random_lora(base, seed=seed + 10), recorded, norms=recorded.norms)
        assert other.reason is not None
        assert other.difference > 4 * other.allowed


def test_other_weights_are_seen_by_their_norms_before_anything_is_asked(probed: Probed, recorded: Fingerprint) -> None:
    proof = probed.prove(random_lora(probed.base, seed=2), recorded)
    assert "layers have other weights" in str(proof.reason)


def test_other_weights_are_seen_by_their_answers(probed: Probed, recorded: Fingerprint) -> None:
    proof = probed.prove(random_lora(probed.base, seed=2), recorded, norms=recorded.norms)
    assert "answers otherwise than when it was registered" in str(proof.reason)


def test_a_nearby_version_is_not_the_same(probed: Probed, lora: LoRA, recorded: Fingerprint) -> None:
    assert probed.prove(change_b(lora, lambda b: b * 1.01), recorded).reason is not None


def test_the_base_passed_off_as_the_adapter_is_seen(probed: Probed, lora: LoRA, recorded: Fingerprint) -> None:
    zeroed = change_b(lora, torch.zeros_like)
    assert "norm 0" in str(probed.prove(zeroed, recorded).reason)
    assert "answers as the bare base does" in str(probed.prove(zeroed, recorded, norms=recorded.norms).reason)


def test_an_engine_that_does_not_apply_it_is_seen(probed: Probed, lora: LoRA, recorded: Fingerprint) -> None:
    deaf = Probed(probed.base, DeafDecoder(probed.base))
    assert "it has no effect" in str(deaf.prove(lora, recorded).reason)


def test_an_identity_is_legal_and_told_apart_from_no_effect(
    probed: Probed, lora: LoRA, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = initialise(lora.config, probed.base.layers, 0)
    recorded = probed.take(identity)
    assert recorded.effect == "none"
    assert set(recorded.norms.values()) == {0.0}
    assert probed.prove(identity, recorded).reason is None
    assert probed.prove(lora, recorded, norms=recorded.norms).reason is not None
    assert not caplog.records
    assert Probed(probed.base, DeafDecoder(probed.base)).take(lora).effect == "hidden"
    assert "is not applied" in caplog.text


def test_a_small_effect_counts_by_its_weights_alone(probed: Probed, lora: LoRA) -> None:
    faint = change_b(lora, lambda b: b * 1e-4)
    recorded = probed.take(faint)
    assert recorded.effect == "hidden"
    assert probed.prove(faint, recorded).reason is None
    assert "other weights" in str(probed.prove(change_b(lora, torch.zeros_like), recorded).reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"adapter_digest": "e" * 64}, "fingerprint is of adapter 'eeee"),
        ({"base_digest": "e" * 64}, "fingerprint is of base 'eeee"),
        ({"template_digest": "e" * 64}, "fingerprint is of chat template 'eeee"),
        ({"dtype": "int3"}, "cannot be replayed"),
        ({"norms": {}}, "layers have other weights"),
    ],
)
def test_a_fingerprint_of_something_else_is_refused(
    probed: Probed, lora: LoRA, recorded: Fingerprint, change: dict[str, object], reason: str
) -> None:
    assert reason in str(probed.prove(lora, replace(recorded, **change)).reason)


def test_a_base_with_the_same_digest_and_other_answers_is_refused(lora: LoRA, recorded: Fingerprint) -> None:
    other = tiny_base(seed=1)
    other.digest = recorded.base_digest
    assert "the base itself answers otherwise" in str(Probed(other).prove(lora, recorded).reason)


def test_probes_read_as_other_tokens_are_refused(probed: Probed, lora: LoRA, recorded: Fingerprint) -> None:
    first = replace(recorded.probes[0], prompt_ids=(5, *recorded.probes[0].prompt_ids))
    changed = replace(recorded, probes=(first, *recorded.probes[1:]))
    assert "tokenizer changed" in str(probed.prove(lora, changed).reason)


@pytest.mark.parametrize(
    "probe",
    [
        {"prompt_ids": (9999,)},
        {"adapter": ((9999, -1.0),)},
        {"prompt_ids": (5,) * 2000},
        {"base": ((5, float("nan")),)},
        {"adapter": ((5, float("nan")),)},
    ],
)
def test_what_cannot_be_asked_or_compared_is_no_proof(probed: Probed, lora: LoRA, recorded: Fingerprint, probe: dict[str, object]) -> None:
    changed = replace(recorded, probes_version=0, probes=(replace(recorded.probes[0], **probe), *recorded.probes[1:]))
    assert probed.prove(lora, changed).reason is not None


def test_probes_of_another_version_are_replayed_as_they_are(probed: Probed, lora: LoRA, recorded: Fingerprint) -> None:
    assert probed.prove(lora, replace(recorded, probes_version=0, probes=recorded.probes[2:5])).reason is None


def test_answers_that_are_no_numbers_are_refused(probed: Probed, lora: LoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorimer.inference.adapter_pool.MAX_WEIGHT", 1e39)  # the pool would not let it in
    with pytest.raises(AdapterError, match="not finite"):
        probed.take(change_b(lora, lambda b: b * 1e30))


def test_norms_are_those_of_the_change(probed: Probed, lora: LoRA) -> None:
    for name, norm in probed.norms(lora).items():
        own = lora.weights[name]
        assert norm == pytest.approx(float((own.scale * own.b @ own.a).detach().norm()), rel=1e-5)


def test_norms_of_dora_are_those_of_the_whole_change(probed: Probed, lora: LoRA) -> None:
    name = next(iter(lora.weights))
    own, weight = lora.weights[name], probed.base.layers[name].dense_weight()
    magnitude = 1.5 * row_norms(weight)
    untrained = LoRAWeights(a=own.a, b=torch.zeros_like(own.b), scale=own.scale, magnitude=row_norms(weight))
    longer = replace(untrained, magnitude=magnitude)
    config = replace(lora.config, kind="dora")
    assert probed.norms(LoRA(config=config, weights={name: untrained}))[name] == 0
    assert probed.norms(LoRA(config=config, weights={name: longer}))[name] == pytest.approx(float(weight.norm()) / 2, rel=1e-4)


def test_dora_and_folded_anchors_are_proved_too(probed: Probed) -> None:
    config = replace(random_lora(probed.base).config, kind="pissa")
    pissa = initialise(config, probed.base.layers, 0)
    trained = change_b(pissa, lambda b: b + 0.2 * torch.sin(torch.arange(b.numel()).view_as(b)))
    recorded = probed.take(trained)
    assert recorded.effect == "visible"
    assert probed.prove(trained, recorded).reason is None
    assert max(probed.norms(pissa).values()) < 1e-3


def test_fingerprints_are_files(tmp_path: Path, recorded: Fingerprint) -> None:
    assert read_fingerprint(tmp_path) is None
    write_fingerprint(tmp_path, recorded)
    assert read_fingerprint(tmp_path) == recorded
    assert len((tmp_path / FINGERPRINT_FILE).read_bytes()) < 20_000


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"probes": 3}', "[" * 100_000, "\xff", json.dumps({"effect": "visible"}), "null"], ids=range(8)
)
def test_damaged_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FINGERPRINT_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_fingerprint(tmp_path)


@pytest.mark.parametrize("change", [{"probes": []}, {"extra": 1}, {"effect": "great"}, {"norms": {"a": "b"}}])
def test_files_of_another_form_are_refused(tmp_path: Path, recorded: Fingerprint, change: dict[str, object]) -> None:
    (tmp_path / FINGERPRINT_FILE).write_text(json.dumps({**asdict(recorded), **change}))
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_fingerprint(tmp_path)


def test_probes_are_few_and_short(probed: Probed) -> None:
    prompts = probe_prompts(probed.base.renderer)
    assert len(prompts) == 8
    assert sum(map(len, prompts)) < 300  # bytes here; a step of everybody's waits for them
