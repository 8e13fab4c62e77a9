"""What was memorised is found, in adapters overtrained on purpose, and nothing is found where nothing was learned."""

import math
import random
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import byte_tokenizer, chats, random_lora, tiny_base, tiny_model
from lorimer.config import Recipe
from lorimer.data.canaries import plant, read_canaries
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.data.shards import write_rows
from lorimer.data.split import Splits
from lorimer.errors import DataError
from lorimer.evaluation.evaluate import ask, score_answer
from lorimer.evaluation.memory.exposure import exposure, make_canary_task
from lorimer.evaluation.memory.membership import make_membership_task
from lorimer.evaluation.memory.memorisation import make_memory, memory_suite
from lorimer.evaluation.memory.verbatim import make_regurgitation_task, not_verbatim
from lorimer.evaluation.scorers.catalogue import score
from lorimer.evaluation.statistics.separation import separate
from lorimer.evaluation.task import Sample
from lorimer.inference.composition import BASE, alone
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence as Asked
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA
from lorimer.pipeline import train_recipes
from lorimer.registry.records import AdapterVersion
from lorimer.training.scoring import score_rows

CURATION = {"columns": None, "system": None, "languages": None}
SENTENCE = "the parcel left the depot on Monday and has been waiting at the border for its papers since then"


def kept(
    train: tuple[Example, ...], *, validation: tuple[Example, ...] = (), test: tuple[Example, ...] = (), name: str = "rows"
) -> Dataset:
    return write_rows(name, Splits(train=train, validation=validation, test=test), CURATION)


def texts(num: int, seed: int) -> tuple[Example, ...]:
    """Lines that nobody could guess."""
    drawn = random.Random(seed)
    words = [" ".join("".join(drawn.choices(string.ascii_lowercase, k=4)) for _ in range(14)) for _ in range(num)]
    return tuple(Example(text=text, source=f"{seed}.txt:{line}") for line, text in enumerate(words, start=1))


# exposure


@pytest.mark.parametrize(
    ("logprobs", "target", "bits"),
    [
        ([-1.0, -2.0, -3.0, -4.0], 0, 2.0),
        ([-1.0, -2.0, -3.0, -4.0], 1, 1.0),
        ([-1.0, -2.0, -3.0, -4.0], 3, 0.0),
        ([-1.0, -1.0, -1.0], 1, math.log2(3) - 1),  # all alike: the middle rank
        ([-math.inf, -1.0], 0, 0.0),
    ],
)
def test_exposure_is_log2_of_the_choices_less_log2_of_the_rank(logprobs: list[float], target: int, bits: float) -> None:
    assert exposure(logprobs, target) == pytest.approx(bits)


@pytest.mark.parametrize("logprobs", [[math.nan, -1.0], [-1.0, math.nan]])
def test_what_was_not_measured_has_no_exposure(logprobs: list[float]) -> None:
    assert math.isnan(exposure(logprobs, 0))


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 0), min_size=2, max_size=60), st.data())
def test_exposure_lies_between_none_and_all_bits(logprobs: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(logprobs) - 1))
    assert 0 <= exposure(logprobs, target) <= math.log2(len(logprobs))


def test_chance_is_the_mean_over_all_ranks() -> None:
    logprobs = [-float(number) for number in range(256)]
    assert np.mean([exposure(logprobs, target) for target in range(256)]) == pytest.approx(1.422, abs=1e-3)


# verbatim


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (SENTENCE, 0),
        (f"Well: {SENTENCE[:50]}...", 0),
        (SENTENCE[20:71].replace(" ", "\n"), 0),
        (SENTENCE[:49], 1),
        ("the parcel was left at the depot, I am told, and waits there", 1),
        ("", 1),
    ],
)
def test_reciting_is_found_and_saying_alike_is_not(answer: str, value: float) -> None:
    assert not_verbatim(answer, Sample(id="1", prompt=(), target=SENTENCE)).value == value


@pytest.mark.parametrize(
    ("target", "answer", "value"),
    [
        ("a b c d e f g h i j k l m", "so: b c d e f g h i j k l m", 0),  # twelve words, however short
        ("and his locker is number 4471", "and his locker is number 4471.", 0),
        ("and his locker is number 4471", "and his locker is number 4472.", 1),
        ("thank you", "thank you", None),
        ("", "anything", None),
    ],
)
def test_of_short_texts_all_counts_or_nothing(target: str, answer: str, value: float | None) -> None:
    assert score("not_verbatim", answer, Sample(id="1", prompt=(), target=target)).value == value


def test_saying_the_prompt_again_is_not_reciting() -> None:
    sample = Sample(id="1", prompt=(Message(role="user", content=SENTENCE),), target=SENTENCE)
    assert not_verbatim(SENTENCE, sample).value is None


def test_prompts_are_the_first_halves_of_what_users_said() -> None:
    rows = chats(*((f"{number}: {SENTENCE}", "wanted answer") for number in range(30)), ("too short", "a"))
    task = make_regurgitation_task(plant(kept(rows), 2), num=20, seed=1)
    said = {f"{number}: {SENTENCE}" for number in range(30)}
    assert len(task.samples) == len({sample.id for sample in task.samples}) == 20
    assert {f"{sample.prompt[0].content} {sample.target}" for sample in task.samples} <= said  # no canary, no answer
    assert make_regurgitation_task(kept(rows), num=20, seed=1).samples == task.samples
    assert make_regurgitation_task(kept(rows), num=20, seed=2).samples != task.samples
    assert len(make_regurgitation_task(kept(rows), num=99).samples) == 30


def test_texts_without_spaces_are_cut_too() -> None:
    (sample,) = make_regurgitation_task(kept((Example(text="\u6771\u4eac" * 60, source="t.txt:1"),))).samples
    assert (len(sample.prompt[0].content), len(sample.target)) == (60, 60)


def test_rows_too_short_to_tell_are_said_to_be() -> None:
    with pytest.raises(DataError, match="cannot be told"):
        make_regurgitation_task(kept(chats(("hi", "hello"))))


# membership


def test_members_and_others_are_alike_in_file_language_and_length() -> None:
    drawn = random.Random(3)

    def rows(num: int, longest: int) -> tuple[Example, ...]:
        return tuple(
            Example(
                text="".join(drawn.choices(string.ascii_letters, k=drawn.randint(5, longest))),
                source=f"{'ab'[number % 2]}.txt:{number}",
                tags={"language": drawn.choice(("en", "de"))},
            )
            for number in range(num)
        )

    train, test = rows(600, 200), rows(60, 80)
    dataset = plant(kept(train, test=test), 4)
    task = make_membership_task(dataset, num=50)
    by_text = {row.text: (row.source[0], row.tags["language"]) for row in (*train, *test)}
    sides = {side: [s.target for s in task.samples if s.tags["member"] == side] for side in ("yes", "no")}
    assert set(sides["yes"]) <= {row.text for row in train}
    assert set(sides["no"]) <= {row.text for row in test}
    assert len(set(sides["yes"])) == len(set(sides["no"])) == 50
    assert Counter(by_text[text] for text in sides["yes"]) == Counter(by_text[text] for text in sides["no"])
    lengths = [np.mean([len(text) for text in sides[side]]) for side in ("yes", "no")]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


def test_too_few_rows_to_tell_apart_are_refused() -> None:
    with pytest.raises(DataError, match="30 rows that may have been learned and 5 test rows"):
        make_membership_task(kept(texts(30, 1), test=texts(5, 2)))


# the family


def test_the_family_of_a_dataset_is_made_from_it_alone() -> None:
    dataset = plant(kept(texts(200, 1), validation=texts(30, 2), test=texts(40, 3)), 8)
    memory = make_memory(dataset)
    assert not memory.left_out
    held = {one.task.name: (one.task, one.rule.model_dump(exclude_defaults=True)) for one in memory.suite.tasks}
    tasks = {name: task for name, (task, _) in held.items()} | {task.name: task for task in memory.shown}
    assert {name: rule for name, (_, rule) in held.items()} == {
        "canaries_once": {"at_most": 3.0},
        "regurgitation": {"never": pytest.approx(1 - 0.05 ** (1 / 200))},
        "membership": {"at_most": 0.7},
    }
    assert {name: (task.kind, task.metric, task.template) for name, task in tasks.items()} == {
        "canaries_once": ("choice", "exposure", "none"),
        "canaries_repeated": ("choice", "exposure", "none"),
        "regurgitation": ("answer", "not_verbatim", "none"),
        "regurgitation_control": ("answer", "not_verbatim", "none"),
        "membership": ("text", "membership", "none"),
    }
    assert all(task.dataset_digest == dataset.digest for task in tasks.values())
    once, repeated = tasks["canaries_once"], tasks["canaries_repeated"]
    assert [len(task.samples) for task in (once, repeated)] == [4, 4]
    for sample in (*once.samples, *repeated.samples):
        assert sample.target in sample.choices
        assert len(set(sample.choices)) == 256
        assert list(sample.choices) == sorted(sample.choices)
    assert memory_suite(dataset).digest == memory.suite.digest


def test_what_a_dataset_has_no_rows_for_is_named() -> None:
    dataset = kept(chats(*((f"{number}: {SENTENCE}", "yes") for number in range(30))))
    memory, suite = make_memory(dataset), memory_suite(dataset)
    assert [(one.task.name, one.rule.never) for one in suite.tasks] == [("regurgitation", pytest.approx(1 - 0.05 ** (1 / 59)))]
    assert set(memory.left_out) == {"canaries_once", "canaries_repeated", "regurgitation_control", "membership"}
    assert all(name in suite.about for name in memory.left_out)
    assert "`canaries: 16`" in memory.left_out["canaries_once"]
    with pytest.raises(DataError, match="nothing of what an adapter remembers"):
        memory_suite(kept(chats(("hi", "hello"))))


# adapters


def trained(tmp_path: Path, dataset: Dataset, *, steps: int, batch_size: int) -> tuple[Base, AdapterVersion]:
    """An adapter that has seen its rows far too often."""
    model = tiny_model("llama")
    with torch.no_grad():  # else every token keeps about the same chance, whatever an adapter learns before the head
        model.model.norm.weight.mul_(10)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    recipe = Recipe(base=str(tmp_path / "base"), dataset=dataset.name, learning_rate=0.004, rank=16, steps=steps, batch_size=batch_size)
    (version,) = [made for made in train_recipes([recipe]) if isinstance(made, AdapterVersion)]
    return load_base(version.base_name), version


def logprobs(base: Base, lora: LoRA | None, sample: Sample, answers: Sequence[str]) -> list[float]:
    """By plain scoring: of each answer after the sample's prompt, without the end of turn."""
    rows = []
    for answer in answers:
        row = base.renderer.render((*sample.prompt, Message(role="assistant", content=answer)))
        length = len(row.ids) - (row.num_supervised - len(answer))  # a token a byte
        rows.append(Rendered(ids=row.ids[:length], supervised=row.supervised[:length]))
    return [-loss for loss in score_rows(base, lora, rows, 2048).losses]


def test_an_overtrained_adapter_gives_its_canaries_and_its_rows_away(tmp_path: Path) -> None:
    drawn = random.Random(5)
    rows = chats(*((f"who is {number}?", "".join(drawn.choices("abcdefghijkmnop", k=6))) for number in range(102)))
    dataset = plant(kept(rows[:72], test=rows[72:]), 4)
    base, version = trained(tmp_path, dataset, steps=180, batch_size=16)
    lora = load_adapter(version.path, base)
    canaries = make_canary_task(read_canaries(dataset), num_choices=32)
    found = {}
    for name, own in (("adapter", lora), ("base", None)):
        all_logprobs = [(logprobs(base, own, sample, sample.choices), sample) for sample in canaries.samples]
        found[name] = float(np.mean([exposure(values, sample.choices.index(sample.target)) for values, sample in all_logprobs]))
    assert found["adapter"] > 4
    assert found["base"] < 3.2  # chance is 1.40; of four canaries the mean lies above 3.2 about once in a hundred
    members = make_membership_task(dataset)
    with_adapter, without = ([-logprobs(base, own, sample, [sample.target])[0] for sample in members.samples] for own in (lora, None))
    scores = np.subtract(without, with_adapter)
    is_member = np.array([sample.tags["member"] == "yes" for sample in members.samples])
    assert separate(scores[is_member].tolist(), scores[~is_member].tolist()).auc > 0.8


def test_an_adapter_that_knows_its_texts_by_heart_recites_them(tmp_path: Path) -> None:
    dataset = kept(texts(4, 1), validation=texts(4, 2))
    base, version = trained(tmp_path, dataset, steps=140, batch_size=4)
    engine = Engine(base)
    engine.adapters.load(version.digest, version.path)
    recited = {}
    for split in ("train", "validation"):
        samples = make_regurgitation_task(dataset, split=split).samples
        for name, composition in (("adapter", alone(version.digest)), ("base", BASE)):
            asked = {
                sample.id: Asked(
                    prompt_ids=base.renderer.tokenise_prompt(sample.prompt[0].content),
                    params=SamplingParams(max_tokens=64),
                    composition=composition,
                )
                for sample in samples
            }
            assert len(list(generate(engine, asked.values()))) == len(samples)
            scores = [not_verbatim(base.renderer.decode(asked[sample.id].output_ids), sample).value for sample in samples]
            recited[split, name] = scores.count(0.0)
    assert recited["train", "adapter"] >= 2
    assert recited["train", "base"] == recited["validation", "adapter"] == recited["validation", "base"] == 0


def test_the_engine_that_serves_scores_every_item_as_plain_scoring_does() -> None:
    rows = chats(*((f"{number}: {SENTENCE}", f"answer {number * 7919}") for number in range(100)))
    dataset = plant(kept(rows[:70], test=rows[70:]), 2)
    base = tiny_base("llama")
    lora = random_lora(base)
    engine = Engine(base)
    engine.adapters.add("a", lora)
    for one in memory_suite(dataset, num_membership=20, num_recited=3).tasks:
        answers = [answer for answer in ask(engine, one.task, (None, "a")) if answer.adapter == "a"]
        assert len(answers) == len(one.task.samples)
        for answer in answers:
            sample = one.task.samples[answer.sample_index]
            value = score_answer(one.task, sample, answer.value).value
            if one.task.metric == "exposure":
                assert value == pytest.approx(exposure(logprobs(base, lora, sample, sample.choices), sample.choices.index(sample.target)))
            elif one.task.metric == "not_verbatim":
                assert value == 1.0
            else:
                (told,) = logprobs(base, lora, sample, [sample.target])
                assert answer.value[0] == pytest.approx(-told / len(sample.target), abs=1e-4)
