"""Every line of a file is an example or a problem with its place; strangers' bytes never crash the reader."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.config import ColumnNames
from lorimer.data.reading import ReadResult, read_rows
from lorimer.errors import ConfigError, DataError, LorimerError, NotFoundError

GOOD = b'{"prompt": "Q", "completion": "A"}'


def read(folder: Path, name: str, data: bytes | str, columns: ColumnNames | None = None, system: str | None = None) -> ReadResult:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_rows(path, columns, system)


def lines_of(result: ReadResult) -> tuple[list[int], list[int]]:
    """Lines of examples, lines of problems."""
    return tuple([int(row.source.rpartition(":")[2]) for row in rows] for rows in (result.examples, result.problems))  # type: ignore[return-value]


def test_jsonl_examples_carry_file_and_line(tmp_path: Path) -> None:
    result = read(tmp_path, "t.jsonl", b"\xef\xbb\xbf" + GOOD + b"\r\n\n  \n" + GOOD)
    assert [example.source for example in result.examples] == ["t.jsonl:1", "t.jsonl:4"]
    assert (result.shape, result.columns, result.problems) == ("prompt/completion", {"prompt": "prompt", "completion": "completion"}, ())


def test_csv_of_two_answers_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    columns = ColumnNames(prompt="ask", chosen="better", rejected="worse")
    result = read(tmp_path, "t.csv", "ask,better,worse,id\nQ,A,B,7\nQ,A,A,8\n", columns)
    assert (result.shape, result.columns) == ("preference", {"completion": "better", "rejected": "worse", "prompt": "ask"})
    assert (lines_of(result), result.unused) == (([2], [3]), {"id": 1})
    assert "'better' and 'worse' are the same answer" in result.problems[0].reason
    with pytest.raises(ConfigError, match=r"of no shape that is known: .*under `columns:`, which also takes `chosen` and `rejected`"):
        read(tmp_path, "t.csv", "ask,better,worse\nQ,A,B\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "Q", ', "not valid JSON (Expecting property name"),
        (b'{"prompt": "\xff", "completion": "A"}', "not valid UTF-8"),
        (b'["prompt"]', "not an object with keys, but a list"),
        (b"{}", "not an object with keys, but an empty one"),
        (b"NaN", "but a number"),
        (b'{"prompt": "Q", "prompt": "R", "completion": "A"}', "key 'prompt' stands twice"),
        (b'{"prompt": "\\ud800", "completion": "A"}', "half of a surrogate pair"),
        (b'{"prompt": "Q", "completion": "A", "\\uDC00": 1}', "half of a surrogate pair"),
        (b'{"prompt": "Q", "completion": null}', "'completion' is null"),
        (b'{"text": "t"}', "has 'text', but prompt/completion rows"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"prompt": ' + b"9" * 5_000 + b"}", "not valid JSON (Exceeds"),
    ],
)
def test_jsonl_broken_line_is_a_problem_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    result = read(tmp_path, "t.jsonl", GOOD + b"\n" + line + b"\n" + GOOD)
    assert lines_of(result) == ([1, 3], [2])
    assert reason in result.problems[0].reason


def test_jsonl_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    assert read(tmp_path, "t.jsonl", '{"text": "\\ud83d\\ude00"}').examples[0].text == "😀"


def test_jsonl_shape_is_that_of_the_first_row_which_has_one(tmp_path: Path) -> None:
    result = read(tmp_path, "t.jsonl", b'{"x": 1}\n{"text": null, "prompt": "Q", "completion": "A"}\n')
    assert result.shape == "prompt/completion"
    assert lines_of(result) == ([2], [1])


def test_jsonl_optional_columns_may_appear_later(tmp_path: Path) -> None:
    result = read(tmp_path, "t.jsonl", GOOD + b'\n{"prompt": "Q", "completion": "A", "language": "de", "id": 7}\n')
    assert [example.tags for example in result.examples] == [{}, {"language": "de"}]
    assert result.unused == {"id": 1}


def test_json_list_elements_carry_the_line_they_begin_on(tmp_path: Path) -> None:
    rows = [{"text": "a\nb"}, {"text": ""}, {"text": "c"}]
    result = read(tmp_path, "t.json", "\n" + json.dumps(rows, indent=2))
    assert lines_of(result) == ([3, 9], [6])


def test_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    assert lines_of(read(tmp_path, "t.json", GOOD + b"\n" + GOOD)) == ([1, 2], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"},\n{"text": }]', "t.json:2: not valid JSON .Expecting value"),
        ('[{"text": "a"}\n{"text": "b"}]', "t.json:2: not valid JSON .expecting ',' or '\\]'"),
        ('[{"text": "a"}', "t.json:1: not valid JSON"),
        ('[{"text": "a"}] and more', "text after the end of the list"),
        ("[" * 100_000, "nested too deep"),
        ("[ ]", "holds no rows"),
    ],
)
def test_json_list_that_is_broken_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, "t.json", text)


def test_json_list_keeps_broken_utf8_to_its_element(tmp_path: Path) -> None:
    assert lines_of(read(tmp_path, "t.json", b'[{"text": "a"},\n{"text": "\xff"},\n{"text": "c"}]')) == ([1, 3], [2])


def test_csv_rows_carry_the_line_they_begin_on(tmp_path: Path) -> None:
    result = read(tmp_path, "t.csv", '\ufeffprompt, completion\r\n"two\r\nlines",A\r\n\r\nQ,"say ""A"""\r\n')
    assert lines_of(result) == ([2, 5], [])
    assert [example.prompt[0].content for example in result.examples] == ["two\r\nlines", "Q"]
    assert result.examples[1].answer == 'say "A"'


@pytest.mark.parametrize(("name", "mark"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", "\t"), ("t.csv", ",")])
def test_csv_separator_is_found(tmp_path: Path, name: str, mark: str) -> None:
    assert read(tmp_path, name, f"prompt{mark}completion\nQ{mark}A\n").examples[0].answer == "A"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"only one", "has 1 cell(s) where the header has 2"),
        (b"a,b,c", "has 3 cell(s) where the header has 2"),
        (b"Q,", "'completion' is empty"),
        (b"\xff,A", "not valid UTF-8"),
        (b'"Q" x,A', "not valid CSV"),
        (b'"never closed,A', "is a quote not closed"),
    ],
)
def test_csv_broken_row_is_a_problem_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    result = read(tmp_path, "t.csv", b"prompt,completion\nQ,A\n" + line + b"\nQ,A\nQ,A")
    assert lines_of(result) == ([2, 4, 5], [3])
    assert reason in result.problems[0].reason


@pytest.mark.parametrize(
    ("header", "message"),
    [(b"prompt,prompt\nQ,A\n", "t.csv:1: the header names 'prompt' more than once"), (b'"a" b\nQ\n', "the header is not valid CSV")],
)
def test_csv_header_that_cannot_be_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, "t.csv", header)


def test_csv_of_no_known_shape_names_columns_and_flags(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'frage', 'antwort'.*--prompt-column.*--completion-column.*columns:"):
        read(tmp_path, "t.csv", "frage,antwort\nQ,A\n")


def test_text_beside_a_label_must_be_decided(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--prompt-column text --completion-column category"):
        read(tmp_path, "t.csv", "text,category\nQ,A\n")
    assert read(tmp_path, "t.csv", "text,category\nQ,A\n", ColumnNames(text="text")).unused == {"category": 1}


def test_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"t.csv' has no column 'categry', named for completion .did you mean 'category'?"):
        read(tmp_path, "t.csv", "text,category\nQ,A\n", ColumnNames(prompt="text", completion="categry"))


def test_system_text_for_plain_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain text, which has no system message"):
        read(tmp_path, "t.jsonl", '{"text": "t"}', system="S")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=f"{name}' holds no rows"):
        read(tmp_path, name, data)


def test_csv_with_a_header_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path, "t.csv", "prompt,completion\n")


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent.jsonl' does not exist"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match=r"holds no file that ends in .jsonl"):
        read_rows(tmp_path)
    with pytest.raises(ConfigError, match=r"ends in '.xlsx'"):
        read(tmp_path, "t.xlsx", b"PK")
    with pytest.raises(DataError, match="UTF-16"):
        read(tmp_path, "t.csv", "prompt,completion\nQ,A\n".encode("utf-16"))


def test_file_of_problems_alone_has_no_shape(tmp_path: Path) -> None:
    result = read(tmp_path, "t.jsonl", b"{\n\xff\n")
    assert (result.shape, result.examples) == ("unknown", ())
    assert lines_of(result) == ([], [1, 2])


# what strangers send: any bytes, and bytes that look almost right
JSONISH = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([GOOD, b"", b"  ", b"{}", b"[]", b'{"text": "t"}', b'{"prompt": "\xc3", "completion": "A"}', b'{"prompt": "\\ud800"}']),
    st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3).map(lambda row: json.dumps(row, ensure_ascii=False).encode()),
).filter(lambda line: b"\n" not in line)
CSVISH = st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b" ", b"\xff", b"\x00", "é".encode()]), max_size=60).map(b"".join)


@given(st.lists(JSONISH, max_size=12))
def test_jsonl_no_line_vanishes(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = read(Path(folder), "t.jsonl", b"\n".join([GOOD, *lines]))
    examples, problems = lines_of(result)
    blank = [number for number, line in enumerate(lines, 2) if not line.decode(errors="replace").strip()]
    assert sorted([*examples, *problems, *blank]) == list(range(1, len(lines) + 2))


@given(CSVISH)
def test_csv_no_line_vanishes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = read(Path(folder), "t.csv", b"prompt,completion\nQ,A\n" + data)
    examples, problems = lines_of(result)
    begun = sorted([*examples, *problems])
    assert begun[0] == 2
    assert len(set(begun)) == len(begun)
    if b'"' not in data:  # without quotes every line is a row
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        assert begun[1:] == [number for number, line in enumerate(lines, 3) if line.strip(b" \x00") or b"\x00" in line]


@given(st.binary(max_size=200), st.sampled_from(["t.jsonl", "t.json", "t.csv", "t.tsv"]))
def test_any_bytes_are_read_or_refused(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = read(Path(folder), name, data)
        except LorimerError as exc:
            str(exc).encode()
        else:
            json.dumps([example.to_json() for example in result.examples], ensure_ascii=False).encode()
            "".join(problem.reason for problem in result.problems).encode()


def test_banking77_reads_whole(shared_data: Path) -> None:
    result = read_rows(shared_data / "banking77" / "train.csv", ColumnNames(prompt="text", completion="category"))
    assert (len(result.examples), result.problems, result.unused) == (10_003, (), {})
    assert len({example.answer for example in result.examples}) == 77


@pytest.mark.parametrize(
    ("file", "shape", "num_examples"),
    [("gsm8k/test.jsonl", "prompt/completion", 1_319), ("dolly_sample/dolly_151.jsonl", "prompt/completion", 151)],
)
def test_public_data_is_recognised(shared_data: Path, file: str, shape: str, num_examples: int) -> None:
    result = read_rows(shared_data / file)
    assert (result.shape, len(result.examples)) == (shape, num_examples)
