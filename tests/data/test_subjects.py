"""A subject has one random key, whoever asks first; once destroyed, nothing leads back."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from lorimer.config import ColumnNames
from lorimer.data.curate import curate
from lorimer.data.subjects import destroy_keys, find_key, metadata, subject_keys
from lorimer.database import begin_write, open_database


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The home's database, with the table of subjects."""
    engine = open_database()
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_keys_are_random_kept_and_each_subjects_own(engine: Engine) -> None:
    first = subject_keys(engine, ["ann", "bob", "ann"])
    assert first.keys() == {"ann", "bob"}
    assert len({*first.values()}) == 2
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in first.values())
    assert subject_keys(engine, ["bob", "cy"]) | first == first | subject_keys(engine, ["cy"])
    assert (find_key(engine, "ann"), find_key(engine, "dan")) == (first["ann"], None)
    assert subject_keys(engine, []) == {}


def test_destroyed_key_is_not_found_and_not_made_again(engine: Engine) -> None:
    old = subject_keys(engine, ["ann"])["ann"]
    with begin_write(engine) as connection:
        assert destroy_keys(connection, [old]) == 1
        assert destroy_keys(connection, [old]) == 0
    assert find_key(engine, "ann") is None
    assert subject_keys(engine, ["ann"])["ann"] != old


def test_many_subjects_at_once_get_one_key_each(engine: Engine) -> None:
    wanted = [f"subject {number}" for number in range(1_200)]
    found: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: found.append(subject_keys(engine, wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(keys == found[0] for keys in found)


def test_curated_rows_carry_keys_and_never_the_subjects(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"q{number},a,customer-{number % 3},{'CC BY 4.0' if number % 2 else ''}\n" for number in range(12))
    path.write_text("prompt,completion,who,terms\n" + rows + "q,a,,\n")
    columns = ColumnNames(subject="who", licence="terms")
    dataset = curate([path], name="t", columns=columns, licence="internal", consent="support")
    every = (*dataset.train, *dataset.validation, *dataset.test)
    assert {row.subject for row in every} == {*subject_keys(engine, [f"customer-{number}" for number in range(3)]).values(), ""}
    assert not [file for file in dataset.path.iterdir() if b"customer-" in file.read_bytes()]
    card = dataset.card
    assert (card["licences"], card["consents"]) == ({"internal": 7, "CC BY 4.0": 6}, {"support": 13})
    assert (card["num_subjects"], card["num_with_subject"]) == (3, 12)
    assert curate([path], name="t", columns=columns, licence="internal", consent="support").digest == dataset.digest
