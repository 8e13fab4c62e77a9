"""What changed from one dataset to another: rows that came, went, moved between splits, or got another answer; told by digests."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorimer.data.dataset import DatasetFolder
from lorimer.data.features import hash_of
from lorimer.data.rules import folded_prompt
from lorimer.data.split import SPLITS

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDiff:
    """Two datasets side by side; rows are the same where what training sees of them is."""

    before: str
    after: str
    num_same: int
    added: Mapping[str, int]
    """By split, rows that only the later one has."""
    removed: Mapping[str, int]
    moved: Mapping[str, int]
    """By `from -> to`, rows that are in both, in different splits."""
    num_reanswered: int
    """Of the rows that came, those whose prompt was there before with another answer."""
    num_relabelled: int
    """Rows in both whose source, tags, licence, consent or subject differ."""
    examples: Mapping[str, tuple[str, ...]]
    """Sources of the first few rows that were added and removed."""
    options: Mapping[str, tuple[Any, Any]]
    """What was asked for differently when they were curated: before, after."""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def describe(self) -> list[str]:
        """For people, one line each."""
        lines = [f"{self.num_same:,} rows are the same in the same split"]
        for what, counts in (("added", self.added), ("removed", self.removed)):
            if counts:
                shown = ", ".join(f"{split} {count:,}" for split, count in counts.items())
                lines.append(f"{what}: {shown} ({', '.join(self.examples[what])})")
        lines += [f"moved {way}: {count:,}" for way, count in self.moved.items()]
        if self.num_reanswered:
            lines.append(f"{self.num_reanswered:,} of the added rows ask what was asked before, and answer otherwise")
        if self.num_relabelled:
            lines.append(f"{self.num_relabelled:,} rows have the same content, but another source, tag, licence, consent or subject")
        lines += [f"curated with {key} {after!r}, before {before!r}" for key, (before, after) in self.options.items()]
        return lines


def compare(before: DatasetFolder, after: DatasetFolder) -> DatasetDiff:
    """Compare two datasets by the digests of their rows."""
    old, old_prompts = _rows(before)
    new, _ = _rows(after)
    counts: dict[str, dict[str, int]] = {"added": {}, "removed": {}, "moved": {}}
    examples: dict[str, list[str]] = {"added": [], "removed": []}
    num_same = num_relabelled = num_reanswered = 0
    for content, row in new.items():
        was = old.get(content)
        if was is None:
            _count(counts["added"], row.split)
            examples["added"] += [row.source][: NUM_SHOWN - len(examples["added"])]
            num_reanswered += row.prompt in old_prompts
            continue
        num_relabelled += was.record != row.record
        if was.split == row.split:
            num_same += 1
        else:
            _count(counts["moved"], f"{was.split} -> {row.split}")
    for content, row in old.items():
        if content not in new:
            _count(counts["removed"], row.split)
            examples["removed"] += [row.source][: NUM_SHOWN - len(examples["removed"])]
    options = [each.card.get("curation", {}) for each in (before, after)]
    differing = {key: (options[0].get(key), options[1].get(key)) for key in sorted({*options[0], *options[1]})}
    return DatasetDiff(
        before=before.digest,
        after=after.digest,
        num_same=num_same,
        num_reanswered=num_reanswered,
        num_relabelled=num_relabelled,
        examples={what: tuple(sources) for what, sources in examples.items()},
        options={key: pair for key, pair in differing.items() if pair[0] != pair[1]},
        **counts,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    split: str
    source: str
    record: bytes
    prompt: int


def _rows(dataset: DatasetFolder) -> tuple[dict[tuple[bytes, int], _Row], set[int]]:
    """By the digest of its content (and which of several equal ones it is), each row; and what was asked."""
    rows: dict[tuple[bytes, int], _Row] = {}
    times: dict[bytes, int] = {}
    prompts = set[int]()
    for split in SPLITS:
        for example in dataset.rows(split):
            content = bytes.fromhex(example.digest)
            times[content] = times.get(content, -1) + 1
            prompt = hash_of(folded_prompt(example))
            prompts.add(prompt)
            rows[content, times[content]] = _Row(split, example.source, bytes.fromhex(example.record_digest), prompt)
    return rows, prompts


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
