"""A dataset's card: where its rows came from and what was found, as JSON, and as one page a person can read."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import ceil, log10
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorimer.config import Shingling
from lorimer.data.example import Example
from lorimer.data.features import Collector, Features, Vocabularies, Vocabulary
from lorimer.data.reading import RowProblem
from lorimer.data.rules import Finding, count_rows
from lorimer.data.shapes import shorten
from lorimer.data.split import SPLITS, Splits
from lorimer.data.staging import NUM_PROBLEMS_KEPT, SourceRead

CARD_VERSION = 2
NUM_ANSWERS_COUNTED = 100_000
COUNTS = ("num_subjects", "num_with_subject", "num_synthetic")  # what cards of version 1 do not say; so are these
MAPPINGS = ("accounting", "licences", "consents", "duplicates")
FEW_ROWS, ENOUGH_ROWS = 1_000, 3_000
MUCH_SYNTHETIC = 0.3
MUCH_REPEATED = 0.1
NUM_ANSWERS_SHOWN = 20
NUM_SAMPLES = 5
SAMPLE_CHARS = 1_000
ANSWER_CHARS = 200
NUM_FIELDS_SHOWN = 12
NUM_BINS = 16

PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """The rows of a dataset as its card sees them: in memory, or on disk."""

    features: Features
    words: Vocabularies
    assigned: npt.NDArray[np.int8]
    """The split of each, or -1 for a row that was left out."""
    examples: Callable[[npt.NDArray[np.int64]], Iterable[Example]]
    """Reads some of them."""


def describe_source(read: SourceRead) -> dict[str, Any]:
    """One source for the card; named without its folder, so that a dataset's digest is the same on every machine."""
    return {
        **read.source.describe(),
        "use": read.use,
        "shape": read.shape,
        "columns": dict(read.columns),
        "columns_not_used": dict(read.unused),
        "num_rows": read.num_read,
        "num_examples": read.num_examples,
        "num_problems": read.num_problems,
    }


def build_card(
    name: str,
    splits: Splits,
    *,
    curation: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
    problems: Sequence[RowProblem],
) -> dict[str, Any]:
    """Everything a reader needs to judge a dataset by; `curation` is what was asked for, as a recipe would say it."""
    examples = list(chain.from_iterable(rows for _, rows in splits.items()))
    collector = Collector(0, Shingling())
    for example in examples:
        collector.add(example, "")
    assigned = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(rows) for _, rows in splits.items()])
    kept = KeptRows(
        features=collector.features(),
        words=collector.words,
        assigned=assigned,
        examples=lambda rows: [examples[row] for row in rows.tolist()],
    )
    return card_of(name, kept, curation=curation, sources=sources, findings=findings, problems=problems)


def card_of(
    name: str,
    kept: KeptRows,
    *,
    curation: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
    problems: Sequence[RowProblem],
    num_problems: int | None = None,
    accounting: Mapping[str, Any] | None = None,
    duplicates: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The same for rows wherever they are; `accounting` says what became of every row that was read."""
    features, rows = kept.features, np.flatnonzero(kept.assigned >= 0)
    is_chat = features.lengths[:, 1] >= 0
    chats = rows[is_chat[rows]]
    asked = chats[:: ceil(len(chats) / NUM_ANSWERS_COUNTED) or 1]
    train = np.flatnonzero(kept.assigned == 0)
    samples = train[:: max(1, len(train) // NUM_SAMPLES)][:NUM_SAMPLES]
    languages = _count_words(kept.words.language, features.language[rows])
    parts = zip(("prompt", "answer", "rejected", "text"), features.lengths[rows].T, strict=True)
    card = {
        "card_version": CARD_VERSION,
        "name": name,
        "curation": dict(curation),
        "sources": [dict(source) for source in sources],
        "splits": {split: _describe_split(features, kept.assigned == number) for number, split in enumerate(SPLITS)},
        "findings": [{**asdict(finding), "examples": list(finding.examples), "reasons": list(finding.reasons)} for finding in findings],
        "accounting": dict(accounting or {}),
        "num_problems": len(problems) if num_problems is None else num_problems,
        "problems": [problem._asdict() for problem in problems[:NUM_PROBLEMS_KEPT]],
        "languages": languages,
        "num_without_language": len(rows) - sum(languages.values()),
        "licences": _count_words(kept.words.licence, features.licence[rows]),
        "consents": _count_words(kept.words.consent, features.consent[rows]),
        "num_subjects": len(np.unique(features.subject[rows][features.subject[rows] > 0])),
        "num_with_subject": int((features.subject[rows] > 0).sum()),
        "num_synthetic": int(features.is_synthetic[rows].sum()),
        "duplicates": dict(duplicates or {}),
        "lengths": {part: describe_lengths(values[values >= 0]) for part, values in parts if (values >= 0).any()},
        "answers": describe_answers([example.answer for example in kept.examples(asked)]),
        "num_answers_counted": len(asked),
        "samples": [_sample(example) for example in kept.examples(samples)],
    }
    return {**card, "advice": advise(card)}


def describe_lengths(num_chars: Sequence[int] | npt.NDArray[np.int32]) -> dict[str, Any]:
    """Quartiles and a histogram of lengths in characters; its last bin takes the longest twentieth, however long."""
    ordered = np.sort(np.asarray(num_chars))
    middle = (int(ordered[(len(ordered) - 1) // 2]) + int(ordered[len(ordered) // 2])) / 2
    p95 = int(ordered[ceil(0.95 * len(ordered)) - 1])
    width = _round_up(max(1, p95 / (NUM_BINS - 1)))
    counts = np.bincount(np.minimum(ordered // width, NUM_BINS - 1))
    bins = [{"from": index * width, "count": count} for index, count in enumerate(counts.tolist())]
    return {"min": int(ordered[0]), "median": round(middle), "p95": p95, "max": int(ordered[-1]), "bin_width": width, "bins": bins}


def describe_answers(answers: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent answers, where answers repeat; for JSON objects, the most frequent values under each key."""
    objects = [_as_object(answer) for answer in answers]
    fields: dict[str, list[str]] = {}
    if None in objects:
        fields["answer"] = list(answers)
    else:
        for key, value in chain.from_iterable(found.items() for found in objects if found):
            fields.setdefault(key, []).append(value)
    usual = [(label, values) for label, values in fields.items() if 2 * len(values) >= len(answers)]
    return [_count_values(label, values) for label, values in usual[:NUM_FIELDS_SHOWN] if _repeats(values)]


def render_card(card: Mapping[str, Any], digest: str) -> str:
    """The card as one HTML page that needs nothing else."""
    total = sum(split["num_examples"] for split in card["splits"].values())
    whole = {**dict.fromkeys(COUNTS, 0), **{key: {} for key in MAPPINGS}, "advice": [], "num_answers_counted": total, **card}
    return PAGE.get_template("card.html.j2").render(card=whole, digest=digest, total=total)


def advise(card: Mapping[str, Any]) -> list[str]:
    """What the field agrees on, as far as it bears on these rows."""
    num_train, total = card["splits"]["train"]["num_examples"], sum(split["num_examples"] for split in card["splits"].values())
    found = []
    if num_train < FEW_ROWS:
        found.append(
            f"Train has {count_rows(num_train)}. Where the field agrees, {FEW_ROWS:,} to {ENOUGH_ROWS:,} clean examples carry a task: "
            "add real ones first, paraphrases sparingly."
        )
    elif num_train <= ENOUGH_ROWS:
        found.append(f"Train has {count_rows(num_train)}: between {FEW_ROWS:,} and {ENOUGH_ROWS:,}, where cleaning pays more than adding.")
    else:
        found.append(
            f"Train has {count_rows(num_train)}. {FEW_ROWS:,} to {ENOUGH_ROWS:,} clean examples often do as well: "
            "compare a run on a part before paying for all."
        )
    if total and card["num_synthetic"] / total > MUCH_SYNTHETIC:
        share = card["num_synthetic"] / total
        found.append(f"{share:.0%} of the rows are synthetic: above {MUCH_SYNTHETIC:.0%}, a model learns the paraphraser's voice.")
    if card["licences"] and (without := total - sum(card["licences"].values())):
        found.append(f"{count_rows(without)} carry no licence while others do: find out, or leave them out.")
    near = card["duplicates"].get("near", 0)
    if total and near / total > MUCH_REPEATED:
        found.append(f"{near / total:.0%} of the rows nearly repeat an earlier one: consider `duplicates: {{near: drop}}` in a rules file.")
    return found


def _describe_split(features: Features, is_in: npt.NDArray[np.bool_]) -> dict[str, Any]:
    digests = features.content[is_in]
    hexed = digests.tobytes().hex()
    # as `digest_of` a list of them
    listed = ",".join(f'"{hexed[at : at + 64]}"' for at in range(0, len(hexed), 64))
    return {"num_examples": len(digests), "digest": hashlib.sha256(f"[{listed}]".encode()).hexdigest()}


def _count_words(words: Vocabulary, numbers: npt.NDArray[np.int32]) -> dict[str, int]:
    """How often each value occurs, the most frequent first; the empty one is none."""
    counts = np.bincount(numbers, minlength=len(words.values)).tolist()
    ranked = sorted(zip(words.values, counts, strict=True), key=lambda pair: -pair[1])
    return {value: count for value, count in ranked if value and count}


def _repeats(values: Sequence[str]) -> bool:
    return len(set(values)) <= max(2, len(values) // 4)


def _count_values(label: str, values: Sequence[str]) -> dict[str, Any]:
    # equal counts stand in the order of the alphabet: the order of first appearance means nothing to a reader
    ranked = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    top = [{"value": shorten(value, ANSWER_CHARS), "count": count} for value, count in ranked[:NUM_ANSWERS_SHOWN]]
    return {"label": label, "num_distinct": len(ranked), "num_values": len(values), "top": top}


def _as_object(answer: str) -> dict[str, str] | None:
    """The keys of a JSON object and its values as text, or None if the answer is none."""
    if not answer.startswith("{"):
        return None
    try:
        found = json.loads(answer)
        return {
            _spell(key): _spell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in found.items()
        }
    except (ValueError, RecursionError):
        return None


def _spell(text: str) -> str:
    """A text that UTF-8 can spell: JSON inside an answer may escape half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ...: bin borders a reader can count by."""
    power = 10 ** int(log10(width))
    return next(int(step * power) for step in (1, 2, 5, 10) if step * power >= width)


def _sample(example: Example) -> dict[str, Any]:
    turns: list[tuple[str, str]] = [(message.role, message.content) for message in example.messages] or [("text", example.text or "")]
    if example.rejected is not None:
        turns.append(("rejected", example.rejected))
    return {
        "source": example.source,
        "tags": dict(example.tags),
        "turns": [{"role": role, "content": shorten(text, SAMPLE_CHARS)} for role, text in turns],
    }
