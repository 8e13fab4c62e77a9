"""One small check per known way to waste a run. It judges rendered rows, by ids and masks alone, and knows nothing of the report.

A finding that says "stop" would waste the run, one that says "warn" would not, but changes what its result means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from lorimer.data.rules import count_rows
from lorimer.data.shapes import shorten
from lorimer.data.split import SPLITS, SplitName
from lorimer.model.chat import Rendered, Renderer

MAX_LONG_SHARE = 0.5  # of the rows; with more left out, what is learned is no longer the dataset
MAX_RECALLED_SHARE = 0.01  # of a held-out split; with more known by heart, its score says little
MAX_SHOWN = 5
HELD_OUT: tuple[SplitName, ...] = tuple(name for name in SPLITS if name != "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    severity: Literal["stop", "warn"]
    count: int
    """Rows concerned, or bits too many where it is about capacity."""
    sources: tuple[str, ...]
    """The first few rows; where a held-out row repeats a training row, the one after the other."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An example as it is learned."""

    source: str
    is_chat: bool
    rendered: Rendered
    runs: tuple[tuple[int, int], ...]
    """Where learned tokens start and stop; in a conversation, its answers."""
    num_ends: tuple[int, ...]
    """Ends of turn, by run."""
    rejected: Rendered | None
    """The same conversation with the worse answer in place of its last one, where the row has both."""

    @property
    def num_tokens(self) -> int:
        """Prompt and answers."""
        return len(self.rendered.ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned."""
        return self.rendered.num_supervised

    @property
    def length(self) -> int:
        """What has to fit: of a pair, the longer."""
        return max(self.num_tokens, len(self.rejected.ids)) if self.rejected else self.num_tokens

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the last answer; of plain text, all of it."""
        return self.rendered.ids[: self.runs[-1][0]] if self.is_chat and self.runs else self.rendered.ids

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """The learned tokens, by run."""
        return tuple(self.rendered.ids[start:stop] for start, stop in self.runs)


def check_rows(rows: Mapping[SplitName, Sequence[Row]], renderer: Renderer, *, max_len: int) -> tuple[Finding, ...]:
    """Put every check to the rows of all splits."""
    train = [row for row in rows["train"] if row.length <= max_len]
    found = (
        _find_none_fits(rows["train"], max_len),
        _find_too_long(rows["train"], max_len),
        _find_mixed_preferences(rows["train"]),
        *(check(train, renderer) for check in CHECKS),
        *(_find_unscored(rows[name], name, max_len) for name in HELD_OUT),
        *(_find_leakage(train, rows[name], name) for name in HELD_OUT),
    )
    return tuple(finding for finding in found if finding)


def _find_none_fits(rows: Sequence[Row], max_len: int) -> Finding | None:
    if any(row.length <= max_len for row in rows):
        return None
    if not rows:
        sentence = "no training row is left to learn from: add rows"
        return Finding(check="none_fits", severity="stop", count=0, sources=(), sentence=sentence)
    shortest = min(row.length for row in rows)
    sentence = f"no training row has at most {max_len:,} tokens, the shortest has {shortest:,}: raise `max_len` or shorten the rows"
    return _finding("none_fits", "stop", rows, sentence)


def _find_too_long(rows: Sequence[Row], max_len: int) -> Finding | None:
    long = [row for row in rows if row.length > max_len]
    if len(long) == len(rows):
        return None  # then none fits, which is said already
    lost = share(sum(row.num_supervised for row in long), sum(row.num_supervised for row in rows))
    sentence = (
        f"{len(long):,} of {count_rows(len(rows))} left out, longer than {max_len:,} tokens, and with them {lost:.1%} "
        "of all that would be learned: raise `max_len` or split the rows"
    )
    return _finding("too_long", "stop" if len(long) > MAX_LONG_SHARE * len(rows) else "warn", long, sentence)


def _find_mixed_preferences(rows: Sequence[Row]) -> Finding | None:
    without = [row for row in rows if not row.rejected]
    if len(without) == len(rows):
        return None
    sentence = (
        f"{len(without):,} of {count_rows(len(rows))} without a rejected answer, which the others have: give one to all rows or to none"
    )
    return _finding("mixed_preferences", "stop", without, sentence)


def _find_mask_empty(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    if any(_teaches(row) for row in rows):
        return None
    return _finding("mask_empty", "stop", rows, "the mask leaves no token of any row to learn: give the base another chat template")


def _find_no_signal(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    found = [row for row in rows if not _teaches(row)]
    if len(found) == len(rows):
        return None  # then the mask is empty, which is said already
    return _finding(
        "no_signal", "stop", found, f"{count_rows(len(found))} without any token to learn: give each an answer, or leave it out"
    )


def _find_mask_whole(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    """Conversations whose prompt is learned too, be it without the token every row begins with."""
    bos = renderer.tokenizer.bos_token_id
    found = [row for row in rows if row.is_chat and _is_whole(row, bos)]
    sentence = (
        f"{count_rows(len(found))} of conversation learned whole, prompt and all: correct the base's chat template, "
        "or give the rows as plain text if that is meant"
    )
    return _finding("mask_whole", "stop", found, sentence)


def _find_duplicate_bos(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    """Twice at the start, or learned in an answer. Before later prompts some templates want it, and some bases end with it."""
    bos, bos_token = renderer.tokenizer.bos_token_id, renderer.tokenizer.bos_token
    if bos is None:
        return None
    is_end = bos in renderer.stop_ids
    found = [row for row in rows if row.rendered.ids[:2] == (bos, bos) or (row.is_chat and not is_end and _learns(row, bos))]
    sentence = f"{count_rows(len(found))} with {bos_token!r} again after the beginning: take it out of the texts, or of the base's template"
    return _finding("duplicate_bos", "stop", found, sentence)


def _find_end_not_learned(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    found = [row for row in rows if row.is_chat and any(answer[-1] not in renderer.stop_ids for answer in row.answers)]
    sentence = (
        f"{count_rows(len(found))} with an answer whose end of turn is not learned, so that the adapter would not stop: "
        "correct the base's chat template, or take its special tokens out of the answers"
    )
    return _finding("end_not_learned", "stop", found, sentence)


def _find_end_learned_twice(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    found = [row for row in rows if row.is_chat and any(num_ends > 1 for num_ends in row.num_ends)]
    tokens = ", ".join(renderer.tokenizer.convert_ids_to_tokens(sorted(renderer.stop_ids)))
    sentence = (
        f"{count_rows(len(found))} with an answer in which the end of turn ({tokens}) is learned more than once: "
        "take it out of the answers, or of the base's chat template"
    )
    return _finding("end_learned_twice", "stop", found, sentence)


def _find_marker_spelled(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    """Answers in which an end or a beginning is spelled: letters like any others, which the adapter would then say."""
    bos, markers = renderer.tokenizer.bos_token_id, set[int]()
    found = []
    for row in rows:
        spelled = {i for answer in row.answers if row.is_chat for i in renderer.spelling.ids_in(renderer.decode(answer))}
        if own := spelled & {*renderer.stop_ids, bos}:
            found.append(row)
            markers |= own
    tokens = ", ".join(renderer.tokenizer.convert_ids_to_tokens(sorted(markers)))
    told = f"{count_rows(len(found))} with an answer that spells {tokens}, which the adapter would learn to say in letters"
    return _finding("marker_spelled", "stop", found, f"{told}: take it out of the texts")


def _find_pad_learned(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    """A padding token that also ends turns is rightly learned; in the middle of an answer it is then an end learned twice."""
    pad = renderer.tokenizer.pad_token_id
    if pad is None or pad in renderer.stop_ids:
        return None
    found = [row for row in rows if _learns(row, pad)]
    sentence = f"{count_rows(len(found))} with the padding token {renderer.tokenizer.pad_token!r} to learn: take it out of the answers"
    return _finding("pad_learned", "warn", found, sentence)


def _find_unknown_tokens(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    """Some bases name their beginning or end as the unknown token too: then it says nothing."""
    tokenizer = renderer.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in renderer.stop_ids or unknown == tokenizer.bos_token_id:
        return None
    found = [row for row in rows if unknown in row.rendered.ids]
    sentence = (
        f"{count_rows(len(found))} with characters the base cannot read ({tokenizer.unk_token!r}): replace them, or take another base"
    )
    return _finding("unknown_tokens", "warn", found, sentence)


def _find_duplicates(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    seen: set[tuple[tuple[int, ...], Rendered | None]] = set()
    found = []
    for row in rows:
        content = (row.rendered.ids, row.rejected)
        if content in seen:
            found.append(row)
        seen.add(content)
    part = f"{share(len(found), len(rows)):.1%} of all"
    sentence = f"{count_rows(len(found))}, {part}, the same as an earlier one: each counts again, so leave them out unless that is meant"
    return _finding("duplicates", "warn", found, sentence)


def _find_contradictions(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in _with_prompt(rows):
        if row.is_chat:
            groups.setdefault(row.prompt, []).append(row)
    found = [row for group in groups.values() if len({row.answers[-1] for row in group}) > 1 for row in group]
    sentence = f"{count_rows(len(found))} with the prompt of another but not its answer: decide which is right, and leave out the other"
    return _finding("contradictions", "warn", found, sentence)


def _find_identical_answers(rows: Sequence[Row], renderer: Renderer) -> Finding | None:
    if len(rows) < 2 or not rows[0].runs or any(row.answers != rows[0].answers for row in rows):
        return None
    answer = shorten(renderer.decode(rows[0].answers[-1]))
    sentence = f"all {count_rows(len(rows))} have the answer {answer!r}, whatever is asked: add rows with other answers"
    return _finding("identical_answers", "warn", rows, sentence)


def _find_unscored(held_out: Sequence[Row], name: SplitName, max_len: int) -> Finding | None:
    long = [row for row in held_out if row.length > max_len]
    sentence = (
        f"{name}: {len(long):,} of {count_rows(len(held_out))} left out of the score, longer than {max_len:,} tokens: "
        "raise `max_len` or shorten the rows"
    )
    return _finding(f"too_long_{name}", "warn", long, sentence)


def _find_leakage(train: Sequence[Row], held_out: Sequence[Row], name: SplitName) -> Finding | None:
    """Held-out rows that ask what a training row asks; where more than a few have its answer too, the score says little."""
    answers: dict[tuple[int, ...], dict[tuple[int, ...], str]] = {}
    for row in _with_prompt(train):
        answers.setdefault(row.prompt, {}).setdefault(row.answers[-1], row.source)
    leaked = [(row, answers[row.prompt]) for row in _with_prompt(held_out) if row.prompt in answers]
    if not leaked:
        return None
    num_recalled = sum(row.answers[-1] in known for row, known in leaked)
    pairs = [(row.source, known.get(row.answers[-1]) or next(iter(known.values()))) for row, known in leaked[:MAX_SHOWN]]
    is_spoilt = num_recalled > MAX_RECALLED_SHARE * len(held_out)
    sentence = (
        f"{name}: {len(leaked):,} of {count_rows(len(held_out))} with the prompt of a training row, {num_recalled:,} also with its answer: "
        + (f"what is measured on {name} will be memory, not skill, so DO NOT RELY ON IT; " if is_spoilt else "")
        + "leave these rows out of one of the two, as `lorimer data curate` does with the files it splits"
    )
    sources = tuple(chain.from_iterable(pairs))
    return Finding(check=f"leakage_{name}", severity="warn", count=len(leaked), sources=sources, sentence=sentence)


CHECKS: tuple[Callable[[Sequence[Row], Renderer], Finding | None], ...] = (
    _find_mask_empty,
    _find_no_signal,
    _find_mask_whole,
    _find_duplicate_bos,
    _find_end_not_learned,
    _find_end_learned_twice,
    _find_marker_spelled,
    _find_pad_learned,
    _find_unknown_tokens,
    _find_duplicates,
    _find_contradictions,
    _find_identical_answers,
)
"""What is asked of the training rows that fit."""


def _finding(check: str, severity: Literal["stop", "warn"], rows: Sequence[Row], sentence: str) -> Finding | None:
    """None without rows."""
    sources = tuple(row.source for row in rows[:MAX_SHOWN])
    return Finding(check=check, severity=severity, count=len(rows), sources=sources, sentence=sentence) if rows else None


def _learns(row: Row, token: int) -> bool:
    """Whether a token is learned, but for the first place, which nothing predicts."""
    return any(token in row.rendered.ids[max(start, 1) : stop] for start, stop in row.runs)


def _is_whole(row: Row, bos: int | None) -> bool:
    """Whether all is learned, but for a beginning-of-sequence token."""
    first = 1 if row.rendered.ids[:1] == (bos,) else 0
    return row.runs in (((0, row.num_tokens),), ((first, row.num_tokens),))


def _with_prompt(rows: Sequence[Row]) -> list[Row]:
    """Rows that ask something; a single token is only what every row begins with."""
    return [row for row in rows if row.runs and len(row.prompt) > 1]


def _teaches(row: Row) -> bool:
    """Whether a token is learned that can be: a row's first is predicted from nothing."""
    return any(stop > 1 for _, stop in row.runs)


def share(part: int, whole: int) -> float:
    """A part of a whole; zero of nothing."""
    return part / whole if whole else 0.0
