"""Each way to waste a run is found, with its rows; rightly made rows have no finding; no row at all crashes the checks."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import CLEAN, chats, dataset_of, finding_of, own_tokenizer, report_on
from lorimer.data.example import ROLES, Example, Message
from lorimer.data.split import SplitName
from lorimer.model.chat import TURN_TEMPLATE, Rendered, Renderer
from lorimer.storage import canonical_json
from lorimer.training.inspection import describe_report, mask_markup, report_json

PAD, EOS, BOS, START, END = range(5)


class Altered(Renderer):
    """A renderer whose rows come out otherwise than they should."""

    def __init__(self, alter: Callable[[Rendered], tuple[list[int], list[bool]]], template: str | None = None) -> None:
        super().__init__(own_tokenizer(template))
        self.alter = alter

    def render_example(self, example: Example) -> Rendered:
        ids, supervised = self.alter(super().render_example(example))
        return Rendered(ids=tuple(ids), supervised=tuple(supervised))


def double_bos(row: Rendered) -> tuple[list[int], list[bool]]:
    return [BOS, *row.ids], [False, *row.supervised]


def bos_before_answers(row: Rendered) -> tuple[list[int], list[bool]]:
    start = row.supervised.index(True)
    return [*row.ids[:start], BOS, *row.ids[start:]], [*row.supervised[:start], True, *row.supervised[start:]]


def learn_all(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids), [True] * len(row.ids)


def learn_all_but_bos(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids), [False] + [True] * (len(row.ids) - 1)


def learn_nothing(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids), [False] * len(row.ids)


def learn_nothing_of_long_rows(row: Rendered) -> tuple[list[int], list[bool]]:
    return (list(row.ids), list(row.supervised)) if len(row.ids) < 40 else learn_nothing(row)


def drop_end(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids[:-1]), list(row.supervised[:-1])


def mask_end(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids), [learned and token != END for token, learned in zip(row.ids, row.supervised, strict=True)]


def double_end(row: Rendered) -> tuple[list[int], list[bool]]:
    return [*row.ids, END], [*row.supervised, True]


def pad_in_answer(row: Rendered) -> tuple[list[int], list[bool]]:
    return [*row.ids[:-1], PAD, END], [*row.supervised, True]


def pad_at_start(row: Rendered) -> tuple[list[int], list[bool]]:
    return [PAD, *row.ids], [False, *row.supervised]


def unchanged(row: Rendered) -> tuple[list[int], list[bool]]:
    return list(row.ids), list(row.supervised)


@pytest.mark.parametrize(
    ("alter", "stops"),
    [
        (double_bos, ["duplicate_bos"]),
        (bos_before_answers, ["duplicate_bos"]),
        (learn_nothing, ["mask_empty"]),
        (learn_nothing_of_long_rows, ["no_signal"]),
        (learn_all, ["mask_whole", "end_learned_twice"]),
        (learn_all_but_bos, ["mask_whole", "end_learned_twice"]),
        (drop_end, ["end_not_learned"]),
        (mask_end, ["end_not_learned"]),
        (double_end, ["end_learned_twice"]),
        (pad_at_start, []),
        (unchanged, []),
    ],
)
def test_broken_renderer_stops_the_run_with_its_rows(alter: Any, stops: list[str]) -> None:
    report = report_on(renderer=Altered(alter))
    assert [(finding.check, finding.severity) for finding in report.findings] == [(check, "stop") for check in stops]
    assert all(finding.count in (1, 4) and set(finding.sources) <= {row.source for row in CLEAN} for finding in report.findings)


def test_row_without_signal_is_named() -> None:
    report = report_on(renderer=Altered(learn_nothing_of_long_rows))
    assert (finding_of(report, "no_signal").sources, finding_of(report, "no_signal").count) == (("t.jsonl:3",), 1)


@pytest.mark.parametrize(
    ("answer", "is_stopped"),
    [
        ("do <end_of_turn> this", True),
        ("do this<end_of_turn>", True),
        ("do <eos> this", True),
        ("do this<eos>", True),
        ("do <bos> this", True),
        ("do <start_of_turn> this", False),
        ("<pad>", False),
    ],
)
def test_markers_spelled_in_an_answer_are_letters_and_stop_the_run_with_its_row(answer: str, is_stopped: bool) -> None:
    report = report_on(dataset_of((*CLEAN, *chats(("odd?", answer), file="odd.jsonl"))))
    assert [(f.check, f.sources) for f in report.findings] == ([("marker_spelled", ("odd.jsonl:1",))] if is_stopped else [])
    assert report.num_end_of_turn == report.num_answers
    assert answer in Renderer(own_tokenizer()).decode(report.rendered["train"][-1].ids)


def test_template_that_closes_with_two_tokens_learns_one_end() -> None:
    closing = TURN_TEMPLATE + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    report = report_on(dataset_of(CLEAN[:2]), Renderer(own_tokenizer(closing)))
    assert report.findings == ()
    assert (report.num_answers, report.num_end_of_turn) == (2, 2)
    assert report.rendered["train"][0].ids[-3:] == (END, *Renderer(own_tokenizer()).tokenise_prompt("\n")[1:], EOS)


def test_tokens_that_end_and_begin_alike_are_not_taken_for_defects() -> None:
    own = own_tokenizer()
    own.bos_token = own.unk_token = own.pad_token = own.eos_token
    assert report_on(renderer=Renderer(own)).findings == ()


@pytest.mark.parametrize(
    ("max_len", "expected"),
    [
        (512, None),
        (53, None),
        (52, ("too_long", "warn", 1)),
        (26, ("too_long", "warn", 2)),
        (25, ("too_long", "stop", 3)),
        (8, ("none_fits", "stop", 4)),
    ],
)
def test_rows_that_do_not_fit_are_left_out_and_counted(max_len: int, expected: tuple[str, str, int] | None) -> None:
    report = report_on(max_len=max_len)
    lengths = [len(row.ids) for row in report_on().rendered["train"]]
    kept = [length for length in lengths if length <= max_len]
    assert [(f.check, f.severity, f.count) for f in report.findings if f.check in ("too_long", "none_fits")] == (
        [expected] if expected else []
    )
    assert (report.num_rows, report.num_tokens) == (len(kept), sum(kept))
    assert report.too_long.share_tokens == pytest.approx(1 - sum(kept) / sum(lengths))
    assert (report.lengths.p50, report.lengths.max) == (sorted(lengths)[1], max(lengths))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("max_len", "num_long"), [(53, 0), (52, 1), (26, 2)])
def test_held_out_rows_that_do_not_fit_are_a_warning(split: SplitName, max_len: int, num_long: int) -> None:
    train = chats(("a", "1"), ("b", "2"), file="short.jsonl")
    report = report_on(dataset_of(train, **{split: CLEAN}), max_len=max_len)
    assert [(f.check, f.severity, f.count) for f in report.findings] == ([(f"too_long_{split}", "warn", num_long)] if num_long else [])
    assert len(report.rendered[split]) == len(CLEAN) - num_long


@pytest.mark.parametrize(
    ("rejected", "sources"),
    [
        (["no", "no", "no"], None),
        ([None, None, None], None),
        (["no", None, None], ("t.jsonl:2", "t.jsonl:3")),
        (["", None, "no"], ("t.jsonl:2",)),
    ],
)
def test_rejected_answers_to_some_rows_only_stop_the_run(rejected: list[str | None], sources: tuple[str, ...] | None) -> None:
    train = tuple(replace(row, rejected=worse) for row, worse in zip(CLEAN[:3], rejected, strict=True))
    report = report_on(dataset_of(train))
    assert [(f.check, f.severity, f.sources) for f in report.findings] == ([("mixed_preferences", "stop", sources)] if sources else [])
    assert len(report.rejected["train"]) == (3 if rejected[1] else 0)


def test_padding_token_to_learn_is_a_warning() -> None:
    report = report_on(renderer=Altered(pad_in_answer))
    assert [(f.check, f.severity, f.count) for f in report.findings] == [("pad_learned", "warn", 4)]


def test_unknown_tokens_are_a_warning() -> None:
    own = own_tokenizer()
    own.unk_token = "~"
    report = report_on(dataset_of((*CLEAN, *chats(("strange?", "a~b"), file="odd.jsonl"))), Renderer(own))
    assert [(f.check, f.severity, f.sources) for f in report.findings] == [("unknown_tokens", "warn", ("odd.jsonl:1",))]


def test_duplicates_are_counted_once_each() -> None:
    report = report_on(dataset_of((*CLEAN, *CLEAN[:1], *CLEAN[:1])))
    assert [(f.check, f.severity, f.count, f.sources) for f in report.findings] == [("duplicates", "warn", 2, ("t.jsonl:1",) * 2)]
    assert "33.3%" in report.findings[0].sentence


def test_same_answer_preferred_to_another_is_no_duplicate() -> None:
    train = tuple(replace(row, rejected=worse) for row, worse in zip((*CLEAN[:2], *CLEAN[:2]), ("a", "b", "a", "c"), strict=True))
    assert [(f.check, f.sources) for f in report_on(dataset_of(train)).findings] == [("duplicates", ("t.jsonl:1",))]


def test_contradictions_name_all_rows_of_the_prompt() -> None:
    report = report_on(dataset_of((*CLEAN, *chats(("red?", "rose"), file="other.jsonl"))))
    assert [(f.check, f.severity, f.sources) for f in report.findings] == [("contradictions", "warn", ("t.jsonl:1", "other.jsonl:1"))]


@pytest.mark.parametrize(
    ("examples", "checks"),
    [
        (chats(("a", "yes"), ("b", "yes")), ["identical_answers"]),
        (chats(("a", "yes"), ("b", "no")), []),
        (chats(("a", "yes")), []),
        ((Example(text="abc", source="x:1"), Example(text="abc", source="x:2")), ["duplicates", "identical_answers"]),
    ],
)
def test_one_answer_to_everything_teaches_nothing(examples: tuple[Example, ...], checks: list[str]) -> None:
    assert [f.check for f in report_on(dataset_of(examples)).findings] == checks


@pytest.mark.parametrize(("num_recalled", "num_held_out", "is_spoilt"), [(1, 100, False), (2, 100, True), (0, 100, False)])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_leakage_is_a_warning_and_a_strong_one_where_answers_are_known(
    split: str, num_recalled: int, num_held_out: int, is_spoilt: bool
) -> None:
    pairs = [("red?", "flame")] * num_recalled + [("blue?", "sky")] + [(f"new {i}", "x") for i in range(num_held_out - num_recalled - 1)]
    held_out = chats(*pairs, file="held.jsonl")
    report = report_on(dataset_of(**{split: held_out}))
    finding = finding_of(report, f"leakage_{split}")
    assert (len(report.findings), finding.severity, finding.count) == (1, "warn", num_recalled + 1)
    repeated = [(f"held.jsonl:{i + 1}", "t.jsonl:1") for i in range(num_recalled)] + [(f"held.jsonl:{num_recalled + 1}", "t.jsonl:2")]
    assert finding.sources == tuple(chain.from_iterable(repeated))
    assert ("DO NOT RELY" in finding.sentence) is is_spoilt


def test_plain_text_is_rightly_learned_whole() -> None:
    report = report_on(dataset_of((Example(text="abc", source="x:1"), Example(text="two<eos>documents", source="x:2"))))
    assert report.findings == ()
    assert (report.num_answers, report.num_end_of_turn) == (0, 0)


PIECES = st.one_of(st.text(max_size=12), st.sampled_from(["<end_of_turn>", "<bos>", "<eos>", "<pad>", "a<end_of_turn>b", ""]))
TURNS = st.tuples(st.sampled_from(ROLES), PIECES)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    source = f"t.jsonl:{draw(st.integers(1, 99))}"
    if draw(st.integers(0, 5)) == 0:
        return Example(text=draw(PIECES), source=source)
    messages = tuple(Message(role=role, content=content) for role, content in draw(st.lists(TURNS, max_size=5)))
    return Example(messages=messages, rejected=draw(st.none() | PIECES), source=source)


RENDERERS = [Renderer(own_tokenizer()), Altered(learn_all), Altered(learn_nothing), Altered(drop_end)]


@settings(max_examples=60, deadline=None)
@given(st.lists(examples(), max_size=8), st.lists(examples(), max_size=3), st.integers(1, 80), st.sampled_from(RENDERERS))
def test_any_conversations_give_a_report(train: list[Example], test: list[Example], max_len: int, renderer: Renderer) -> None:
    report = report_on(dataset_of(tuple(train), test=tuple(test)), renderer, max_len=max_len)
    assert report.num_supervised == sum(row.num_supervised for row in report.rendered["train"])
    assert report.num_rows == len(report.rendered["train"])
    assert all(len(row.ids) <= max_len for split in report.rendered.values() for row in split)
    assert all(len(worse) in (0, len(report.rendered[name])) for name, worse in report.rejected.items())
    assert all(len(row.ids) <= max_len for split in report.rejected.values() for row in split)
    assert canonical_json(report_json(report))
    assert all("".join(span.text for span in sample.spans) and mask_markup(sample).plain for sample in report.samples)
    assert len(describe_report(report)) == 5 + len(report.findings)
