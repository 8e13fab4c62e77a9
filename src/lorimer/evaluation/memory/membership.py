"""Can one tell from an adapter which rows it was trained on? Each row's loss with the adapter, beside that with the adapter off.

The reference-model attack (Carlini et al. 2022, Membership Inference Attacks From First Principles, arXiv:2112.03570; of fine-tuned
language models, Mireshghallah et al. 2022, arXiv:2205.12506), with the base as the reference: what the base finds easy says nothing of
training. It costs two forward passes a row and no other model, and is a lower bound: attacks that train many models find more.
"""

from collections.abc import Sequence

import numpy as np

from lorimer.data.dataset import Dataset
from lorimer.data.example import Example
from lorimer.errors import DataError
from lorimer.evaluation.task import ID_LEN, Sample, Task
from lorimer.storage import digest_of

MIN_ROWS = 20
"""Of either kind; of fewer, the area under the curve could be anything."""
OTHER_KIND = 10.0
"""How much worse than a text e^10 times as long a row of another file or language is, as a match."""


def make_membership_task(
    dataset: Dataset, num: int = 200, seed: int = 0, *, members: Sequence[Example] | None = None, name: str = "membership"
) -> Task:
    """Up to `num` test rows, each with the training row that is most like it in file, language and length; in `tags`, which was learned.

    Rows that were made, canaries among them, take no part. With `members`, these stand for the training rows: rows that were taken
    out, say, of which a new adapter must know nothing. A sample's target is what is learned of a row: the answer, or a plain text, whole.

    Raises:
        DataError: if there are too few rows of either kind.
    """
    rows = dataset.train if members is None else members
    is_text = bool(rows) and rows[0].text is not None
    learned, held_out = (_candidates(own, seed, is_text=is_text) for own in (rows, dataset.test))
    if min(len(learned), len(held_out)) < MIN_ROWS:
        raise DataError(
            f"dataset {dataset.name!r} has {len(learned)} rows that may have been learned and {len(held_out)} test rows, both "
            f"{'plain text' if is_text else 'conversations'}: {MIN_ROWS} of each are needed to tell them apart; curate more rows"
        )
    pairs = _match(held_out[:num], learned)
    samples = [_sample(row, is_member) for member, other in pairs for row, is_member in ((member, True), (other, False))]
    return Task(
        name=name,
        metric="membership",
        kind="text",
        template="none" if is_text else "chat",
        samples=tuple(samples),
        dataset_digest=dataset.digest,
        split="train",
    )


def _candidates(rows: Sequence[Example], seed: int, *, is_text: bool) -> list[Example]:
    """Collected rows of one form, each content once, in a seeded order that depends on each row alone."""
    own = {row.digest: row for row in rows if (row.text is not None) == is_text and not row.parent and _target(row).strip()}
    return [own[digest] for digest in sorted(own, key=lambda digest: digest_of([seed, digest]))]


def _match(held_out: Sequence[Example], learned: Sequence[Example]) -> list[tuple[Example, Example]]:
    """The nearest learned row for each held-out one, none twice."""
    kinds = {kind: number for number, kind in enumerate({_kind(row): None for row in (*held_out, *learned)})}
    kind_of = np.array([kinds[_kind(row)] for row in learned])
    log_len = np.log([1 + len(_target(row)) for row in learned])
    is_free = np.ones(len(learned), np.bool_)
    pairs = []
    for row in held_out[: len(learned)]:
        distance = np.abs(log_len - np.log(1 + len(_target(row)))) + OTHER_KIND * (kind_of != kinds[_kind(row)])
        nearest = int(np.where(is_free, distance, np.inf).argmin())
        is_free[nearest] = False
        pairs.append((learned[nearest], row))
    return pairs


def _kind(row: Example) -> tuple[str, str]:
    """The file it was read from, and its language."""
    return row.source.rpartition(":")[0], row.tags.get("language", "")


def _target(row: Example) -> str:
    return row.answer if row.text is None else row.text


def _sample(row: Example, is_member: bool) -> Sample:
    return Sample(
        id=row.digest[:ID_LEN],
        prompt=row.prompt,
        target=_target(row),
        tags={"member": "yes" if is_member else "no"},
    )
