"""A step in one call beside the calls it stands for: the same numbers, and a row's the same whatever is beside it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fakes import WIDE, byte_tokenizer, random_lora, tiny_model
from lorimer.inference import compiled_product
from lorimer.inference.compiled_product import MAX_ROWS, CompiledProduct, faster
from lorimer.inference.composition import BASE, Composition, Part, alone
from lorimer.inference.decoder import FusedDecoder
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.kernels import Kernels, load_kernels
from lorimer.inference.kv_cache import Work
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.base import Base
from lorimer.model.packed import PackedLinear

FUSED = ("llama", "qwen2", "qwen3", "gemma3", "mistral")


@pytest.fixture
def kernels() -> Kernels:
    found = load_kernels()
    if found is None or not found.can_decode or not PackedLinear([torch.zeros(64, 64).bfloat16()], [None]).is_packed:
        pytest.skip("the processor has no products of bfloat16, or there is no C compiler")
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_engine(architecture: str) -> Engine:
    """Over a random base in bfloat16 whose widths are those of panels; adapters of several ranks, one of them not in every layer."""
    model = tiny_model(architecture, sizes=WIDE).to(torch.bfloat16)
    base = Base(name=f"wide-{architecture}", digest=f"{0:064x}", model=model, tokenizer=byte_tokenizer())
    engine = Engine(base, EngineConfig(cache_bytes=4_000_000))
    for seed, rank in enumerate((2, 16, 5)):
        targets = None if seed else tuple(name for name in base.layers if "down" in name or "k_proj" in name)
        engine.adapters.add(f"{seed}", random_lora(base, seed=seed, rank=rank, targets=targets, size=0.2))
    return engine


def decoding(engine: Engine) -> list[Work]:
    """Sequences of several lengths and adapters, about to decode; and a prompt that has just come."""
    mixed = Composition((Part(digest="0", scale=0.5), Part(digest="2", scale=-1.0)))
    for n, composition in ((3, BASE), (30, alone("0")), (9, alone("1")), (70, mixed), (5, alone("1")), (41, BASE), (2, alone("2"))):
        params = SamplingParams(max_tokens=9, ignore_eos=True)
        engine.add(Sequence(prompt_ids=tuple(range(5, 5 + n)), params=params, composition=composition))
    for _ in range(3):
        engine.step()
    engine.add(Sequence(prompt_ids=tuple(range(100, 112)), params=params, composition=alone("1")))
    works = engine.scheduler.schedule()
    assert [work.num_tokens for work in works] == [1] * 7 + [12]
    return works


def rows_of(works: list[Work]) -> Iterator[tuple[Work, slice]]:
    """Each with its rows of the step."""
    row = 0
    for work in works:
        yield work, slice(row, row + work.num_tokens)
        row += work.num_tokens


@torch.inference_mode()
def hidden_of(engine: Engine, works: list[Work], *, is_compiled: bool) -> Tensor:
    """Last hidden states; computing a step again writes the same keys and values again."""
    assert isinstance(engine.decoder, FusedDecoder)
    kept = engine.decoder.compiled
    engine.decoder.compiled = kept if is_compiled else None
    try:
        return engine._run(works)
    finally:
        engine.decoder.compiled = kept


@pytest.mark.parametrize("architecture", FUSED)
def test_a_step_in_one_call_is_that_of_many(kernels: Kernels, architecture: str) -> None:
    engine = make_engine(architecture)
    assert isinstance(engine.decoder, FusedDecoder)
    assert engine.decoder.compiled is not None
    works = decoding(engine)
    found, wanted = (hidden_of(engine, works, is_compiled=is_compiled).float() for is_compiled in (True, False))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # two right ways to round to bfloat16
    for work, rows in rows_of(works):
        if work.sequence.composition != BASE:
            plain = [Work(sequence=_without(work.sequence), start=work.start, stop=work.stop)]
            assert float((hidden_of(engine, plain, is_compiled=True).float() - wanted[rows]).norm() / wanted[rows].norm()) > 0.04


def _without(sequence: Sequence) -> Sequence:
    """The same without its adapters."""
    other = Sequence(prompt_ids=sequence.prompt_ids, params=sequence.params, composition=BASE)
    other.output_ids, other.blocks = sequence.output_ids, sequence.blocks
    return other


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2"])
def test_a_row_is_bit_for_bit_the_row_alone_on_any_number_of_threads(kernels: Kernels, threads: None, architecture: str) -> None:
    engine = make_engine(architecture)
    works = decoding(engine)
    together = hidden_of(engine, works, is_compiled=True)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        assert torch.equal(hidden_of(engine, works, is_compiled=True), together)
        for work, rows in rows_of(works):
            assert torch.equal(hidden_of(engine, [work], is_compiled=True), together[rows])


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 18, 19, MAX_ROWS, MAX_ROWS + 1])
def test_product_equals_the_packed_one(kernels: Kernels, rows: int) -> None:
    x = torch.randn(rows, 192).bfloat16()
    packed = PackedLinear([torch.randn(64, 192).bfloat16(), torch.randn(128, 192).bfloat16()], [torch.randn(64).bfloat16(), None])
    product = faster(packed, kernels)
    assert isinstance(product, CompiledProduct)
    torch.testing.assert_close(product(x), packed(x), rtol=2e-2, atol=2e-2)
    assert rows > MAX_ROWS or torch.equal(product(x[-1:])[0], product(x)[-1])


@pytest.mark.parametrize("shape", [(96, 64), (64, 65)])
def test_weights_of_other_widths_are_left_to_torch(kernels: Kernels, shape: tuple[int, int]) -> None:
    packed = PackedLinear([torch.randn(shape).bfloat16()], [None])
    assert faster(packed, kernels) is packed


def test_weights_that_lie_otherwise_are_left_to_torch(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    others, right = list[PackedLinear](), compiled_product.product_of

    def product_of_others(packed: PackedLinear) -> compiled_product.Product:
        others.append(PackedLinear([torch.randn(sum(packed.out_features), packed.in_features).bfloat16()], [None]))
        return right(others[-1])

    monkeypatch.setattr(compiled_product, "product_of", product_of_others)
    engine = make_engine("llama")
    assert isinstance(engine.decoder, FusedDecoder)
    assert engine.decoder.compiled is None
    assert engine.multiply_head is engine.head
