"""How much of a canary's secret an adapter gives away, in bits.

Carlini et al. 2019, The Secret Sharer, USENIX Security, arXiv:1802.08232. A secret is ranked among numbers drawn as it was, by how likely
the model finds each: exposure is log2 of how many there are, less log2 of its rank. A model that never saw the secret gives it any rank
alike, whatever else it believes of numbers; that makes chance exact.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorimer.data.canaries import CanaryList
from lorimer.evaluation.task import Sample, Task

NUM_CHOICES = 256
"""The secret and 255 others: 8 bits at most."""
MAX_SKEWNESS = 0.99  # no skew-normal distribution has 0.9953 or more
NUM_STEPS = 4_000


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


def chance_exposure(num_choices: int = NUM_CHOICES) -> float:
    """The mean exposure, in bits, of what nothing was learned of: its rank is any with equal chance (1.42 of 256 choices)."""
    return math.log2(num_choices) - math.fsum(map(math.log2, range(1, num_choices + 1))) / num_choices


def extrapolated_exposure(logprobs: Sequence[float], target_index: int, *, space_bits: float) -> float:
    """An estimate, in bits, of the exposure among all secrets there could be, of which the choices are a sample; at most `space_bits`.

    As in the paper (section 4.3), a skew-normal distribution is fitted to the others, by its first three moments, and exposure is -log2 of
    the chance to draw one that is as likely as the target. Beyond what the choices can rank, it is as good as the fit: shown, not judged.
    """
    others = np.delete(np.asarray(logprobs, np.float64), target_index)
    own = float(logprobs[target_index])
    if not (np.isfinite(others).all() and math.isfinite(own)):
        return math.nan
    spread = float(others.std())
    if spread == 0:  # nothing to extrapolate by
        return exposure(logprobs, target_index)
    location, scale, shape = _fit_skew_normal(others)
    return float(min(max(0.0, -_log_survival((own - location) / scale, shape) / math.log(2)), space_bits))


def _fit_skew_normal(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Location, scale and shape by moments (Azzalini 1985, Scand. J. Stat. 12:171-178)."""
    mean, spread = float(values.mean()), float(values.std())
    skewness = float(np.clip((((values - mean) / spread) ** 3).mean(), -MAX_SKEWNESS, MAX_SKEWNESS))
    part = abs(skewness) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * part / (part + ((4 - math.pi) / 2) ** (2 / 3))), skewness)
    scale = spread / math.sqrt(1 - 2 * delta * delta / math.pi)
    return mean - scale * delta * math.sqrt(2 / math.pi), scale, delta / math.sqrt(1 - delta * delta)


def _log_survival(z: float, shape: float) -> float:
    """The log of a standard skew-normal's upper tail: the density 2 phi(t) Phi(shape t), summed from z on by the trapezoidal rule."""
    steps = np.concatenate([[0.0], np.geomspace(1e-5, 40 + max(0.0, -z), NUM_STEPS)])  # fine where a thin tail begins
    points = z + steps
    log_density = math.log(2) - points**2 / 2 - math.log(2 * math.pi) / 2 + np.array([_log_normal_cdf(shape * t) for t in points.tolist()])
    highest = float(log_density.max())
    return highest + math.log(float(np.trapezoid(np.exp(log_density - highest), points)))


def _log_normal_cdf(x: float) -> float:
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi))  # its first term: erfc is 0 from about -38 on
