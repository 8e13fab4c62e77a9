"""What will be learned, said before the run: rows as the model sees them, counted, shown and checked.

It renders each row once, a pair of answers as two, and knows nothing of the base's weights, the loss or the batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from math import ceil
from typing import Any, NamedTuple

from rich.text import Text

from lorimer.data.dataset import Dataset
from lorimer.data.example import Example
from lorimer.data.rules import count_rows
from lorimer.data.split import SPLITS, SplitName
from lorimer.errors import DataError, TrainingError
from lorimer.model.chat import Rendered, Renderer
from lorimer.training.checks import MAX_SHOWN, Finding, Row, check_rows, share

BITS_PER_TOKEN = 1.0  # what a learned token adds, roughly ("LoRA Without Regret", Schulman et al. 2025)
BITS_PER_PARAMETER = 2.0  # what a parameter holds ("Knowledge Capacity Scaling Laws", Allen-Zhu and Li 2024, arXiv:2404.05405)
ROWS_BETWEEN_REPORTS = 250
TEMPLATE_WORDS = {"base": "the base's own", "turns": "ours, with the base's turn markers", "plain": "ours, in plain words"}
VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)} | {code: "\N{REPLACEMENT CHARACTER}" for code in range(0x7F, 0xA0)}
VISIBLE |= {ord("\t"): "\t", ord("\n"): "↵\n"}  # everything else could move the cursor or change colours of the reader's terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens in training rows, those that are too long included; a pair of answers counts as its longer one."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """Training rows that are left out because they exceed `max_len`: no row is ever cut."""

    count: int
    share_tokens: float
    share_supervised: float
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What there is to learn against what the adapter can hold: a rule of thumb."""

    bits_to_learn: float
    bits_held: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpan:
    """Neighbouring tokens that are all learned or all not."""

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row with its mask, to be looked at."""

    source: str
    num_tokens: int
    spans: tuple[SampleSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningReport:
    """What a run would learn from."""

    num_rows: int
    """Training rows of at most `max_len` tokens; so are all counts below, unless they say otherwise."""
    num_tokens: int
    num_supervised: int
    share_supervised: float
    lengths: Lengths
    max_len: int
    too_long: TooLong
    template_digest: str
    template_source: str
    """`base`, or which of our templates stands in."""
    num_answers: int
    """Answers that are learned, in conversations."""
    num_end_of_turn: int
    """Learned ends of turn, in conversations: as many as answers if all is well."""
    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...]
    """The shortest row, the median one and the longest."""
    capacity: Capacity
    rendered: Mapping[SplitName, tuple[Rendered, ...]]
    """Every split's rows of at most `max_len` tokens, in order: what training takes, so that no row is rendered twice."""
    rejected: Mapping[SplitName, tuple[Rendered, ...]]
    """The same rows with their rejected answers, place by place; empty where not all rows have one."""


class Renderings(NamedTuple):
    """The rows of each split, and source and reason of those the template refuses."""

    rows: Mapping[SplitName, Sequence[Row]]
    refusals: Sequence[tuple[str, str]]


def inspect(
    dataset: Dataset, renderer: Renderer, *, max_len: int, num_parameters: int, progress: Callable[[int, int], None] | None = None
) -> LearningReport:
    """Render all rows and say what an adapter of `num_parameters` would learn from them; `progress` is told rows done and rows in all."""
    rows, refusals = _render_rows(dataset, renderer, progress)
    kept = {name: [row for row in found if row.length <= max_len] for name, found in rows.items()}
    train, chats = kept["train"], [row for row in kept["train"] if row.is_chat]
    num_tokens, num_supervised = sum(row.num_tokens for row in train), sum(row.num_supervised for row in train)
    capacity = Capacity(bits_to_learn=BITS_PER_TOKEN * num_supervised, bits_held=BITS_PER_PARAMETER * num_parameters)
    found = (_find_refused(refusals), *check_rows(rows, renderer, max_len=max_len), _find_overfull(capacity))
    return LearningReport(
        num_rows=len(train),
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        share_supervised=share(num_supervised, num_tokens),
        lengths=_lengths(rows["train"]),
        max_len=max_len,
        too_long=_too_long(rows["train"], max_len),
        template_digest=renderer.template_digest,
        template_source=renderer.template_origin,
        num_answers=sum(len(row.runs) for row in chats),
        num_end_of_turn=sum(sum(row.num_ends) for row in chats),
        findings=tuple(finding for finding in found if finding),
        samples=_samples(train, renderer),
        capacity=capacity,
        rendered={name: tuple(row.rendered for row in split_rows) for name, split_rows in kept.items()},
        rejected={name: _rejected(split_rows) for name, split_rows in kept.items()},
    )


def refuse_waste(report: LearningReport) -> None:
    """Go on only if nothing was found that would waste the run.

    Raises:
        TrainingError: with everything that would, its rows, and what to do.
    """
    stops = [finding for finding in report.findings if finding.severity == "stop"]
    if stops:
        raise TrainingError(f"the run would be wasted: {'; '.join(map(_with_sources, stops))}")


def report_json(report: LearningReport) -> dict[str, Any]:
    """The report as a JSON value, without the rendered rows."""
    value = asdict(replace(report, rendered={}, rejected={}))
    del value["rendered"], value["rejected"]
    return value


def describe_report(report: LearningReport) -> Mapping[str, str]:
    """The report in lines a person reads; what stops the run comes before what does not."""
    num_all, lengths, capacity = report.num_rows + report.too_long.count, report.lengths, report.capacity
    learned = f"{report.num_supervised:,} of them learned ({report.share_supervised:.1%})"
    template = TEMPLATE_WORDS.get(report.template_source, report.template_source)
    lines = {
        "rows": f"{report.num_rows:,} of {num_all:,}, {report.num_tokens:,} tokens, {learned}",
        "lengths": f"half of the rows up to {lengths.p50:,} tokens, 95% up to {lengths.p95:,}, all up to {lengths.max:,}",
        "template": f"{template}, digest {report.template_digest[:12]}",
        "end of turn": f"learned {report.num_end_of_turn:,} times in {report.num_answers:,} answers",
        "capacity": f"about {capacity.bits_to_learn:,.0f} bits to learn, room for about {capacity.bits_held:,.0f}",
    }
    for finding in sorted(report.findings, key=lambda f: f.severity):  # "stop" before "warn"
        lines[f"{finding.severity}: {finding.check.replace('_', ' ')}"] = _with_sources(finding)
    return lines


def mask_markup(sample: Sample) -> Text:
    """A row for the terminal: what is learned in bold green, the rest dim, line ends and control characters made visible."""
    text = Text()
    for span in sample.spans:
        text.append(span.text.translate(VISIBLE), style="bold green" if span.is_learned else "dim")
    return text


def _render_rows(dataset: Dataset, renderer: Renderer, progress: Callable[[int, int], None] | None) -> Renderings:
    rows: dict[SplitName, list[Row]] = {name: [] for name in SPLITS}
    refusals = []
    splits: Mapping[SplitName, Sequence[Example]] = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    examples = [(name, example) for name in SPLITS for example in splits[name]]
    for num_done, (name, example) in enumerate(examples, start=1):
        try:
            rows[name].append(_read_row(example, renderer))
        except DataError as exc:
            refusals.append((example.source, str(exc)))
        if progress and (num_done % ROWS_BETWEEN_REPORTS == 0 or num_done == len(examples)):
            progress(num_done, len(examples))
    return Renderings(rows, refusals)


def _read_row(example: Example, renderer: Renderer) -> Row:
    rendered = renderer.render_example(example)
    runs = _runs(rendered.supervised)
    num_ends = tuple(_num_ends(rendered.ids[start:stop], renderer) for start, stop in runs)
    rejected = renderer.render_example(_with_answer(example, example.rejected)) if example.rejected is not None else None
    return Row(source=example.source, is_chat=example.text is None, rendered=rendered, runs=runs, num_ends=num_ends, rejected=rejected)


def _with_answer(example: Example, answer: str) -> Example:
    """The same conversation with another answer at its end."""
    if example.text is not None:
        raise DataError("plain text answers nothing, so that it cannot have a rejected answer")
    return replace(example, messages=(*example.prompt, replace(example.messages[-1], content=answer)), rejected=None)


def _runs(supervised: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Where runs of True start and stop."""
    edges = [place for place, (before, here) in enumerate(zip((False, *supervised), (*supervised, False), strict=True)) if before != here]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _num_ends(answer: Sequence[int], renderer: Renderer) -> int:
    """Ends of turn in an answer; different ones that close it together, as `<|end|>` and `<|endoftext|>` of Phi-3 do, are one."""
    places = [place for place, token in enumerate(answer) if token in renderer.stop_ids]
    are_different = len({answer[place] for place in places}) == len(places)
    if len(places) > 1 and are_different and not renderer.decode(answer[places[0] :]).strip():
        return 1
    return len(places)


def _find_refused(refusals: Sequence[tuple[str, str]]) -> Finding | None:
    if not refusals:
        return None
    sources = tuple(source for source, _ in refusals[:MAX_SHOWN])
    sentence = f"{count_rows(len(refusals))} that cannot be rendered ({refusals[0][1]}): correct what is wrong there, or leave it out"
    return Finding(check="refused", severity="stop", count=len(refusals), sources=sources, sentence=sentence)


def _find_overfull(capacity: Capacity) -> Finding | None:
    too_many = capacity.bits_to_learn - capacity.bits_held
    if too_many <= 0:
        return None
    sentence = (
        f"about {capacity.bits_to_learn:,.0f} bits to learn, but the adapter holds about {capacity.bits_held:,.0f}: "
        "raise `rank`, adapt more layers, or expect it to keep the gist only"
    )
    return Finding(check="capacity", severity="warn", count=ceil(too_many), sources=(), sentence=sentence)


def _rejected(rows: Sequence[Row]) -> tuple[Rendered, ...]:
    """Nothing rather than fewer than there are rows: what pairs the two must find them in the same places."""
    found = tuple(row.rejected for row in rows if row.rejected)
    return found if len(found) == len(rows) else ()


def _too_long(rows: Sequence[Row], max_len: int) -> TooLong:
    long = [row for row in rows if row.length > max_len]
    return TooLong(
        count=len(long),
        share_tokens=share(sum(row.num_tokens for row in long), sum(row.num_tokens for row in rows)),
        share_supervised=share(sum(row.num_supervised for row in long), sum(row.num_supervised for row in rows)),
        sources=tuple(row.source for row in long[:MAX_SHOWN]),
    )


def _lengths(rows: Sequence[Row]) -> Lengths:
    """Nearest ranks; zeros without rows."""
    lengths = sorted(row.length for row in rows) or [0]
    p50, p95 = (lengths[ceil(part * len(lengths)) - 1] for part in (0.5, 0.95))
    return Lengths(p50=p50, p95=p95, max=lengths[-1])


def _samples(rows: Sequence[Row], renderer: Renderer) -> tuple[Sample, ...]:
    """The shortest, the median and the longest row, as far as there are three."""
    by_length = sorted(rows, key=lambda row: row.num_tokens)
    places = sorted({0, len(rows) // 2, len(rows) - 1}) if rows else []
    return tuple(_sample(by_length[place], renderer) for place in places)


def _sample(row: Row, renderer: Renderer) -> Sample:
    edges = sorted({0, row.num_tokens, *chain.from_iterable(row.runs)})
    spans = tuple(
        SampleSpan(
            text=str(
                renderer.tokenizer.decode(list(row.rendered.ids[start:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            ),
            is_learned=row.rendered.supervised[start],
        )
        for start, stop in pairwise(edges)
    )
    return Sample(source=row.source, num_tokens=row.num_tokens, spans=spans)


def _with_sources(finding: Finding) -> str:
    return f"{finding.sentence} (see {', '.join(finding.sources)})" if finding.sources else finding.sentence
