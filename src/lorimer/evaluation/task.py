"""What an adapter is asked: Samples with a wanted answer, gathered in a Task named by digest. It knows neither models nor scores."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.errors import DataError
from lorimer.storage import digest_of

Split = Literal["train", "validation", "test"]
Kind = Literal["answer", "choice", "text"]
"""What is asked for: a greedy answer; which of some continuations is the likeliest; how likely a text is, and how far from the base's."""
Template = Literal["chat", "none"]
ID_LEN = 16  # hex digits of an example's digest: 64 bits, enough for any data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question and the answer that is wanted."""

    id: str
    """Made from the content, so that two evaluations can be compared item by item."""
    prompt: tuple[Message, ...]
    target: str
    tags: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    """Where one of several answers is right: all of them, the target among them."""
    group: str = ""
    """Items that are not independent have one in common (paraphrases, turns of a conversation, questions on one text)."""
    spec: dict[str, Any] = field(default_factory=dict)
    """What a scorer needs beyond the target: instructions to verify, a context, a JSON schema, a database."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value a task's digest is taken of."""
        prompt = [{"role": message.role, "content": message.content} for message in self.prompt]
        own = {"id": self.id, "prompt": prompt, "target": self.target, "tags": self.tags}
        return own | {"choices": list(self.choices), "group": self.group, "spec": self.spec}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Samples and how their answers are scored."""

    name: str
    """The dataset's name."""
    metric: str
    """A scorer's name."""
    samples: tuple[Sample, ...]
    dataset_digest: str
    split: Split = "test"
    kind: Kind = "answer"
    template: Template = "chat"
    """How a prompt is put: as a conversation, or as it is."""
    max_tokens: int | None = None
    """Longest answer; None for a little more than the longest target."""

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides a score: equal digests, comparable reports."""
        samples = [sample.to_json() for sample in self.samples]
        how = {"kind": self.kind, "template": self.template, "max_tokens": self.max_tokens}
        return digest_of({"metric": self.metric, "split": self.split, "dataset_digest": self.dataset_digest, "samples": samples, **how})


def task_from_dataset(dataset: Dataset, metric: str, split: Split = "test") -> Task:
    """Ask a split of a dataset: the prompt of every conversation, with its last answer as the target.

    Raises:
        DataError: if the split is empty, holds plain text, or asks the same thing twice; every such row is named.
    """
    examples: tuple[Example, ...] = getattr(dataset, split)
    where = f"the {split} split of dataset {dataset.name!r}"
    if not examples:
        raise DataError(f"{where} is empty: an evaluation needs rows that training did not see; curate more rows")
    plain = [example.source for example in examples if example.text is not None]
    if plain:
        raise DataError(f"{where} holds plain text, which has no wanted answer ({_list(plain)}): evaluate on conversations")
    samples = tuple(
        Sample(id=example.digest[:ID_LEN], prompt=example.prompt, target=example.answer, tags=example.tags) for example in examples
    )
    count = Counter(sample.id for sample in samples)
    repeated = [example.source for example, sample in zip(examples, samples, strict=True) if count[sample.id] > 1]
    if repeated:
        raise DataError(f"{where} holds equal rows, which would count twice ({_list(repeated)}): curate the data again")
    return Task(name=dataset.name, metric=metric, samples=samples, dataset_digest=dataset.digest, split=split)


def _list(sources: list[str], most: int = 5) -> str:
    rest = len(sources) - most
    return ", ".join(sources[:most]) + (f" and {rest} more" if rest > 0 else "")
