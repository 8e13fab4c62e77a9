"""Kappa against the textbook; labels with judgements against labels alone, and against a judge that is wrong."""

import numpy as np
import pytest

from lorimer.evaluation.agreement import cohen_kappa, prediction_powered_mean


def raters(cells: dict[tuple[str, str], int]) -> tuple[list[str], list[str]]:
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def test_kappa_equals_fleiss_levin_paik_table_18_1() -> None:
    """Diagnoses of 100 patients: kappa .676 with an error of .088."""
    first, second = raters({("p", "p"): 75, ("p", "n"): 1, ("p", "o"): 4, ("n", "p"): 5, ("n", "n"): 4, ("n", "o"): 1, ("o", "o"): 10})
    found = cohen_kappa(first, second)
    assert (found.observed, found.by_chance) == pytest.approx((0.89, 0.66))
    assert found.kappa == pytest.approx(0.6765, abs=1e-4)
    assert round(found.error, 3) == 0.088
    assert 0.45 < found.interval.low < found.kappa < found.interval.high < 0.85


def test_kappa_does_not_know_who_is_first() -> None:
    first, second = raters({("yes", "yes"): 30, ("yes", "no"): 9, ("no", "yes"): 2, ("no", "no"): 19, ("tie", "no"): 4})
    one, other = cohen_kappa(first, second), cohen_kappa(second, first)
    assert one.kappa == pytest.approx(other.kappa)
    assert (one.interval.low, one.interval.high) == pytest.approx((other.interval.low, other.interval.high))


def test_kappa_covers_the_truth() -> None:
    """A judge that repeats a person's label in 7 of 10 cases and tosses a coin else has a kappa of 0.7."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(500):
        person = generator.integers(0, 2, 150)
        judge = np.where(generator.random(150) < 0.7, person, generator.integers(0, 2, 150))
        interval = cohen_kappa([str(x) for x in person], [str(x) for x in judge]).interval
        covered += interval.low <= 0.7 <= interval.high
    assert 0.93 <= covered / 500 <= 0.98


def test_raters_that_never_differ_prove_as_much_as_their_items() -> None:
    few, many = cohen_kappa(["a", "b"] * 5, ["a", "b"] * 5), cohen_kappa(["a", "b"] * 200, ["a", "b"] * 200)
    assert (few.kappa, few.interval.high) == (1, 1)
    assert few.interval.low < 0.5
    assert 0.97 < many.interval.low < 1


@pytest.mark.parametrize("labels", [[], ["yes"] * 50])
def test_one_label_says_nothing_of_agreement(labels: list[str]) -> None:
    found = cohen_kappa(labels, labels)
    assert found.kappa is None
    assert (found.interval.low, found.interval.high) == (-1, 1)


def test_unlike_raters_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels of one rater, 1 of the other"):
        cohen_kappa(["a", "b"], ["a"])


@pytest.mark.parametrize(("hit_rate", "false_rate"), [(0.95, 0.05), (0.9, 0.4), (0.5, 0.5)])
def test_judgements_narrow_the_interval_and_do_not_bias_it(hit_rate: float, false_rate: float) -> None:
    """100 labels, 1,000 judgements: covers the truth, whatever the judge is worth, and is hardly wider than labels alone."""
    generator, truth, covered, widths, plain, errors = np.random.default_rng(2), 0.7, 0, [], [], []
    for _ in range(600):
        y = generator.random(1100) < truth
        f = generator.random(1100) < np.where(y, hit_rate, false_rate)
        found = prediction_powered_mean(y[:100].tolist(), f[:100].tolist(), f[100:].tolist())
        covered += found.interval.low <= truth <= found.interval.high
        widths.append(found.interval.high - found.interval.low)
        plain.append(2 * 1.984 * y[:100].std(ddof=1) / 10)
        errors.append(found.value - truth)
    assert 0.92 <= covered / 600 <= 0.975
    assert abs(np.mean(errors)) < 0.006
    assert np.mean(widths) < 1.01 * np.mean(plain)
    if hit_rate == 0.95:
        assert np.mean(widths) < 0.7 * np.mean(plain)


def test_without_judgements_the_labels_stand_alone() -> None:
    found = prediction_powered_mean([1, 0, 1, 1], [1, 1, 1, 1], [])
    assert (found.value, found.weight, found.judge_error) == (0.75, 0, 0.25)
    assert prediction_powered_mean([1, 0, 1, 1], [1, 1, 1, 1], [1] * 50).value == 0.75


@pytest.mark.parametrize(
    ("labels", "judged", "rest"), [([1.0], [1.0], [1.0]), ([1.0, 0.0], [1.0], []), ([1.0, float("nan")], [1.0, 0.0], [])]
)
def test_labels_without_judgements_are_refused(labels: list[float], judged: list[float], rest: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more labels are needed"):
        prediction_powered_mean(labels, judged, rest)
