"""How often does it fail? Exact bounds of a failure rate, the items a bound needs, and what a detector that errs has counted."""

import math
from statistics import NormalDist

from lorimer.evaluation.statistics import CONFIDENCE, NUM_BISECTIONS, Interval


def failure_bound(num_failures: int, num_items: int, confidence: float = CONFIDENCE) -> float:
    """The largest failure rate that so few failures do not contradict: the exact one-sided upper bound; 1 where nothing was tried.

    Clopper and Pearson 1934, Biometrika 26:404-413. No failure in n gives 1 - .05^(1/n): about 3/n, "the rule of three".
    """
    assert 0 <= num_failures <= num_items, f"{num_failures} failures of {num_items}"
    if num_failures == num_items:
        return 1.0
    if num_failures == 0:
        return -math.expm1(math.log1p(-confidence) / num_items)
    low, high = num_failures / num_items, 1.0
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(num_failures, num_items, middle) > 1 - confidence else (low, middle)
    return high


def exact_interval(num_correct: int, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact two-sided interval of a share (Clopper and Pearson 1934): never below its confidence, so wider than Wilson's."""
    one_sided = (1 + confidence) / 2
    low = 1 - failure_bound(num_items - num_correct, num_items, one_sided) if num_items else 0.0
    return Interval(low=low, high=failure_bound(num_correct, num_items, one_sided), confidence=confidence)


def items_for_rate(limit: float, num_failures: int = 0, confidence: float = CONFIDENCE) -> int:
    """The fewest items that, with so many failures and no more, show a rate at or below `limit`: 59 for 5%, 299 for 1%, none failing."""
    assert 0 < limit < 1, f"a rate to show is between 0 and 1, not {limit}"
    low, high = num_failures, num_failures + 1
    while failure_bound(num_failures, high, confidence) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if failure_bound(num_failures, middle, confidence) > limit else (low, middle)
    return high


def true_rate(found_rate: float, *, sensitivity: float, specificity: float) -> float:
    """The failure rate behind what a detector that errs reports: (found + Sp - 1) / (Se + Sp - 1), kept within 0 and 1.

    `sensitivity` is the share of failures that the detector finds, `specificity` the share of the others that it lets pass.
    Rogan and Gladen 1978, Am. J. Epidemiol. 107:71-76.

    Raises:
        ValueError: if the detector is no better than chance: no rate then follows from what it finds.
    """
    if not (0 <= sensitivity <= 1 and 0 <= specificity <= 1 and sensitivity + specificity > 1):
        raise ValueError(
            f"a detector with sensitivity {sensitivity} and specificity {specificity} is no better than chance: "
            "their sum must be above 1; use another detector, or measure this one on labelled answers"
        )
    return min(1.0, max(0.0, (found_rate + specificity - 1) / (sensitivity + specificity - 1)))


def true_rate_interval(
    num_found: int,
    num_items: int,
    *,
    caught: tuple[int, int],
    cleared: tuple[int, int],
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of `true_rate`, where the detector itself was measured on labelled answers.

    `caught` is (found, of so many failures), `cleared` is (let pass, of so many others). Lang and Reiczigel 2014, Prev. Vet. Med.
    113:13-22: Wald's interval of the Rogan-Gladen estimate, each count first moved towards the middle as Agresti and Coull do.

    Raises:
        ValueError: if the detector is no better than chance.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    items, failures, others = num_items + z * z, caught[1] + 2, cleared[1] + 2
    found, sensitivity, specificity = (num_found + z * z / 2) / items, (caught[0] + 1) / failures, (cleared[0] + 1) / others
    true_rate(found, sensitivity=sensitivity, specificity=specificity)  # refuses one that is no better than chance
    youden = sensitivity + specificity - 1
    rate = (found + specificity - 1) / youden
    detector = rate**2 * sensitivity * (1 - sensitivity) / failures + (1 - rate) ** 2 * specificity * (1 - specificity) / others
    error = math.sqrt(found * (1 - found) / items + detector) / youden
    shift = 2 * z * z * (rate * sensitivity * (1 - sensitivity) / failures - (1 - rate) * specificity * (1 - specificity) / others)
    return Interval(
        low=min(1.0, max(0.0, rate + shift - z * error)), high=max(0.0, min(1.0, rate + shift + z * error)), confidence=confidence
    )


def _at_most(num_failures: int, num_items: int, rate: float) -> float:
    """P(so many failures or fewer), each term from the one before, in logarithms."""
    if rate >= 1:
        return float(num_failures >= num_items)
    log_odds, log_term = math.log(rate) - math.log1p(-rate), num_items * math.log1p(-rate)
    total = math.exp(log_term)
    for k in range(num_failures):
        log_term += math.log((num_items - k) / (k + 1)) + log_odds
        total += math.exp(log_term)
    return total
