"""A dataset is found by name and digest, and refused once its files differ from what the digest says."""

import json
from pathlib import Path

import pytest

from lorimer.data.card import build_card
from lorimer.data.dataset import Dataset, list_datasets, read_dataset, write_dataset
from lorimer.data.example import Example, Message
from lorimer.data.merkle import proof, root, verify_proof
from lorimer.data.split import SPLITS, Splits
from lorimer.errors import ConfigError, IntegrityError, NotFoundError
from lorimer.storage import digest_of, write_json, write_jsonl

PARTS = {"problems": [], "num_problems": 0, "languages": {}, "answers": [], "lengths": {}, "samples": []}


def write(name: str, answer: str = "A", rejected: str | None = None) -> Dataset:
    messages = (Message(role="user", content="Q é"), Message(role="assistant", content=answer))
    splits = Splits(
        train=(Example(messages=messages, rejected=rejected, source="f:1", tags={"language": "en"}),),
        validation=(),
        test=(Example(text="t", source="f:2"),),
    )
    return write_dataset(name, splits, build_card(name, splits, curation={}, sources=[], findings=[], problems=[]))


def test_dataset_is_read_back_by_name_and_by_digest() -> None:
    written = write("support")
    assert read_dataset("support") == read_dataset(written.digest) == read_dataset(written.digest[:16]) == written


def test_dataset_folder_holds_rows_card_and_report(home: Path) -> None:
    written = write("support")
    assert written.path == home / "datasets" / written.digest[:16]
    files = {path.name for path in written.path.iterdir()}
    assert files == {"train.jsonl", "validation.jsonl", "test.jsonl", "card.json", "card.html"}
    assert json.loads((home / "datasets" / "support.json").read_text()) == {"digest": written.digest, "folder": written.digest[:16]}


def test_equal_content_has_an_equal_digest_and_another_name_another() -> None:
    assert write("support").digest == write("support").digest
    assert write("support").digest != write("sales").digest
    assert write("support").card["splits"] == write("sales").card["splits"]


def test_rejected_answers_are_kept_and_covered_by_the_digest() -> None:
    written = write("support", rejected="B")
    assert read_dataset("support").train[0].rejected == "B"
    assert len({write("support", rejected=answer).digest for answer in (None, "B", "C")}) == 3
    rows = written.path / "train.jsonl"
    rows.write_text(rows.read_text().replace('"rejected":"B"', '"rejected":"D"'))
    with pytest.raises(IntegrityError):
        read_dataset(written.digest)


def test_name_moves_on_and_the_earlier_dataset_stays() -> None:
    first, second = write("support", "A"), write("support", "B")
    assert read_dataset("support") == second
    assert read_dataset(first.digest).train == first.train


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train.jsonl", lambda text: text.replace('"A"', '"B"')),
        ("train.jsonl", lambda text: text.replace('"en"', '"de"')),
        ("train.jsonl", lambda text: ""),
        ("train.jsonl", lambda text: "{"),
        ("train.jsonl", lambda text: "[]\n"),
        ("card.json", lambda text: text.replace("support", "other")),
        ("card.json", lambda text: "[]"),
    ],
)
def test_changed_file_is_an_integrity_error(file: str, change) -> None:  # type: ignore[no-untyped-def]
    path = write("support").path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(IntegrityError, match=r"dataset 'support' in .* is damaged"):
        read_dataset("support")


def test_damaged_folder_is_not_taken_for_the_dataset_written_again() -> None:
    (write("support").path / "test.jsonl").unlink()
    with pytest.raises(IntegrityError, match="remove that folder and curate the dataset again"):
        write("support")


def test_damaged_pointer_is_an_integrity_error(home: Path) -> None:
    write("support")
    (home / "datasets" / "support.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"support.json' cannot be read"):
        read_dataset("support")


def test_unknown_name_lists_those_that_are_there() -> None:
    with pytest.raises(NotFoundError, match="'suport'; there are none yet"):
        read_dataset("suport")
    write("support")
    write("sales")
    with pytest.raises(NotFoundError, match=r"'suport'; there are sales, support \(did you mean 'support'\?\)"):
        read_dataset("suport")


@pytest.mark.parametrize("name", ["../support", "", "a/b", "0" * 64, "0" * 16, "A"])
def test_strange_names_are_not_found(name: str) -> None:
    with pytest.raises(NotFoundError):
        read_dataset(name)


@pytest.mark.parametrize("name", ["../support", "", "Support", "-x", "x" * 64, "a b", "support\n"])
def test_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="dataset name"):
        write(name)


def test_datasets_are_listed_by_name() -> None:
    written = write("support")
    write("sales")
    summaries = list_datasets()
    assert [summary.name for summary in summaries] == ["sales", "support"]
    assert summaries[1].num_examples == {"train": 1, "validation": 0, "test": 1}
    assert (summaries[1].digest, summaries[1].path) == (written.digest, written.path)


def test_list_names_a_dataset_whose_folder_is_gone(home: Path) -> None:
    write("support").path.rename(home / "elsewhere")
    with pytest.raises(IntegrityError, match="dataset 'support'"):
        list_datasets()


def test_digest_is_a_merkle_root_in_which_every_row_can_be_proven() -> None:
    written = write("support")
    rows = [*written.train, *written.validation, *written.test]
    leaves = [bytes.fromhex(digest_of(written.card)), *(bytes.fromhex(row.record_digest) for row in rows)]
    assert written.digest == root(leaves).hex()
    for index, leaf in enumerate(leaves):
        assert verify_proof(leaf, index, len(leaves), proof(leaves, index), bytes.fromhex(written.digest))


def test_dataset_of_an_older_version_is_read_and_checked_as_it_was(home: Path) -> None:
    # as version 0.1 wrote it: a digest over one JSON value, no licence, no accounting
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "source": "f:1", "tags": {}}
    card = {
        "card_version": 1,
        "name": "old",
        "curation": {},
        "splits": {name: {"num_examples": int(name == "train"), "digest": "0" * 64} for name in SPLITS},
    }
    digest = digest_of({"card": card, "rows": {"train": [digest_of(row)], "validation": [], "test": []}})
    folder = home / "datasets" / digest[:16]
    write_json(folder / "card.json", card)
    for name in SPLITS:
        write_jsonl(folder / f"{name}.jsonl", [row] if name == "train" else [])
    write_json(home / "datasets" / "old.json", {"digest": digest, "folder": digest[:16]})
    read = read_dataset("old")
    assert (read.digest, read.train[0].answer, read.train[0].licence) == (digest, "A", "")
    again = write_dataset("newer", Splits(train=read.train, validation=(), test=()), {**read.card, "findings": [], "sources": []} | PARTS)
    assert (again.card["card_version"], read_dataset("newer").digest) == (2, again.digest)
    (folder / "train.jsonl").write_text(json.dumps({**row, "source": "f:2"}) + "\n")
    with pytest.raises(IntegrityError, match="were changed"):
        read_dataset("old")
