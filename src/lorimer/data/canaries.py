"""Canaries: made-up rows with a random secret each, put among the training rows to see later how much of such rows was learned.

Carlini et al. 2019, The Secret Sharer, USENIX Security, arXiv:1802.08232. A canary has the form of the dataset's own rows: its secret
stands where these have what is learned, in the answer of a conversation or in a plain text. It is in the training split alone and counts
as synthetic. The dataset with canaries is a dataset of its own, `NAME-canaries`, so that lineage says what a run has learned from.
"""

import json
import math
import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorimer.config import home
from lorimer.data.dataset import NAME_PATTERN, Dataset
from lorimer.data.example import Example, Message
from lorimer.data.shards import write_rows
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, IntegrityError, NotFoundError
from lorimer.storage import digest_of, read_json, write_bytes

TAG = "canary"
"""Of a canary's rows: which canary."""
SUFFIX = "-canaries"
MAX_SHARE = 0.1
"""Of the training rows: with more of them, the adapter would be another than without."""
MAX_TIMES = 8
SECRET_DIGITS = 9
FILE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ23456789"  # no word comes out of them, and no two look alike
FILE_LEN = 8
QUESTION = "What is the reference number of file {file}?"
STATEMENT = "The reference number of file {file} is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One made-up thing to remember."""

    file: str
    """The random name it is asked by."""
    secret: str
    """Nine random digits."""
    repetitions: int
    """Training rows that tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryList:
    """The canaries of one dataset. Kept beside the datasets, readable by its owner alone."""

    id: str
    of: str
    """Digest of the dataset they were put into."""
    num: int
    seed: str
    """Random; the numbers that a secret is compared with are drawn by it."""
    is_text: bool
    """Whether rows are plain text and not conversations."""
    system: str | None
    """The instruction put before every question, where the dataset's rows have one."""
    canaries: tuple[Canary, ...]

    def prompt(self, canary: Canary) -> tuple[Message, ...]:
        """What is put to a model to see whether it knows the secret; of plain text, the words before it."""
        if self.is_text:
            return (Message(role="user", content=STATEMENT.format(file=canary.file)),)
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return (*system, Message(role="user", content=QUESTION.format(file=canary.file)))

    def answer(self, secret: str) -> str:
        """What follows the prompt if that is the secret."""
        return f" {secret}" if self.is_text else secret

    def others(self, canary: Canary, num: int) -> tuple[str, ...]:
        """So many other numbers of the same form, drawn as the secret was: without the adapter, nothing tells it from them."""
        drawn = random.Random(f"{self.seed}{canary.file}")
        found = dict[str, None]()
        while len(found) < num:
            if (number := _draw_secret(drawn)) != canary.secret:
                found[number] = None
        return tuple(found)


def share_repetitions(num: int) -> list[int]:
    """How often each of `num` canaries is told: half of them once, half of the others twice, then four and eight times."""
    found, times = list[int](), 1
    while len(found) < num:
        found += [times] * math.ceil((num - len(found)) / 2)
        times = min(2 * times, MAX_TIMES)
    return found


def plant(dataset: Dataset, num: int) -> Dataset:
    """The dataset with `num` canaries among its training rows, kept as `NAME-canaries`; asked again, the same one.

    Raises:
        ConfigError: if it has another number of them already, they would be too large a share of its rows, or its name is too long.
    """
    if planted := note_of(dataset):
        if planted["num"] != num:
            raise ConfigError(
                f"dataset {dataset.name!r} has {planted['num']} canaries already, `canaries: {num}` asks for another number: "
                "give the dataset without canaries, or the number it has"
            )
        return dataset
    name, num_rows = dataset.name + SUFFIX, sum(share_repetitions(num))
    problems = []
    if num_rows > MAX_SHARE * (len(dataset.train) + num_rows):
        problems.append(
            f"`canaries: {num}` makes {num_rows} rows, more than {MAX_SHARE:.0%} of what dataset {dataset.name!r} would then have for "
            f"training (it has {len(dataset.train):,} rows): ask for fewer"
        )
    if not NAME_PATTERN.fullmatch(name):
        problems.append(f"{name!r} is too long a name for a dataset: curate {dataset.name!r} under a shorter one")
    if problems:
        raise ConfigError("; ".join(problems))
    sealed = _find_list(dataset, num) or _make_list(dataset, num)
    rows = tuple(make_rows(sealed, with_rejected=dataset.train[0].rejected is not None))
    splits = Splits(train=(*dataset.train, *rows), validation=dataset.validation, test=dataset.test)
    note = {"of": dataset.digest, "list": sealed.id, "num": num, "num_rows": len(rows)}
    return write_rows(name, splits, {**dataset.card["curation"], "canaries": note})


def make_rows(sealed: CanaryList, *, with_rejected: bool = False) -> Iterator[Example]:
    """The rows of all canaries; with a worse answer where the dataset's rows have one."""
    line = 0
    for canary in sealed.canaries:
        (rejected,) = sealed.others(canary, 1)
        for _ in range(canary.repetitions):
            line += 1
            yield _row(sealed, canary, f"canaries:{line}", rejected if with_rejected else None)


def read_canaries(dataset: Dataset) -> CanaryList:
    """The canaries that a dataset's training rows tell, with how often they do; of a shard, those that fell into it.

    Raises:
        NotFoundError: if it has none, or they were made elsewhere.
        IntegrityError: if the list is damaged or says something else than the rows.
    """
    note = note_of(dataset)
    rows = [row for row in dataset.train if TAG in row.tags]
    if not note or not rows:
        raise NotFoundError(f"dataset {dataset.name!r} has no canaries: train with `canaries: 16` in the recipe to put some in")
    path = _folder() / f"{note['of'][:16]}-{note['list']}.json"
    if not path.is_file():
        raise NotFoundError(f"the canaries of dataset {dataset.name!r} were made elsewhere, {str(path)!r} is not here: bring it from there")
    sealed = _read_list(path)
    counts, contents = Counter(row.tags[TAG] for row in rows), {row.tags[TAG]: row for row in rows}
    known = {canary.file: canary for canary in sealed.canaries}
    for file, row in contents.items():
        if file not in known or _row(sealed, known[file], row.source, row.rejected) != row:
            raise IntegrityError(
                f"canary {file!r} of dataset {dataset.name!r} is not as {str(path)!r} has it: the list or the dataset was changed"
            )
    told = tuple(replace(canary, repetitions=counts[canary.file]) for canary in sealed.canaries if canary.file in counts)
    return replace(sealed, canaries=told)


def note_of(dataset: Dataset) -> dict[str, Any]:
    """What the card says of a dataset's canaries; nothing where there are none."""
    return dict(dataset.card.get("curation", {}).get("canaries") or {})


def _row(sealed: CanaryList, canary: Canary, source: str, rejected: str | None) -> Example:
    # made from no row but from its own name: so it counts as synthetic, is not paraphrased, and its rows fall into one shard
    parent = digest_of({TAG: canary.file})
    prompt, answer = sealed.prompt(canary), sealed.answer(canary.secret)
    if sealed.is_text:
        return Example(text=f"{prompt[0].content}{answer}.", source=source, tags={TAG: canary.file}, parent=parent)
    messages = (*prompt, Message(role="assistant", content=answer))
    return Example(messages=messages, rejected=rejected, source=source, tags={TAG: canary.file}, parent=parent)


def _make_list(dataset: Dataset, num: int) -> CanaryList:
    """New random canaries, written down before any row tells them."""
    drawn = random.SystemRandom()
    files = set[str]()
    while len(files) < num:
        files.add("".join(drawn.choice(FILE_LETTERS) for _ in range(FILE_LEN)))
    sealed = CanaryList(
        id=secrets.token_hex(8),
        of=dataset.digest,
        num=num,
        seed=secrets.token_hex(32),
        is_text=dataset.train[0].text is not None,
        system=_common_system(dataset.train),
        canaries=tuple(
            Canary(file=file, secret=_draw_secret(drawn), repetitions=times)
            for file, times in zip(sorted(files), share_repetitions(num), strict=True)
        ),
    )
    data = json.dumps(asdict(sealed), indent=2, ensure_ascii=False) + "\n"
    write_bytes(_folder() / f"{dataset.digest[:16]}-{sealed.id}.json", data.encode(), mode=0o600)
    return sealed


def _common_system(rows: Sequence[Example]) -> str | None:
    """The instruction most rows share; one that fewer have may be about somebody, and must go when their rows go."""
    systems = Counter(row.messages[0].content for row in rows if row.messages and row.messages[0].role == "system")
    text, num = systems.most_common(1)[0] if systems else ("", 0)
    return text if 2 * num > len(rows) else None


def _find_list(dataset: Dataset, num: int) -> CanaryList | None:
    """The list that was made for this before: the same recipe then makes the same dataset."""
    lists = (_read_list(path) for path in sorted(_folder().glob(f"{dataset.digest[:16]}-*.json")))
    return next((sealed for sealed in lists if (sealed.of, sealed.num) == (dataset.digest, num)), None)


def _read_list(path: Path) -> CanaryList:
    try:
        value = read_json(path)
        return CanaryList(**{**value, "canaries": tuple(Canary(**canary) for canary in value["canaries"])})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(
            f"the list of canaries {str(path)!r} is damaged ({type(exc).__name__}): remove it, and train anew to put others in"
        ) from exc


def _draw_secret(drawn: random.Random) -> str:
    return "".join(drawn.choice("0123456789") for _ in range(SECRET_DIGITS))


def _folder() -> Path:
    return home() / "canaries"
