"""A dataset's card: where its rows came from and what was found, as JSON, and as one page a person can read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from math import ceil, log10
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorimer.data.example import Example
from lorimer.data.rules import Finding, num_chars
from lorimer.data.shapes import shorten
from lorimer.data.sources import ReadResult, RowProblem
from lorimer.data.split import Splits
from lorimer.storage import digest_of, digest_of_file

CARD_VERSION = 1
NUM_PROBLEMS_KEPT = 100
NUM_ANSWERS_SHOWN = 20
NUM_SAMPLES = 5
SAMPLE_CHARS = 1_000
ANSWER_CHARS = 200
NUM_FIELDS_SHOWN = 12
NUM_BINS = 16

PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def describe_source(path: Path, result: ReadResult, *, use: str) -> dict[str, Any]:
    """One source file for the card; named without its folder, so that a dataset's digest is the same on every machine."""
    return {
        "file": path.name,
        "use": use,
        "sha256": digest_of_file(path),
        "num_bytes": path.stat().st_size,
        "shape": result.shape,
        "columns": dict(result.columns),
        "columns_not_used": dict(result.unused),
        "num_examples": len(result.examples),
        "num_problems": len(result.problems),
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
    tags = Counter(example.tags["language"] for example in examples if "language" in example.tags)
    chats = [example for example in examples if example.text is None]
    lengths = {
        "prompt": [num_chars(chat) - len(chat.answer) for chat in chats],
        "answer": [len(chat.answer) for chat in chats],
        "rejected": [len(chat.rejected) for chat in chats if chat.rejected is not None],
        "text": [len(example.text) for example in examples if example.text is not None],
    }
    return {
        "card_version": CARD_VERSION,
        "name": name,
        "curation": dict(curation),
        "sources": [dict(source) for source in sources],
        "splits": {split: {"num_examples": len(rows), "digest": digest_of([row.digest for row in rows])} for split, rows in splits.items()},
        "findings": [{**asdict(finding), "examples": list(finding.examples)} for finding in findings],
        "num_problems": len(problems),
        "problems": [asdict(problem) for problem in problems[:NUM_PROBLEMS_KEPT]],
        "languages": dict(tags.most_common()),
        "num_without_language": len(examples) - tags.total(),
        "lengths": {part: describe_lengths(values) for part, values in lengths.items() if values},
        "answers": describe_answers([chat.answer for chat in chats]),
        "samples": [_sample(example) for example in splits.train[:: max(1, len(splits.train) // NUM_SAMPLES)][:NUM_SAMPLES]],
    }


def describe_lengths(num_chars: Sequence[int]) -> dict[str, Any]:
    """Quartiles and a histogram of lengths in characters; its last bin takes the longest twentieth, however long."""
    ordered = sorted(num_chars)
    p95 = ordered[ceil(0.95 * len(ordered)) - 1]
    width = _round_up(max(1, p95 / (NUM_BINS - 1)))
    counts = Counter(min(value // width, NUM_BINS - 1) for value in ordered)
    bins = [{"from": index * width, "count": counts[index]} for index in range(max(counts) + 1)]
    return {"min": ordered[0], "median": round(median(ordered)), "p95": p95, "max": ordered[-1], "bin_width": width, "bins": bins}


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
    return PAGE.get_template("card.html.j2").render(card=card, digest=digest, total=total)


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
