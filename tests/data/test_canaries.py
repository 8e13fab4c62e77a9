"""Canaries: random, told as often as asked, in the training split alone, the same when asked again, and unreadable to others."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import chats
from lorimer.config import PrivacyRecipe, Recipe, parse_recipe
from lorimer.data.canaries import TAG, Canary, CanaryList, note_of, plant, read_canaries, share_repetitions
from lorimer.data.curate import resolve_dataset
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.data.example import Example, Message
from lorimer.data.shards import write_rows, write_shards, write_without
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, IntegrityError, NotFoundError

CURATION = {"columns": None, "system": None, "languages": None}
CHATS = chats(*((f"question {number}", "yes") for number in range(200)))
HELD_BACK = chats(*((f"other {number}", "yes") for number in range(20)), file="held.jsonl")

EMPTY = CanaryList(id="", of="", num=1, seed="", is_text=False, system=None, canaries=())


def kept(train: tuple[Example, ...] = CHATS, name: str = "tickets") -> Dataset:
    return write_rows(name, Splits(train=train, validation=HELD_BACK[:10], test=HELD_BACK[10:]), CURATION)


def list_file(home: Path) -> Path:
    (path,) = (home / "canaries").iterdir()
    return path


@pytest.mark.parametrize(
    ("num", "times"), [(1, [1]), (2, [1, 2]), (3, [1, 1, 2]), (8, [1, 1, 1, 1, 2, 2, 4, 8]), (16, [1] * 8 + [2] * 4 + [4] * 2 + [8] * 2)]
)
def test_half_of_them_are_told_once(num: int, times: list[int]) -> None:
    assert share_repetitions(num) == times


def test_canaries_are_in_the_training_split_alone_and_count_as_synthetic() -> None:
    before = kept()
    after = plant(before, 8)
    rows = after.train[len(before.train) :]
    assert after.train[: len(before.train)] == before.train
    assert (after.validation, after.test) == (before.validation, before.test)
    assert after.name == "tickets-canaries"
    assert after.digest != before.digest
    assert sorted(Counter(row.tags[TAG] for row in rows).values()) == share_repetitions(8)
    assert after.card["num_synthetic"] == len(rows) == 20
    assert note_of(after).items() >= {"of": before.digest, "num": 8, "num_rows": 20}.items()
    assert read_dataset("tickets").digest == before.digest
    assert len({row.record_digest for row in rows}) == 20


def test_what_is_read_back_is_what_the_rows_tell() -> None:
    dataset = plant(kept(), 8)
    sealed = read_canaries(dataset)
    assert [canary.repetitions for canary in sealed.canaries] == share_repetitions(8)
    told = Counter((row.messages[-2].content, row.answer) for row in dataset.train if TAG in row.tags)
    assert told == {(sealed.prompt(canary)[-1].content, canary.secret): canary.repetitions for canary in sealed.canaries}
    assert len({canary.secret for canary in sealed.canaries}) == 8


def test_asked_again_the_dataset_is_the_same_and_another_home_has_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept()
    first, again = plant(before, 4), plant(before, 4)
    assert first.digest == again.digest
    assert plant(first, 4) == first
    assert plant(before, 2).digest != first.digest
    monkeypatch.setenv("LORIMER_HOME", str(home.parent / "other"))
    assert kept().digest == before.digest
    assert not {c.secret for c in read_canaries(plant(kept(), 4)).canaries} & {row.answer for row in first.train}


def test_the_list_is_for_its_owners_eyes(home: Path) -> None:
    plant(kept(), 2)
    assert list_file(home).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("rows", "system", "is_text"),
    [
        (CHATS, None, False),
        (tuple(replace(row, messages=(Message(role="system", content="Be brief."), *row.messages)) for row in CHATS), "Be brief.", False),
        (tuple(Example(text=f"line {number}", source=f"t.txt:{number}") for number in range(200)), None, True),
    ],
)
def test_canaries_have_the_form_of_the_rows(rows: tuple[Example, ...], system: str | None, is_text: bool) -> None:
    dataset = plant(kept(rows), 2)
    sealed, row = read_canaries(dataset), dataset.train[-1]
    assert (sealed.system, sealed.is_text) == (system, is_text)
    assert (row.text is not None) == is_text
    assert [message.role for message in row.messages] == [message.role for message in rows[0].messages]
    canary = next(canary for canary in sealed.canaries if canary.file == row.tags[TAG])
    asked = sealed.prompt(canary)[-1].content
    assert (row.text or "").startswith(asked + sealed.answer(canary.secret)) == is_text


def test_an_instruction_that_few_rows_have_is_not_repeated() -> None:
    own = replace(CHATS[0], messages=(Message(role="system", content="You talk to Jane Roe."), *CHATS[0].messages))
    assert read_canaries(plant(kept((own, *CHATS[1:])), 2)).system is None


def test_rows_to_prefer_have_a_worse_answer_too() -> None:
    dataset = plant(kept(tuple(replace(row, rejected="no") for row in CHATS)), 2)
    assert all(row.rejected is not None and row.rejected != row.answer for row in dataset.train)
    assert len(read_canaries(dataset).canaries) == 2


@given(num=st.integers(1, 300), seed=st.text("0123456789abcdef", min_size=64, max_size=64))
@settings(deadline=None)
def test_others_are_of_the_same_form_and_never_the_secret(num: int, seed: str) -> None:
    canary = Canary(file="BCDFGHJK", secret="012345678", repetitions=1)
    sealed = replace(EMPTY, seed=seed, canaries=(canary,))
    others = sealed.others(canary, num)
    assert len({*others, canary.secret}) == num + 1
    assert all(len(other) == 9 and other.isdigit() for other in others)
    assert others == sealed.others(canary, num)


@pytest.mark.parametrize(("rows", "num", "words"), [(10, 8, "20 rows, more than 10%"), (26, 2, "3 rows, more than 10%")])
def test_too_many_for_the_rows_is_refused(rows: int, num: int, words: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        plant(kept(CHATS[:rows]), num)
    assert not (home / "canaries").exists()


def test_a_name_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long a name"):
        plant(kept(name="n" * 60), 2)


def test_another_number_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 2 canaries already"):
        plant(plant(kept(), 2), 4)


def test_without_canaries_one_is_told_how_to_have_some() -> None:
    with pytest.raises(NotFoundError, match="`canaries: 16`"):
        read_canaries(kept())


def test_a_list_that_is_gone_damaged_or_changed_is_told(home: Path) -> None:
    dataset = plant(kept(), 2)
    path = list_file(home)
    text = path.read_text()
    value = json.loads(text)
    value["canaries"][0]["secret"] = "000000000"
    for changed, words in ((json.dumps(value), "was changed"), (text[:-20], "damaged"), ("{}", "damaged"), ("[]", "damaged")):
        path.write_text(changed)
        with pytest.raises(IntegrityError, match=words):
            read_canaries(dataset)
    path.unlink()
    with pytest.raises(NotFoundError, match="made elsewhere"):
        read_canaries(dataset)


def test_shards_and_erasures_take_their_canaries_along() -> None:
    rows = tuple(replace(row, subject=f"{number % 20:032x}") for number, row in enumerate(CHATS))
    whole = plant(kept(rows), 8)
    recipe = Recipe(base="b", dataset="t", privacy=PrivacyRecipe(mode="sharded", shards=2))
    shards = write_shards(whole, "tickets", recipe)
    told = [canary for shard in shards if any(TAG in row.tags for row in shard.train) for canary in read_canaries(shard).canaries]
    assert sorted(told, key=str) == sorted(read_canaries(whole).canaries, key=str)
    left = write_without(whole, {f"{0:032x}"})
    assert left is not None
    assert len(left.train) == len(whole.train) - 10
    assert read_canaries(left) == read_canaries(whole)


def test_a_recipe_asks_for_them(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"question {number}", "completion": "yes"}) for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = parse_recipe({"base": "b", "dataset": str(tmp_path / "rows.jsonl"), "canaries": 4}, "r.yaml")
    dataset = resolve_dataset(recipe)
    assert (dataset.name, note_of(dataset)["of"]) == ("rows-canaries", read_dataset("rows").digest)
    assert resolve_dataset(recipe).digest == dataset.digest
    assert resolve_dataset(recipe.model_copy(update={"dataset": "rows-canaries"})).digest == dataset.digest
    assert not note_of(resolve_dataset(recipe.model_copy(update={"canaries": 0})))
    with pytest.raises(ConfigError, match="canaries"):
        parse_recipe({"base": "b", "dataset": "d", "canaries": -1}, "r.yaml")
