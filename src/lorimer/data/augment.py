"""Paraphrases of training rows, made by any endpoint that speaks OpenAI's chat completions; sparingly, and every one marked.

Only the last question of a training row is put in other words; its answer stays. A paraphrase that lost a number or a placeholder, that
says the same, or that comes near a validation or test row is refused, with the reason counted. Answers are kept as they come, so that a run
that was stopped goes on where it was. The new dataset has the old one's rows and splits, and its card says how many rows are synthetic.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lorimer.config import home
from lorimer.data.chat_endpoint import ChatEndpoint, Reply
from lorimer.data.dataset import Dataset, write_dataset
from lorimer.data.example import Example
from lorimer.data.paraphrase import INSTRUCTION, Guard, make_row, question
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, Finding
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, DataError
from lorimer.storage import append_jsonl, digest_of, read_jsonl

MAX_SHARE = 0.5
DEFAULT_MAX_TOKENS = 1_000_000
TRIES_PER_ROW, MIN_TRIES = 3, 20
"""Questions asked at most for one row that is wanted: a model that cannot paraphrase must not be asked a whole dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What to make, and where to stop."""

    model: str
    share: float = 0.2
    """Of the new training split, at most this much is synthetic."""
    max_rows: int = 3_000
    """Synthetic rows at most, whatever the share."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Tokens of prompts and answers together, as the endpoint counts them, after which no more is asked."""
    temperature: float = 0.9
    seed: int = 0
    concurrency: int = 4

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.share <= MAX_SHARE:
            problems.append(
                f"share {self.share!r} must be above 0 and at most {MAX_SHARE}: more than half synthetic teaches the endpoint's voice"
            )
        if min(self.max_rows, self.max_tokens, self.concurrency) < 1:
            problems.append(f"max_rows {self.max_rows}, max_tokens {self.max_tokens} and concurrency {self.concurrency} must be at least 1")
        if not 0 <= self.temperature <= 2:
            problems.append(f"temperature {self.temperature!r} must be between 0 and 2")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an augmentation is."""

    num_wanted: int
    num_made: int
    num_refused: int
    num_tokens: int


def num_wanted(num_train: int, settings: Augmentation) -> int:
    """Synthetic rows such that they are `share` of the new training split."""
    return min(settings.max_rows, int(num_train * settings.share / (1 - settings.share)))


def augment(dataset: Dataset, endpoint: ChatEndpoint, settings: Augmentation, *, name: str | None = None) -> Iterator[Progress | Dataset]:
    """Make paraphrases and write a new dataset under `name` (by default the old one's); yields progress, and the new dataset at the end.

    Raises:
        DataError: if no row can be paraphrased, or no paraphrase was of use.
        LorimerError: if the endpoint refuses or stays away; what it answered before is kept, and the same call goes on from there.
    """
    parents = _choose_parents(dataset.train, settings)
    wanted = min(num_wanted(len(dataset.train), settings), len(parents))
    if not wanted:
        raise DataError(
            f"dataset {dataset.name!r} has {len(dataset.train):,} training rows, {len(parents):,} of them with a question that "
            f"was collected: "
            f"none can be paraphrased for a share of {settings.share}"
        )
    guard = Guard([*dataset.validation, *dataset.test], dataset.train)
    kept = _KeptReplies(_folder(dataset, settings))
    made: list[Example] = []
    refused: Counter[str] = Counter()
    num_tokens = 0
    for parent, reply in _replies(parents[: max(MIN_TRIES, TRIES_PER_ROW * wanted)], endpoint, settings, kept):
        num_tokens += reply.num_tokens
        example, reason = make_row(parent, reply.text, settings.model, guard)
        if example is None:
            refused[reason] += 1
        else:
            made.append(example)
            guard.add(example)
        yield Progress(num_wanted=wanted, num_made=len(made), num_refused=refused.total(), num_tokens=num_tokens)
        if len(made) == wanted or num_tokens >= settings.max_tokens:
            break
    if not made:
        raise DataError(f"no paraphrase of {dataset.name!r} was of use: {_list_counts(refused)}; try another model, or another temperature")
    yield _write(name or dataset.name, dataset, made, refused, settings, endpoint.url, num_tokens, wanted)


def _choose_parents(train: Sequence[Example], settings: Augmentation) -> list[Example]:
    """Collected rows with a question, in a seeded order that depends on each row alone."""
    rows = [example for example in train if not example.parent and example.text is None and question(example).strip()]
    return sorted(rows, key=lambda example: digest_of([settings.seed, example.record_digest]))


class _KeptReplies:
    """The endpoint's answers on disk, by their parent's digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Reply] = {}
        if path.exists():
            self.replies = {row["parent"]: Reply(text=row["text"], num_tokens=row["num_tokens"]) for row in read_jsonl(path)}

    def keep(self, parent: str, reply: Reply) -> None:
        """Add an answer, before anything is done with it."""
        append_jsonl(self.path, {"parent": parent, **asdict(reply)})


def _replies(
    parents: Sequence[Example], endpoint: ChatEndpoint, settings: Augmentation, kept: _KeptReplies
) -> Iterator[tuple[Example, Reply]]:
    """Answers in the order of the parents, a few asked for at a time, so that the result does not depend on which came first."""
    queue = iter(parents)
    with ThreadPoolExecutor(settings.concurrency) as pool:
        waiting: list[tuple[Example, Future[Reply] | Reply]] = []
        try:
            while True:
                for parent in islice(queue, settings.concurrency - len(waiting)):
                    known = kept.replies.get(parent.record_digest)
                    waiting.append((parent, known or pool.submit(_ask, parent, endpoint, settings, kept)))
                if not waiting:
                    return
                parent, answer = waiting.pop(0)
                yield parent, answer if isinstance(answer, Reply) else answer.result()
        finally:
            futures = [answer for _, answer in waiting if isinstance(answer, Future)]
            for future in futures:
                future.cancel()
            wait(futures)


def _ask(parent: Example, endpoint: ChatEndpoint, settings: Augmentation, kept: _KeptReplies) -> Reply:
    asked = question(parent)
    seed = random.Random(f"{settings.seed}{parent.record_digest}").randrange(2**31)
    reply = endpoint.ask(
        INSTRUCTION + asked, model=settings.model, temperature=settings.temperature, seed=seed, max_tokens=min(1024, 64 + len(asked))
    )
    kept.keep(parent.record_digest, reply)
    return reply


def _folder(dataset: Dataset, settings: Augmentation) -> Path:
    """Answers belong to the dataset, the model and what was asked of it, not to how many are wanted."""
    key = digest_of([dataset.digest, settings.model, settings.temperature, settings.seed, INSTRUCTION])
    return home() / "augmentations" / f"{key[:16]}.jsonl"


def _write(
    name: str,
    dataset: Dataset,
    made: Sequence[Example],
    refused: Counter[str],
    settings: Augmentation,
    url: str,
    num_tokens: int,
    wanted: int,
) -> Dataset:
    train = (*dataset.train, *made)
    splits = Splits(train=train, validation=dataset.validation, test=dataset.test)
    num_synthetic = sum(bool(example.parent) for example in train)
    share = num_synthetic / len(train)
    message = f"{len(made):,} paraphrases by {settings.model} were added: {share:.1%} of the training split is synthetic"
    message += f"; {refused.total():,} were refused ({_list_counts(refused)})" if refused else ""
    if len(made) < wanted:
        message += f"; {wanted:,} were wanted"
    finding = Finding(rule="augment", message=message, examples=tuple(example.source for example in made[:NUM_EXAMPLES_SHOWN]))
    described = {
        "of": dataset.digest,
        "url": url,
        "model": settings.model,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "num_made": len(made),
        "refused": dict(refused),
        "num_tokens": num_tokens,
        "num_synthetic": num_synthetic,
        "share": share,
    }
    return write_dataset(name, splits, _new_card({**dataset.card, "name": name}, splits, finding, described))


def _new_card(card: Mapping[str, Any], splits: Splits, finding: Finding, described: dict[str, Any]) -> dict[str, Any]:
    counts = {
        name: {**card["splits"][name], "num_examples": len(rows), "digest": digest_of([row.digest for row in rows])}
        for name, rows in splits.items()
    }
    findings = [*card["findings"], {**asdict(finding), "examples": list(finding.examples)}]
    return {
        **card,
        "splits": counts,
        "num_synthetic": described["num_synthetic"],
        "findings": findings,
        "augmentations": [*card.get("augmentations", []), described],
    }


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common()) or "nothing was answered"
