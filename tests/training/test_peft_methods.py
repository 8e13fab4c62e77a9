"""The compared methods learn, leave the base alone, start from the text they are given, judge as decoding does, and load from disk."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel

from fakes import byte_tokenizer, tiny_model
from lorimer.config import Method
from lorimer.data.example import Message
from lorimer.errors import TrainingError, UsageError
from lorimer.model.chat import Rendered, Renderer
from lorimer.training.loop import StepMetrics
from lorimer.training.peft_methods import build_peft, default_learning_rate, exact_answers, load_peft, mean_loss, save_peft, train_peft

METHODS: tuple[Method, ...] = ("prompt_tuning", "prefix_tuning", "bottleneck")
VIRTUAL: tuple[Method, ...] = METHODS[:2]
LEARNING_RATES = {"prompt_tuning": 0.3, "prefix_tuning": 0.3, "bottleneck": 3e-2}  # a tiny random base needs more than a real one
QUESTIONS = [("q", "x"), ("blue", "sea"), ("green", "grass"), ("a much longer question than the others", "x"), ("white", "snow")]
TEXT_IDS = tuple(range(40, 50))
both_architectures = pytest.mark.parametrize("architecture", ["gemma3", "qwen2"])
all_methods = pytest.mark.parametrize("method", METHODS)


def rows_of(questions: list[tuple[str, str]] = QUESTIONS) -> list[Rendered]:
    renderer = Renderer(byte_tokenizer())
    return [renderer.render([Message(role="user", content=q), Message(role="assistant", content=a)]) for q, a in questions]


def sharp_model(architecture: str, gain: float = 8.0) -> PreTrainedModel:
    """A tiny model with larger weights, as a random one's logits hardly move."""
    model = tiny_model(architecture, attention="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
    return model


def build(architecture: str, method: Method, *, seed: int = 0, init_text_ids: tuple[int, ...] | None = None) -> PeftModel:
    model = sharp_model(architecture)
    return build_peft(model, method, num_virtual_tokens=10, bottleneck_width=16, init_text_ids=init_text_ids, seed=seed)


def run(model: PeftModel, method: Method, rows: list[Rendered], num_steps: int) -> list[StepMetrics]:
    return list(train_peft(model, rows, pad_id=0, batch_size=5, num_steps=num_steps, learning_rate=LEARNING_RATES[method], seed=0))


def trained_of(model: PeftModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


@all_methods
@both_architectures
def test_loss_falls_and_the_base_stays_as_it_was(architecture: str, method: Method) -> None:
    model = build(architecture, method)
    metrics = run(model, method, rows_of(), num_steps=12)
    assert metrics[-1].loss < metrics[0].loss - 0.4
    before = sharp_model(architecture).state_dict()
    after = {name.replace("base_layer.", ""): weight for name, weight in model.get_base_model().state_dict().items()}
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@all_methods
def test_metrics_count_the_rows_tokens_and_neither_padding_nor_virtual_ones(method: Method) -> None:
    model, rows = build("qwen2", method), rows_of()
    expected = mean_loss(model, rows, pad_id=0, batch_size=5)
    metrics = run(model, method, rows, num_steps=3)
    assert [m.step for m in metrics] == [1, 2, 3]
    assert {m.num_tokens for m in metrics} == {sum(len(row.ids) for row in rows)}
    assert {m.num_supervised for m in metrics} == {sum(row.num_supervised for row in rows)}
    assert metrics[0].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", VIRTUAL)
@both_architectures
def test_virtual_tokens_start_as_the_text_itself(architecture: str, method: Method) -> None:
    base, total, num_supervised = sharp_model(architecture), 0.0, 0
    for row in rows_of():
        ids, learned = torch.tensor([*TEXT_IDS, *row.ids]), torch.tensor([False] * len(TEXT_IDS) + list(row.supervised))[1:]
        logits = base(input_ids=ids[None]).logits[0, :-1]
        total += float(F.cross_entropy(logits[learned], ids[1:][learned], reduction="sum").detach())
        num_supervised += int(learned.sum())
    model = build(architecture, method, init_text_ids=TEXT_IDS)
    assert mean_loss(model, rows_of(), pad_id=0, batch_size=2) == pytest.approx(total / num_supervised, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@all_methods
@both_architectures
def test_exact_answers_are_those_greedy_decoding_gives(architecture: str, method: Method) -> None:
    model, rows = build(architecture, method), rows_of()
    run(model, method, rows[:1], num_steps=50)  # one row by heart, the others unseen
    decoded = []
    for row in rows:
        prompt = torch.tensor([row.ids[: -row.num_supervised]])
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=row.num_supervised, do_sample=False, pad_token_id=0
        )
        decoded.append(tuple(output[0, prompt.shape[1] :].tolist()) == row.ids[-row.num_supervised :])
    assert decoded[0]
    assert not all(decoded)
    assert exact_answers(model, rows, pad_id=0, batch_size=2) == decoded


@all_methods
def test_padding_changes_nothing(method: Method) -> None:
    model, rows = build("gemma3", method), rows_of()
    together, alone = (mean_loss(model, rows, pad_id=0, batch_size=size) for size in (5, 1))
    assert together == pytest.approx(alone, rel=1e-5)


@all_methods
@both_architectures
def test_saved_files_load_with_equal_logits(architecture: str, method: Method, tmp_path: Path) -> None:
    model, ids = build(architecture, method), torch.arange(20, 40)[None]
    run(model, method, rows_of(), num_steps=3)
    save_peft(model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = load_peft(sharp_model(architecture), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


@all_methods
def test_seed_decides_where_training_starts_and_touches_no_other_chance(method: Method) -> None:
    models = [sharp_model("qwen2") for _ in range(3)]
    state = torch.random.get_rng_state()
    first, again, other = (
        trained_of(build_peft(model, method, init_text_ids=None, seed=seed)) for model, seed in zip(models, (0, 0, 1), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@all_methods
def test_bfloat16_bases_are_trained_in_float32(method: Method) -> None:
    model = build_peft(sharp_model("gemma3").bfloat16(), method, num_virtual_tokens=4, init_text_ids=None, seed=0)
    metrics = run(model, method, rows_of(), num_steps=6)
    assert {tensor.dtype for tensor in trained_of(model)} == {torch.float32}
    assert metrics[-1].loss < metrics[0].loss


def test_loss_that_is_not_finite_stops_the_run_with_its_step() -> None:
    model = build("qwen2", "prompt_tuning")
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: .*not both finite"):
        run(model, "prompt_tuning", rows_of(), num_steps=1)


def test_rows_without_anything_to_learn_are_refused() -> None:
    model = build("qwen2", "prompt_tuning")
    rows = [*rows_of(), Rendered(ids=(2, 50), supervised=(True, False))]
    with pytest.raises(TrainingError, match=r"1 of 6 rows .*row 5"):
        run(model, "prompt_tuning", rows, num_steps=1)
    with pytest.raises(TrainingError, match="no rows"):
        exact_answers(model, [], pad_id=0, batch_size=1)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lora' does not run through PEFT: .*prefix_tuning"):
        build("qwen2", "lora")
    with pytest.raises(UsageError, match="no virtual tokens"):
        build("qwen2", "bottleneck", init_text_ids=TEXT_IDS)
    with pytest.raises(UsageError, match="holds no tokens"):
        build("qwen2", "prefix_tuning", init_text_ids=())


@pytest.mark.filterwarnings("error::FutureWarning")
@all_methods
def test_building_and_loading_give_no_notices(method: Method, tmp_path: Path) -> None:
    save_peft(build("qwen2", method), tmp_path / "adapter")
    load_peft(sharp_model("qwen2"), tmp_path / "adapter")


@all_methods
def test_default_learning_rates_exist(method: Method) -> None:
    assert 0 < default_learning_rate(method) < 1
