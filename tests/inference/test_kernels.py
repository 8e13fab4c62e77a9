"""kernels.c beside torch: the same numbers, in any shape, and a row's the same whatever is beside it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import ARCHITECTURES, random_lora, tiny_base
from lorimer.inference import kernels as compiled
from lorimer.inference.batched_lora import BatchedLoRA, RowRange, group_of
from lorimer.inference.blocks import BLOCK_LEN
from lorimer.inference.compiled_rows import CompiledRows
from lorimer.inference.composition import Composition, Part, alone
from lorimer.inference.decoder import _turned
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.few_rows import FewRows
from lorimer.inference.kernels import Kernels, load_kernels
from lorimer.inference.norm import Norm, add_and_norm
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.attention import AttentionOptions
from lorimer.model.mlp import GELU_TANH, SILU, Activation

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture
def kernels() -> Kernels:
    found = load_kernels()
    if found is None:
        pytest.skip("there is no C compiler")
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "width"), [(1, 1, 640), (7, 1, 24), (3, 4, 256), (5, 3, 33)])
def test_norm_equals_torchs(kernels: Kernels, dtype: torch.dtype, rows: int, heads: int, width: int) -> None:
    x, gain = torch.randn(rows, heads * width + 8).to(dtype)[:, : heads * width], torch.randn(width)
    x = x if heads == 1 else x.view(rows, heads, width)
    wanted = F.rms_norm(x.float(), (width,), gain, 1e-6).to(dtype)
    torch.testing.assert_close(kernels.rms_norm(x, gain, 1e-6), wanted, rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("has_norm", [False, True])
def test_sum_and_norm_equal_torchs(kernels: Kernels, dtype: torch.dtype, rows: int, has_norm: bool) -> None:
    hidden, mixed = torch.randn(2, rows, 72).to(dtype)
    own, norm = (Norm(torch.randn(72), 1e-6, None) for _ in range(2))
    summed, normed = add_and_norm(hidden, mixed, own if has_norm else None, norm)
    found = hidden.clone()
    found, found_normed = add_and_norm(found, mixed, own if has_norm else None, replace(norm, kernels=kernels))
    torch.testing.assert_close(found, summed, rtol=TOLERANCE[dtype], atol=1e-6)
    torch.testing.assert_close(found_normed, normed, rtol=TOLERANCE[dtype], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [GELU_TANH, SILU])
def test_gate_equals_torchs_beyond_what_exp_can_hold(kernels: Kernels, dtype: torch.dtype, activation: Activation) -> None:
    extremes = torch.tensor([-200.0, 200.0, -12.0, 0.0]).repeat(3, 1)
    gate, up = torch.cat([extremes, torch.randn(3, 204)], 1).to(dtype).split(104, 1)
    found = kernels.gate(gate, up, is_silu=activation is SILU)
    torch.testing.assert_close(found, activation.forward(gate) * up, rtol=TOLERANCE[dtype], atol=1e-6)


def test_gate_passes_on_what_is_not_a_number(kernels: Kernels) -> None:
    gate = torch.tensor([[float("nan"), float("inf"), 1.0] * 7])
    found = kernels.gate(gate, torch.ones_like(gate), is_silu=True)
    torch.testing.assert_close(found, F.silu(gate), equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary_len", [5, 512, 513, 1600, 2048])
def test_likeliest_is_the_first_maximum_as_torch_finds_it(kernels: Kernels, dtype: torch.dtype, vocabulary_len: int) -> None:
    logits = torch.randn(6, vocabulary_len).to(dtype)
    logits[1] = float("-inf")
    logits[2, -2:] = 9.0
    logits[3, vocabulary_len // 2] = float("inf")
    logits[4] = -3.0
    logits[5, : vocabulary_len - 1] = float("-inf")
    assert kernels.likeliest(logits).tolist() == logits.float().argmax(-1).tolist()


def attended(query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
    """query (H, D), keys and values (K, G, D) -> (H, D), in float32, one head at a time."""
    out, per_group = [], len(query) // keys.shape[1]
    for head, q in enumerate(query.float()):
        k, v = keys[:, head // per_group].float(), values[:, head // per_group].float()
        first = max(0, len(k) - options.sliding_window) if options.sliding_window else 0
        scores = k[first:] @ q * options.scaling
        scores = scores if options.softcap is None else options.softcap * torch.tanh(scores / options.softcap)
        out.append(scores.softmax(0) @ v[first:])
    return torch.stack(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "turned", "window", "softcap"),
    [(4, 1, 256, 256, None, None), (4, 2, 16, 16, 40, None), (6, 3, 20, 8, None, 30.0), (2, 2, 130, 130, 1, None)],
)
def test_attention_equals_torchs(
    kernels: Kernels, dtype: torch.dtype, has_norm: bool, heads: int, groups: int, width: int, turned: int, window: int | None,
    softcap: float | None,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    lens = [1, BLOCK_LEN, BLOCK_LEN + 1, 3 * BLOCK_LEN - 5]
    tables = [[7], [3], [2, 9], [8, 1, 5]]
    options = AttentionOptions(scaling=width**-0.5, sliding_window=window, softcap=softcap)
    pools = tuple(torch.randn(groups, 10, BLOCK_LEN, width).to(dtype) for _ in range(2))
    fused = torch.randn(len(lens), (heads + 2 * groups) * width).to(dtype)
    sizes = [heads * width, groups * width, groups * width]
    query, key, value = (part.view(len(lens), -1, width) for part in fused.split(sizes, 1))
    cos, sin = (torch.randn(len(lens), 1, turned).to(dtype) for _ in range(2))
    norm = Norm(torch.rand(width) + 0.5, 1e-6, None) if has_norm else None
    found = FewRows(kernels, tables, lens).attend(query, key, value, (cos, sin), (norm, norm), pools, options)  # type: ignore[arg-type]
    query, key = (_turned(part if norm is None else norm(part), cos, sin) for part in (query, key))
    for row, (table, length) in enumerate(zip(tables, lens, strict=True)):
        keys, values = (torch.cat([pool[:, block] for block in table], 1)[:, :length].transpose(0, 1) for pool in pools)  # (K, G, D)
        torch.testing.assert_close(keys[-1], key[row], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(values[-1], value[row])
        wanted = attended(query[row], keys, values, options).flatten()
        torch.testing.assert_close(found[row].float(), wanted, rtol=TOLERANCE[dtype], atol=3 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_rows_are_bit_for_bit_those_alone(kernels: Kernels, dtype: torch.dtype) -> None:
    base = tiny_base()
    group = group_of(base.layers, *list(base.layers)[:3])
    rows = CompiledRows(kernels, [group], dtype)
    loras = {f"{n}": random_lora(base, seed=n, rank=rank).to(dtype=dtype, device=base.device) for n, rank in enumerate((3, 16, 8))}
    mixed = Composition((Part(digest="0", scale=0.3), Part(digest="2", scale=-1.0)))
    asked = [alone("0"), alone(None), mixed, alone("1"), alone("0")]
    x, outputs = torch.randn(len(asked), group.in_features).to(dtype), [torch.randn(len(asked), n).to(dtype) for n in group.out_features]
    ranges = [RowRange(start=n, stop=n + 1, composition=one) for n, one in enumerate(asked)]
    together = BatchedLoRA(rows, loras, ranges).add(group, x, [y.clone() for y in outputs])
    for row, one in enumerate(asked):
        own = [y[row : row + 1].clone() for y in outputs]
        own = list(BatchedLoRA(rows, loras, [RowRange(start=0, stop=1, composition=one)]).add(group, x[row : row + 1], own))
        assert all(torch.equal(y[row : row + 1], alone_y) for y, alone_y in zip(together, own, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_engine_answers_the_same_with_and_without(kernels: Kernels, architecture: str) -> None:
    answers = []
    for uses_kernels in (True, False):
        base = tiny_base(architecture)
        engine = Engine(base, EngineConfig(max_tokens_per_step=16, uses_kernels=uses_kernels))
        for seed, rank in enumerate((2, 5)):
            engine.adapters.add(f"{seed}", random_lora(base, seed=seed, rank=rank))
        asked = [
            Sequence(prompt_ids=tuple(range(5, 5 + n)), params=SamplingParams(max_tokens=40, ignore_eos=True), composition=alone(digest))
            for n, digest in ((3, None), (30, "0"), (9, "1"), (50, "0"))
        ]
        list(generate(engine, asked))
        answers.append([sequence.output_ids for sequence in asked])
    assert answers[0] == answers[1]


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(compiled, "COMPILERS", ("no-such-compiler",))
    load_kernels.cache_clear()
    try:
        assert load_kernels() is None
        assert Engine(tiny_base()).kernels is None
    finally:
        load_kernels.cache_clear()


def test_a_library_that_cannot_run_is_not_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LORIMER_HOME", str(home / "other"))
    monkeypatch.setattr(compiled, "TRY", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    load_kernels.cache_clear()
    try:
        assert load_kernels() is None
        assert not list(home.rglob("*.so"))
    finally:
        load_kernels.cache_clear()


def test_the_source_has_no_warnings(tmp_path: Path, kernels: Kernels) -> None:
    command = ["cc", "-Wall", "-Wextra", "-Werror", str(compiled.SOURCES[0]), "-o", str(tmp_path / "kernels.so"), *compiled.FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
