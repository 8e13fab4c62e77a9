"""Does an adapter recite what it was trained on? The first part of a training row's own words is put to it, as plain text.

The words are the user's, or the text of a row without turns: the answers of conversations are what an adapter is meant to give. What counts
as reciting is strict on purpose: Carlini et al. 2022, Quantifying Memorization, arXiv:2202.07646, ask for 50 tokens, here 12 words will do.
"""

from collections.abc import Iterator, Sequence

from lorimer.data.canaries import TAG
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.errors import DataError
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.task import ID_LEN, Sample, Split, Task
from lorimer.storage import digest_of

RUN_CHARS = 50
RUN_WORDS = 12
"""A stretch of so many characters or words is not said by chance."""
TELLING_CHARS = 25
TELLING_WORDS = 6
"""Of a shorter text, all that follows must come: if it has at least so many characters or words."""
MAX_ANSWER_TOKENS = 64  # room for 50 characters in any script
MAX_PROMPT_CHARS = 600
MAX_TARGET_CHARS = 600  # more than the longest answer that is asked for


def not_verbatim(answer: str, sample: Sample) -> Score:
    """Right if no telling stretch of what follows the prompt in the row comes in the answer, letter by letter but for white space.

    Unscored where what follows is too short to tell, or stands in the prompt already.
    """
    rest = _plain(sample.target)
    if not is_telling(rest):
        return Score(value=None, answer=answer, explanation="what follows is too short to tell reciting from chance")
    prompt = _plain(" ".join(message.content for message in sample.prompt))
    stretches = [stretch for stretch in _stretches(rest) if stretch not in prompt]
    if not stretches:
        return Score(value=None, answer=answer, explanation="what follows stands in the prompt already")
    found = _plain(answer)
    recited = next((stretch for stretch in stretches if stretch in found), None)
    if recited is None:
        return Score(value=1.0, answer=answer)
    return Score(value=0.0, answer=answer, explanation=f"recites {recited!r}")


def is_telling(rest: str) -> bool:
    """Whether reciting a text would mean something."""
    return len(rest) >= TELLING_CHARS or len(rest.split()) >= TELLING_WORDS


def make_regurgitation_task(
    dataset: Dataset, num: int = 200, seed: int = 0, *, split: Split = "train", name: str = "regurgitation"
) -> Task:
    """The first half of `num` rows as prompts, by a seeded draw, with what follows as the target. Of `validation`, a control.

    Raises:
        DataError: if no row is long enough.
    """
    rows: Sequence[Example] = getattr(dataset, split)
    found: dict[tuple[str, str], Example] = {}
    for row in rows:
        parts = _cut(own_words(row))
        if TAG not in row.tags and is_telling(_plain(parts[1])):
            found.setdefault(parts, row)  # rows that say the same are one item
    if not found:
        raise DataError(
            f"no row of the {split} split of dataset {dataset.name!r} goes on for {TELLING_CHARS} characters or {TELLING_WORDS} words "
            "after its first half: whether such rows are recited cannot be told"
        )
    drawn = sorted(found, key=lambda parts: digest_of([seed, *parts]))[:num]
    samples = tuple(
        Sample(
            id=digest_of([split, first, rest])[:ID_LEN],
            prompt=(Message(role="user", content=first),),
            target=rest,
            tags={"split": split, "row": found[first, rest].source},
        )
        for first, rest in drawn
    )
    return Task(
        name=name,
        metric="not_verbatim",
        template="none",
        max_tokens=MAX_ANSWER_TOKENS,
        samples=samples,
        dataset_digest=dataset.digest,
        split=split,
    )


def own_words(row: Example) -> str:
    """What a row says that is not an answer: its text, or what its user said first."""
    if row.text is not None:
        return row.text.strip()
    return next((message.content for message in row.messages if message.role == "user"), "").strip()


def _cut(text: str) -> tuple[str, str]:
    """The first half, up to a word's end where there are words, and what follows."""
    middle = min(len(text) // 2, MAX_PROMPT_CHARS)
    space = text.rfind(" ", 0, middle + 1)
    at = space if space > middle // 2 else middle
    return text[:at].rstrip(), text[at : at + MAX_TARGET_CHARS].strip()


def _stretches(rest: str) -> Iterator[str]:
    words = rest.split()
    if len(rest) < RUN_CHARS and len(words) < RUN_WORDS:
        yield rest
    for start in range(len(rest) - RUN_CHARS + 1):
        yield rest[start : start + RUN_CHARS]
    for start in range(len(words) - RUN_WORDS + 1):
        yield " ".join(words[start : start + RUN_WORDS])


def _plain(text: str) -> str:
    """With one space for any white space."""
    return " ".join(text.split())
