"""How much of a canary's secret an adapter gives away, in bits.

Carlini et al. 2019, The Secret Sharer, USENIX Security, arXiv:1802.08232. A secret is ranked among numbers drawn as it was, by how likely
the model finds each: exposure is log2 of how many there are, less log2 of its rank. A model that never saw the secret gives it any rank
alike, whatever else it believes of numbers; that makes chance exact.
"""

import math
from collections.abc import Sequence

from lorimer.data.canaries import CanaryList
from lorimer.evaluation.task import Sample, Task

NUM_CHOICES = 256
"""The secret and 255 others: 8 bits at most."""


def make_canary_task(
    canaries: CanaryList, *, name: str = "canaries", dataset_digest: str = "", once: bool | None = None, num_choices: int = NUM_CHOICES
) -> Task:
    """Ask for each canary's secret among others of its form; with `once`, only of canaries told once, or only of those told more often.

    The digest is by default that of the dataset the canaries were put into. Prompts of plain text stand as they are.
    """
    samples = []
    for canary in canaries.canaries:
        if once is not None and once != (canary.repetitions == 1):
            continue
        numbers = sorted([canary.secret, *canaries.others(canary, num_choices - 1)])  # so that its place tells nothing
        samples.append(
            Sample(
                id=canary.file,
                prompt=canaries.prompt(canary),
                target=canaries.answer(canary.secret),
                choices=tuple(map(canaries.answer, numbers)),
                tags={"repetitions": str(canary.repetitions)},
            )
        )
    return Task(
        name=name,
        metric="exposure",
        kind="choice",
        template="none" if canaries.is_text else "chat",
        samples=tuple(samples),
        dataset_digest=dataset_digest or canaries.of,
        split="train",
    )


def exposure(logprobs: Sequence[float], target_index: int) -> float:
    """Bits: log2 of the number of choices less log2 of the target's rank by the log-probability of each choice's tokens together.

    Equal choices share the middle of their ranks. NaN where a log-probability is NaN: nothing was measured.
    """
    if any(math.isnan(logprob) for logprob in logprobs):
        return math.nan
    own = logprobs[target_index]
    num_better = sum(logprob > own for logprob in logprobs)
    num_equal = sum(logprob == own for logprob in logprobs)  # itself among them
    return math.log2(len(logprobs)) - math.log2(num_better + (num_equal + 1) / 2)
