"""How often does it fail? Exact bounds of a failure rate, the items a bound needs, and what a detector that errs has counted."""

import math

from lorimer.evaluation.statistics.proportions import CONFIDENCE, DECISION_CONFIDENCE, NUM_BISECTIONS, Interval


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


def exact_bounds(num_right: int, num_items: int) -> Interval:
    """The one-sided 95% bounds of a share, by which a gate decides: right in 95% of cases or more, whatever the share and the number.

    Clopper and Pearson, as above. Wilson's, which are shown elsewhere, let shares pass that lie just below a limit in up to 20% of cases.
    """
    low = 1 - failure_bound(num_items - num_right, num_items) if num_items else 0.0
    return Interval(low=low, high=failure_bound(num_right, num_items), confidence=DECISION_CONFIDENCE)


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
