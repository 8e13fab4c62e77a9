"""Judges behind a real HTTP server: what counts as a verdict, both orders, pins, and what is kept."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import CLOSE, Rule, always_first, answers_in, by_quality, impatient, is_right, longest, make_spec, make_task, serve_judge

from lorimer.errors import ConfigError, IntegrityError, LorimerError, UnavailableError
from lorimer.evaluation.judge.judge import count_inconsistent, judge_answers, judge_pairs
from lorimer.evaluation.judge.record import open_judge
from lorimer.evaluation.judge.replies import MAX_REPLY_CHARS, parse_verdict
from lorimer.evaluation.judge.spec import ALLOWED, Pins, read_judge
from lorimer.evaluation.scorers.score import Score


@pytest.mark.parametrize(
    ("text", "kind", "value", "says"),
    [
        ("Verdict: A", "pair", "A", ""),
        ("Both are short.\n  verdict : TIE \n", "pair", "tie", ""),
        ("b", "pair", "B", ""),
        ("Because.\r\nVerdict: 4\r\n", "1-5", "4", ""),
        ("Verdict: yes\n\nThat is all.", "yes-no", "yes", ""),
        ("", "pair", None, "said nothing"),
        (" \n ", "pair", None, "said nothing"),
        ("I cannot judge this.", "pair", None, "no line"),
        ("Answer A is better.", "pair", None, "no line"),
        ("Verdict: A\nVerdict: B", "pair", None, "more than one"),
        ("Verdict: A\nVerdict: A", "pair", None, "more than one"),
        ("The verdict: A or B?\nVerdict: B", "pair", None, "more than one"),
        ("Verdict: A or B", "pair", None, "no line"),
        ("My verdict: A", "pair", None, "no line"),
        ("Verdict: C", "pair", None, "none of A, B, tie"),
        ("Verdict:", "pair", None, "no line"),
        ("Verdict: 6", "1-5", None, "none of 1"),
        ("Verdict: 3.5", "1-5", None, "none of 1"),
        ("Verdict: NaN", "1-5", None, "none of 1"),
        ("nan", "1-5", None, "no line"),
        ("Verdict: ４", "1-5", None, "none of 1"),  # a wide digit, which int() would read
        ("Verdict: -1", "1-5", None, "none of 1"),
        ("x" * MAX_REPLY_CHARS + "\nVerdict: A", "pair", None, "characters"),
    ],
)
def test_only_one_strict_verdict_counts(text: str, kind: str, value: str | None, says: str) -> None:
    found = parse_verdict(text, ALLOWED[kind])
    assert found.value == value
    assert says in found.explanation
    assert text.strip()[:100] in found.explanation


def test_cut_off_reply_is_no_verdict() -> None:
    assert parse_verdict("Verdict: A", ALLOWED["pair"], "length").value is None


WORDS = st.sampled_from(
    ["Verdict:", "verdict", " ", "\n", "A", "B", "tie", "yes", "no", "1", "5", "NaN", ":", "é", "\u2028", "\x00", "{answer}"]
)


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(), st.lists(WORDS).map("".join)), st.sampled_from(list(ALLOWED)), st.sampled_from(["stop", "length", ""]))
def test_any_reply_is_a_verdict_or_none(text: str, kind: str, finish_reason: str) -> None:
    found = parse_verdict(text, ALLOWED[kind], finish_reason)
    assert found.value is None or found.value in ALLOWED[kind]
    assert parse_verdict(f"{text}\nVerdict: {ALLOWED[kind][0]}\nVerdict: {ALLOWED[kind][1]}", ALLOWED[kind]).value is None
    if found.value is None:
        assert found.explanation.startswith("no verdict")


def ask_pairs(rule: Rule, candidate: list[str | None], baseline: list[str | None], **changes: Any) -> tuple[list[Score], int]:
    with serve_judge(rule) as server:
        judge = impatient(open_judge(make_spec(server.url, **changes)))
        return list(judge_pairs(judge, make_task(len(candidate)), candidate, baseline)), len(server.asked)


def test_pairs_are_asked_in_both_orders() -> None:
    scores, num_asked = ask_pairs(by_quality, ["8", "1", "5 x", "7", None], ["2", "9", "5 y", "7", "3"])
    assert [score.value for score in scores] == [1.0, 0.0, 0.5, 0.5, None]
    assert num_asked == 6  # equal answers are a tie and a missing one is unscored, without asking
    assert count_inconsistent(scores) == 0
    assert [score.answer for score in scores] == ["8", "1", "5 x", "7", ""]


def test_judge_that_prefers_a_place_makes_ties_that_are_counted() -> None:
    scores, _ = ask_pairs(always_first, ["a", "b", "c"], ["d", "e", "f"])
    assert [score.value for score in scores] == [0.5, 0.5, 0.5]
    assert count_inconsistent(scores) == 3


def test_candidate_stands_first_and_then_second() -> None:
    with serve_judge(longest) as server:
        judge = open_judge(make_spec(server.url, concurrency=1))
        assert [score.value for score in judge_pairs(judge, make_task(1), ["longer answer"], ["short"])] == [1.0]
        assert [answers_in(prompt) for prompt in server.asked] == [["longer answer", "short"], ["short", "longer answer"]]
        assert {(body["temperature"], body["seed"], body["max_tokens"]) for body in server.bodies} == {(0.0, 0, 512)}


def test_placeholders_in_an_answer_stay_as_they_are() -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        list(judge_answers(judge, make_task(1), ["{reference} {question} {0} %s"]))
        assert answers_in(server.asked[0]) == ["{reference} {question} {0} %s"]
        assert "Wanted: wanted 0" in server.asked[0]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("Verdict: 1", 0.0),
        ("Verdict: 2", 0.25),
        ("Verdict: 3", 0.5),
        ("5", 1.0),
        ("Verdict: five", None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_answers_are_scored_in_quarters(said: Any, values: float | None) -> None:
    with serve_judge(lambda prompt, index: said) as server:
        judge = open_judge(make_spec(server.url, "1-5"))
        scores = list(judge_answers(judge, make_task(2), ["an answer", None]))
    assert [score.value for score in scores] == [values, None]
    assert scores[1].explanation == "no answer was given"


def alternately(prompt: str, index: int) -> str:
    return ["Verdict: A", "I would rather not say."][index % 2]


def test_garbage_is_unscored_with_its_words() -> None:
    garbage = itertools.cycle(["", "Verdict: A and B", "lorem ipsum", "Verdict: A\nVerdict: B"])
    scores, _ = ask_pairs(lambda prompt, index: next(garbage), ["a"] * 6, ["b"] * 6, concurrency=1)
    assert [score.value for score in scores] == [None] * 6
    assert all(score.explanation.startswith("no verdict") for score in scores)
    scores, _ = ask_pairs(alternately, ["a 1", "a 2"], ["b 1", "b 2"], judge="other", concurrency=1)
    assert [score.value for score in scores] == [None, None]
    assert "I would rather not say." in scores[0].explanation


def at_first(trouble: Any, num_times: int) -> Rule:
    return lambda prompt, index: trouble if index < num_times else by_quality(prompt, index)


@pytest.mark.parametrize("trouble", [(429, {"Retry-After": "1"}), (500, {}), (503, {}), CLOSE, {"choices": []}])
def test_trouble_that_passes_is_got_over(trouble: Any) -> None:
    scores, num_asked = ask_pairs(at_first(trouble, 3), ["8", "1"], ["2", "9"], concurrency=1)
    assert [score.value for score in scores] == [1.0, 0.0]
    assert num_asked == 4 + 3


@pytest.mark.parametrize(("trouble", "kind"), [((500, {}), UnavailableError), (CLOSE, UnavailableError), ((400, {}), ConfigError)])
def test_endpoint_that_stays_down_is_an_error(trouble: Any, kind: type[LorimerError]) -> None:
    with pytest.raises(kind):
        ask_pairs(lambda prompt, index: trouble, ["8"] * 4, ["2"] * 4)


def test_one_question_that_is_refused_is_unscored_and_asked_again_next_time() -> None:
    is_refusing = True

    def rule(prompt: str, index: int) -> Any:
        return (413, {}) if is_refusing and "question 1?" in prompt else "Verdict: yes"

    with serve_judge(rule) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        scores = list(judge_answers(judge, make_task(3), ["a", "b", "c"]))
        assert [score.value for score in scores] == [1.0, None, 1.0]
        assert "413" in scores[1].explanation
        is_refusing = False
        assert [score.value for score in judge_answers(judge, make_task(3), ["a", "b", "c"])] == [1.0, 1.0, 1.0]
        assert len(server.asked) == 4


def test_slow_judge_runs_into_its_timeout() -> None:
    def slow(prompt: str, index: int) -> str:
        time.sleep(0.5 if index == 0 else 0)
        return "Verdict: yes"

    with serve_judge(slow) as server:
        judge = impatient(open_judge(make_spec(server.url, "yes-no", timeout_seconds=0.2)))
        assert [score.value for score in judge_answers(judge, make_task(1), ["a"])] == [1.0]
        assert len(server.asked) == 2


def test_nothing_is_asked_twice_and_a_cut_line_is_asked_again() -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        answers = [f"good {n}" if n % 2 else f"bad {n}" for n in range(5)]
        first = list(judge_answers(judge, make_task(5), answers))
        assert [score.value for score in first] == [0.0, 1.0, 0.0, 1.0, 0.0]
        assert list(judge_answers(judge, make_task(5), answers)) == first
        assert len(server.asked) == 5
        kept = judge.replies_path.read_bytes()
        judge.replies_path.write_bytes(kept[:-20])
        assert list(judge_answers(judge, make_task(5), answers)) == first
        assert len(server.asked) == 6
        assert sorted(judge.replies_path.read_bytes().splitlines()) == sorted(kept.splitlines())


def test_stopped_in_the_middle_goes_on_from_there() -> None:
    is_down = False
    with serve_judge(lambda prompt, index: (500, {}) if is_down and index >= 3 else is_right(prompt, index)) as server:
        is_down = True
        judge = impatient(open_judge(make_spec(server.url, "yes-no", concurrency=1)))
        answers = [f"good {n}" for n in range(10)]
        with pytest.raises(UnavailableError, match="kept"):
            list(judge_answers(judge, make_task(10), answers))
        is_down, num_asked = False, len(server.asked)
        assert all(score.value == 1.0 for score in judge_answers(judge, make_task(10), answers))
        assert len(server.asked) == num_asked + 7


@pytest.mark.parametrize(
    "change", [lambda line: line.replace(b"yes", b"no!"), lambda line: b"\x80", lambda line: b"[]", lambda line: b"{}"]
)
def test_changed_replies_are_refused(change: Callable[[bytes], bytes]) -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no", concurrency=1))
        list(judge_answers(judge, make_task(2), ["good", "good too"]))
        first, second = judge.replies_path.read_bytes().splitlines()
        judge.replies_path.write_bytes(change(first) + b"\n" + second + b"\n")
        with pytest.raises(IntegrityError, match=r"line 1 .* delete the file"):
            list(judge_answers(judge, make_task(2), ["good", "good too"]))


def other_model(server: Any) -> dict[str, Any]:
    server.model = "judge-2026-02"
    return {}


def other_fingerprint(server: Any) -> dict[str, Any]:
    server.fingerprint = "fp_2"
    return {}


def other_root(server: Any) -> dict[str, Any]:
    server.root = "e" * 64
    return {}


def other_prompt(server: Any) -> dict[str, Any]:
    return {"prompt": "Rather strictly: {question} <<A>>{answer}<<END>>"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_model, "model was judge-2026-01 and is judge-2026-02"),
        (other_fingerprint, "fingerprint was fp_1 and is fp_2"),
        (other_root, "root was none and is eeee"),
        (other_prompt, "prompt_sha256 was"),
    ],
)
def test_changed_judge_is_an_error_until_it_is_pinned_anew(change: Callable[[Any], dict[str, Any]], says: str) -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        list(judge_answers(judge, make_task(1), ["good"]))
        spec = make_spec(server.url, "yes-no", **change(server))
        with pytest.raises(IntegrityError, match=says):
            open_judge(spec)
        pinned = open_judge(spec, repin=True)
        assert pinned.digest != judge.digest
        list(judge_answers(pinned, make_task(1), ["good"]))
        assert len(server.asked) == 2  # the old verdict does not count


def test_version_that_changes_while_it_is_asked_is_an_error() -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        server.model = "judge-2026-02"
        with pytest.raises(IntegrityError, match="changed while it was asked: model was judge-2026-01"):
            list(judge_answers(judge, make_task(1), ["good"]))
        assert not judge.replies_path.exists()


def test_pins_in_the_file_hold_the_judge() -> None:
    with serve_judge(is_right) as server:
        spec = make_spec(server.url, "yes-no")
        good = Pins(model="judge-2026-01", fingerprint="fp_1", prompt_sha256=spec.prompt_sha256)
        judge = open_judge(spec.model_copy(update={"pins": good}))
        assert judge.to_json()["endpoint"] == server.url
        other = good.model_copy(update={"fingerprint": "fp_0"})
        with pytest.raises(IntegrityError, match="fingerprint was fp_0 and is fp_1"):
            open_judge(spec.model_copy(update={"pins": other}), repin=True)


def test_key_goes_to_the_endpoint_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    with serve_judge(is_right) as server:
        spec = make_spec(server.url, "yes-no", key_env="JUDGE_KEY")
        with pytest.raises(ConfigError, match="JUDGE_KEY`: that variable is not set"):
            open_judge(spec)
        monkeypatch.setenv("JUDGE_KEY", "very-secret")
        judge = open_judge(spec)
        list(judge_answers(judge, make_task(1), ["good"]))
        assert server.keys == {"Bearer very-secret"}
    assert "very-secret" not in repr(judge)
    assert all(b"very-secret" not in path.read_bytes() for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirect_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "very-secret")
    with serve_judge(is_right) as other, serve_judge(lambda prompt, index: (status, {"Location": other.url})) as server:
        judge = open_judge(make_spec(server.url, "yes-no", key_env="JUDGE_KEY"))
        with pytest.raises(ConfigError, match=f"{status} not now") as raised:
            list(judge_answers(judge, make_task(1), ["good"]))
        assert not other.keys
    assert "very-secret" not in str(raised.value)


FILE = """judge: tone
endpoint: http://127.0.0.1:1/v1
model: judge@v3
kind: score
scale: 1-5
prompt: |
  Rate it. {question} {answer}
"""


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tone.yaml"
    path.write_text(FILE)
    spec = read_judge(path)
    assert (spec.allowed, spec.min_kappa) == (("1", "2", "3", "4", "5"), 0.6)
    assert spec.full_prompt.endswith("one of: 1, 2, 3, 4, 5. Say it only once.")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("scale: 1-5", "scale: 1-10", ["scale"]),
        ("scale: 1-5\n", "", ["`scale` is missing"]),
        (
            "kind: score",
            "kind: pair",
            ["{answer_a} is missing", "{answer_b} is missing", "{answer} has no meaning", "`scale` has"],
        ),
        ("{answer}", "it", ["{answer} is missing"]),
        ("{question}", "{answer_a}", ["{question} is missing", "{answer_a} has no meaning"]),
        ("judge: tone", "judge: ../tone", ["judge"]),
        ("model: judge@v3", "modle: judge@v3", ["unknown key `modle` (did you mean `model`?)", "key `model` is missing"]),
        ("kind: score", "kind: score\npins: {model: m, prompt_sha256: ab}", ["the prompt is not the one in `pins`"]),
        ("kind: score", "kind: score\nmin_kappa: .nan", ["min_kappa"]),
        (FILE, "[]", ["holds list, not keys"]),
    ],
)
def test_wrong_file_names_everything_wrong(old: str, new: str, says: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tone.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        read_judge(path)
    assert all(one in str(raised.value) for one in ["tone.yaml", *says])


def test_damaged_record_is_an_error() -> None:
    with serve_judge(is_right) as server:
        judge = open_judge(make_spec(server.url, "yes-no"))
        record = json.loads(judge.record_path.read_text())
        record["identity"]["model"] = "another"
        judge.record_path.write_text(json.dumps(record))
        with pytest.raises(IntegrityError, match="damaged"):
            open_judge(make_spec(server.url, "yes-no", judge="second"))
