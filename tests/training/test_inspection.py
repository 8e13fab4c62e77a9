"""What will be learned: counted, shown and written down as it is, and refused where it would waste the run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import CLEAN, chat, chats, dataset_of, finding_of, own_tokenizer, report_on
from lorimer.config import ColumnNames
from lorimer.data.curate import curate
from lorimer.data.example import Example
from lorimer.errors import TrainingError
from lorimer.model.chat import TURN_TEMPLATE, Rendered, Renderer
from lorimer.storage import canonical_json
from lorimer.training.inspection import (
    Sample,
    SampleSpan,
    describe_report,
    inspect,
    mask_markup,
    refuse_waste,
    report_json,
)


def pair(prompt: str, chosen: str, rejected: str | None, source: str = "p.jsonl:1") -> Example:
    return replace(chat(prompt, chosen, source=source), rejected=rejected)


def test_clean_dataset_has_no_finding() -> None:
    held_out = chats(("black?", "night"), ("grey?", "fog"), file="v.jsonl")
    report = report_on(dataset_of(validation=held_out[:1], test=held_out[1:]))
    assert report.findings == ()
    refuse_waste(report)
    assert (report.num_rows, report.num_answers, report.num_end_of_turn) == (4, 5, 5)
    assert report.template_source == "turns"
    assert report.num_supervised == sum(len(text) + 1 for text in ("flame", "sea", "grass", "yes", "snow"))
    assert [len(split) for split in report.rendered.values()] == [4, 1, 1]


def test_refused_rows_are_gathered_from_all_splits() -> None:
    template = "{% if 'bad' in messages[0].content %}{{ raise_exception('no bad words') }}{% endif %}" + TURN_TEMPLATE
    bad = chats(("bad 1", "x"), ("bad 2", "y"), file="bad.jsonl")
    report = report_on(dataset_of((*CLEAN, bad[0]), test=bad[1:]), Renderer(own_tokenizer(template)))
    assert finding_of(report, "refused").sources == ("bad.jsonl:1", "bad.jsonl:2")
    assert "no bad words" in finding_of(report, "refused").sentence
    assert report.num_rows == 4


def test_no_training_row_at_all_stops() -> None:
    report = report_on(dataset_of(()))
    assert [f.check for f in report.findings] == ["none_fits"]
    assert (report.num_tokens, report.share_supervised, report.samples) == (0, 0.0, ())


@pytest.mark.parametrize(("num_parameters", "is_full"), [(13, False), (12, True)])
def test_more_bits_than_the_adapter_holds_is_a_warning(num_parameters: int, is_full: bool) -> None:
    report = report_on(num_parameters=num_parameters)
    assert report.num_supervised == 25
    assert [(f.check, f.severity) for f in report.findings] == ([("capacity", "warn")] if is_full else [])
    assert (report.capacity.bits_to_learn, report.capacity.bits_held) == (25, 2 * num_parameters)


def test_refusal_names_every_stop_its_rows_and_what_to_do() -> None:
    train = (*chats(("a", "<bos>yes"), ("b", "<bos>yes")), *chats(("c?" * 90, "no"), file="long.jsonl"))
    report = report_on(dataset_of(train, test=chats(("a", "yes"))), max_len=100)
    with pytest.raises(TrainingError, match=r"would be wasted: .*<bos>.*\(see t.jsonl:1, t.jsonl:2\)") as error:
        refuse_waste(report)
    assert "left out" not in str(error.value)
    assert [line.partition(":")[0] for line in describe_report(report)][-4:] == ["stop", "warn", "warn", "warn"]


def test_samples_are_shortest_median_and_longest() -> None:
    report = report_on()
    assert [sample.source for sample in report.samples] == ["t.jsonl:2", "t.jsonl:4", "t.jsonl:3"]
    assert [(span.text, span.is_learned) for span in report.samples[0].spans] == [
        ("<bos><start_of_turn>user\nblue?<end_of_turn>\n<start_of_turn>model\n", False),
        ("sea<end_of_turn>", True),
    ]
    assert [span.text for span in report.samples[2].spans if span.is_learned] == ["grass<end_of_turn>", "yes<end_of_turn>"]
    assert [len(report_on(dataset_of(CLEAN[:n])).samples) for n in (1, 2, 3)] == [1, 2, 3]


def test_markup_shows_the_mask_and_disarms_control_characters() -> None:
    spans = (SampleSpan(text="<bos>[red]a\n\x1b[31m", is_learned=False), SampleSpan(text="b\x9b\t<eos>", is_learned=True))
    text = mask_markup(Sample(source="t.jsonl:1", num_tokens=9, spans=spans))
    assert text.plain == "<bos>[red]a↵\n␛[31mb�\t<eos>"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("<bos>[red]a↵\n␛[31m", "dim"),
        ("b�\t<eos>", "bold green"),
    ]


def test_report_as_json_leaves_the_rendered_rows_out() -> None:
    data = dataset_of((pair("red?", "sea", "sand", "p.jsonl:1"), pair("blue?", "sea", "sand", "p.jsonl:2")))
    value = json.loads(canonical_json(report_json(report_on(data))))
    assert value.keys().isdisjoint({"rendered", "rejected"})
    assert value["findings"][0]["sources"] == ["p.jsonl:1", "p.jsonl:2"]
    assert value["samples"][0]["spans"][-1] == {"text": "sea<end_of_turn>", "is_learned": True}
    assert value["lengths"].keys() == {"p50", "p95", "max"}


class Counting(Renderer):
    """A renderer that knows how often it was asked."""

    num_rendered = 0

    def render_example(self, example: Example) -> Rendered:
        self.num_rendered += 1
        return super().render_example(example)


@pytest.mark.parametrize(("rejected", "num_rendered"), [(None, 600), ("no", 1200)])
def test_each_row_is_rendered_once_a_pair_twice_and_progress_reaches_the_end(rejected: str | None, num_rendered: int) -> None:
    told, renderer = list[tuple[int, int]](), Counting(own_tokenizer())
    pairs = tuple(pair(f"q{i}", f"a{i}", rejected) for i in range(600))
    inspect(dataset_of(pairs[:590], test=pairs[590:]), renderer, max_len=99, num_parameters=10**6, progress=lambda *a: told.append(a))
    assert renderer.num_rendered == num_rendered
    assert told == [(250, 600), (500, 600), (600, 600)]


def test_rejected_answers_stand_beside_the_chosen_ones() -> None:
    turns = replace(chat("green?", "grass", "sure?", "yes", source="p.jsonl:2"), rejected="no")
    report = report_on(
        dataset_of((pair("red?", "flame", "lava"), turns), validation=(pair("blue?", "sea", "sand"),), test=chats(("grey?", "fog")))
    )
    expected = [Renderer(own_tokenizer()).render_example(row) for row in chats(("red?", "lava"), ("green?", "grass", "sure?", "no"))]
    assert report.findings == ()
    assert report.rejected["train"] == tuple(expected)
    assert [len(split) for split in report.rejected.values()] == [2, 1, 0]
    assert report.num_supervised == len("flame.grass.yes.")


def test_rows_without_rejected_answers_have_none_beside_them() -> None:
    assert report_on(dataset_of(validation=CLEAN[:1])).rejected == {"train": (), "validation": (), "test": ()}


def test_rejected_answer_to_plain_text_is_refused() -> None:
    report = report_on(dataset_of((*CLEAN, Example(text="abc", rejected="abd", source="x:1"))))
    assert [(f.check, f.sources) for f in report.findings] == [("refused", ("x:1",))]


@pytest.mark.parametrize(("chosen", "rejected"), [("sea", "s" * 40), ("s" * 40, "sea")])
def test_pair_is_left_out_when_either_answer_is_too_long(chosen: str, rejected: str) -> None:
    pairs = tuple(pair(f"q{i}", "yes", "no", f"p.jsonl:{i}") for i in range(3))
    long = pair("blue?", chosen, rejected, "long.jsonl:1")
    report = report_on(dataset_of((*pairs[:1], long, *pairs[1:]), validation=(long, pairs[0])), max_len=50)
    assert (report.num_rows, report.too_long.count, report.too_long.sources) == (3, 1, ("long.jsonl:1",))
    assert [finding_of(report, check).sources for check in ("too_long", "too_long_validation")] == [("long.jsonl:1",)] * 2
    assert [(len(report.rendered[name]), len(report.rejected[name])) for name in ("train", "validation")] == [(3, 3), (1, 1)]
    assert report.lengths.max == report_on(dataset_of(chats(("blue?", "s" * 40)))).lengths.max


def test_banking77_is_worth_a_run(shared_data: Path) -> None:
    folder, columns = shared_data / "banking77", ColumnNames(prompt="text", completion="category")
    whole = curate([folder / "train.csv"], name="banking77", columns=columns)
    part = replace(whole, train=whole.train[::16][:500], validation=whole.validation[:100], test=whole.test[:100])
    report = report_on(part, num_parameters=1_000_000)
    assert report.num_rows + report.too_long.count == len(part.train) == 500
    assert [finding for finding in report.findings if finding.severity == "stop"] == []
    assert report.num_answers == report.num_end_of_turn == report.num_rows
    refuse_waste(report)
