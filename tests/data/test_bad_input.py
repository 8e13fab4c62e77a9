"""Whatever strangers send, every row is kept, changed with a note, or left out with its line and reason; none vanishes."""

import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset
from lorimer.data.sources import MAX_LINE_BYTES
from lorimer.errors import ConfigError, DataError

GOOD = b'{"prompt": "Q", "completion": "A"}'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["", " ", "\0", "\ufeff", "A" * 40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["prompt", "completion", "messages", "text", "id", "tags", "language", "system", "rejected", "chosen", ""])
ROWS = st.dictionaries(KEYS, VALUES, max_size=5).map(lambda row: json.dumps(row).encode())
LINES = st.one_of(
    ROWS,
    st.binary(max_size=30),
    st.sampled_from([GOOD, b"", b"  ", b"{}", b"[]", b"null", b"NaN", b'{"prompt": NaN, "completion": "A"}', b"[" * 5_000]),
    st.sampled_from(
        [b'{"prompt": "\xff", "completion": "A"}', b'{"prompt": "\\ud800", "completion": "A"}', b'{"prompt": "Q", "prompt": 1}']
    ),
    st.text(min_size=1, max_size=9).map(lambda text: json.dumps({"prompt": text, "completion": text}).encode()),
).filter(lambda line: b"\n" not in line)


def left_out(dataset: Dataset) -> list[dict[str, str]]:
    return [json.loads(line) for line in (dataset.path / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]


def account(dataset: Dataset) -> Counter[str]:
    """Where every row went, counted by its source; and the card's own sums."""
    kept = Counter(row.source for row in (*dataset.train, *dataset.validation, *dataset.test))
    gone = Counter(row["source"] for row in left_out(dataset))
    accounting = dataset.card["accounting"]
    assert (accounting["num_kept"], sum(accounting["left_out"].values())) == (kept.total(), gone.total())
    assert accounting["num_read"] == kept.total() + gone.total()
    assert all(row["reason"] and row["rule"] for row in left_out(dataset))
    return kept + gone


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(lines=st.lists(LINES, max_size=15))
def test_no_line_of_jsonl_vanishes(lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("LORIMER_HOME", f"{folder}/home")
        path = Path(folder) / "t.jsonl"
        path.write_bytes(b"\n".join([b'{"prompt": "first of all", "completion": "A"}', *lines]))
        dataset = curate([path], name="t", skip_bad_rows=True)
        blank = {f"t.jsonl:{number}" for number, line in enumerate(lines, 2) if not line.decode(errors="replace").strip()}
        assert account(dataset) == Counter({f"t.jsonl:{number}" for number in range(1, len(lines) + 2)} - blank)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(rows=st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=12), indent=st.sampled_from([None, 1]))
def test_no_element_of_a_list_vanishes(rows: list[dict[str, Any]], indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("LORIMER_HOME", f"{folder}/home")
        path = Path(folder) / "t.json"
        path.write_text(json.dumps([{"prompt": "first of all", "completion": "A"}, *rows], indent=indent))
        dataset = curate([path], name="t", skip_bad_rows=True)
        assert account(dataset).total() == len(rows) + 1


@pytest.mark.parametrize("num_bytes", [MAX_LINE_BYTES + (2 << 20), 100_000_000])
def test_line_that_is_too_long_is_a_problem_and_the_rest_is_read(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"prompt": "')
        for _ in range(num_bytes >> 20):
            file.write(b"x" * (1 << 20))
        file.write(b'", "completion": "A"}\n{"prompt": "after", "completion": "A"}\n')
    dataset = curate([path], name="t", skip_bad_rows=True)
    assert [row.source for row in dataset.train] == ["t.jsonl:1", "t.jsonl:3"]
    assert "is longer than 32 MB" in dataset.card["problems"][0]["reason"]
    assert account(dataset).total() == 3


def test_long_line_at_the_end_and_a_long_cell(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD + b"\n" + b"[" * (MAX_LINE_BYTES + (2 << 20)))
    assert account(curate([path], name="t", skip_bad_rows=True)).total() == 2
    table = tmp_path / "t.csv"
    table.write_text('prompt,completion\nQ,A\n"' + "x" * 200_000 + '",A\nR,A\n')
    dataset = curate([table], name="t", skip_bad_rows=True)
    assert [problem["source"] for problem in dataset.card["problems"]] == ["t.csv:3"]
    assert account(dataset).total() == 3


def test_list_of_long_elements_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} " + "é\n" * 150_000, "completion": "A"} for number in range(9)] + [{"prompt": "short", "completion": "A"}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    dataset = curate([path], name="t")
    assert account(dataset).total() == 10
    assert dataset.card["accounting"]["left_out"] == {"drop_too_long": 9}


def many(num: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [{"prompt": f"{number} " + " ".join(str(rng.getrandbits(30)) for _ in range(12)), "completion": "A"} for number in range(num)]


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [json.dumps(row) for row in many(45_000)]
    lines[20_000] = "{"
    path.write_text("\n".join(lines))
    steps: list[str] = []
    alone = curate([path], name="t", skip_bad_rows=True, workers=1)
    several = curate([path], name="t", skip_bad_rows=True, workers=3, progress=lambda what, num: steps.append(what))
    assert alone == several
    assert [*dict.fromkeys(steps)] == ["reading t.jsonl", "comparing", "describing", "writing"]
    assert account(alone).total() == 45_000
    assert sorted(path.name for path in alone.path.parent.iterdir()) == sorted({alone.path.name, "t.json"})


def test_columns_that_come_late_are_read_all_the_same(tmp_path: Path) -> None:
    rows = many(5_000)
    rows[4_000]["language"] = "de"
    rows[4_500]["system"] = "Be brief."
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = curate([path], name="t")
    assert dataset.card["languages"] == {"de": 1}
    assert [row.source for row in (*dataset.train, *dataset.validation, *dataset.test) if row.messages[0].role == "system"] == [
        "t.jsonl:4501"
    ]
    assert account(dataset).total() == 5_000


def test_folder_is_read_in_the_order_of_its_names_and_says_what_it_left(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, text in (("b/t.jsonl", GOOD.decode()), ("a.csv", "prompt,completion\nR,A\n"), ("README.md", "#"), (".hidden/t.jsonl", "{")):
        (folder / name).write_text(text)
    dataset = curate([folder], name="t")
    assert [row.source for row in dataset.train] == ["a.csv:2", "b/t.jsonl:1"]
    assert dataset.card["curation"]["files_not_read"] == ["README.md"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match="check its permissions"):
        curate([path], name="t")


def test_request_log_says_why_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "2026-11-22.jsonl"
    path.write_text('{"id": "r", "model": "m", "adapter": "a@v1", "num_prompt_tokens": 3, "latency_seconds": 0.1}\n')
    with pytest.raises(ConfigError, match=r"is a log of requests: .* never what was said"):
        curate([path], name="t")
