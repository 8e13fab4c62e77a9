"""Tasks from datasets: ids that follow from content, digests that follow from what is asked."""

from pathlib import Path

import pytest

from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.errors import DataError
from lorimer.evaluation.task import task_from_dataset


def example(question: str, answer: str = "yes", **tags: str) -> Example:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(messages=messages, source=f"rows.jsonl:{len(question)}", tags=tags)


def dataset(*test: Example, validation: tuple[Example, ...] = ()) -> Dataset:
    return Dataset(name="helpdesk", digest="d" * 64, train=(), validation=validation, test=test, card={}, path=Path("unused"))


def test_task_asks_the_prompt_and_wants_the_answer() -> None:
    row = example("Where is my card?", "card_arrival", language="en")
    task = task_from_dataset(dataset(row), "label")
    assert (task.name, task.metric, task.split, task.dataset_digest) == ("helpdesk", "label", "test", "d" * 64)
    (sample,) = task.samples
    assert (sample.id, sample.target, sample.tags) == (row.digest[:16], "card_arrival", {"language": "en"})
    assert sample.prompt == (Message(role="user", content="Where is my card?"),)


def test_task_takes_another_split() -> None:
    task = task_from_dataset(dataset(validation=(example("a"),)), "exact", split="validation")
    assert task.split == "validation"
    assert len(task.samples) == 1


def test_task_digest_follows_what_is_asked() -> None:
    task = task_from_dataset(dataset(example("a"), example("bb")), "exact")
    assert task.digest == task_from_dataset(dataset(example("a"), example("bb")), "exact").digest
    others = [
        task_from_dataset(dataset(example("a"), example("bb")), "contains"),
        task_from_dataset(dataset(example("a")), "exact"),
        task_from_dataset(dataset(example("a"), example("bb", "no")), "exact"),
    ]
    assert len({task.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((), "test split of dataset 'helpdesk' is empty"),
        ((example("a"), example("a", language="en"), example("bb")), r"equal rows.*rows.jsonl:1, rows.jsonl:1\)"),
        ((Example(text="plain", source="book.txt:7"),), "plain text.*book.txt:7"),
    ],
)
def test_task_refuses_rows_that_would_mislead(rows: tuple[Example, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        task_from_dataset(dataset(*rows), "exact")
