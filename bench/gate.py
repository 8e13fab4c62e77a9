"""Does the gate keep its word? Its verdicts, intervals and announced power on data whose truth is known, beside the naive rule.

    make bench-gate

Right-or-wrong items are drawn from (only candidate right, only baseline right, rest), 20,000 runs a cell. Scores and grouped items are
drawn from distributions from mild to nasty, 2,000 runs a cell, with 2,000 resamples in place of the product's 10,000. Every verdict is
that of `judge_non_inferior` on the product's own bounds.

Which cells are in `coverage_min` and `coverage_max`: right-or-wrong items where 10 or more items are expected to differ, and means of 50
or more items or groups. With fewer, no interval of counts can keep 95%: it jumps from one possible count to the next. All other cells are
in the rows, and the least and the largest coverage of all in `coverage_min_all` and `coverage_max_all`.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from report import Row, draw_bars, value_of, write_results

from lorimer.evaluation.statistics.means import bca_ends, mean_intervals, resample, student_ends
from lorimer.evaluation.statistics.power import design_effect_of, mean_power, paired_shares, score_statistic
from lorimer.evaluation.statistics.proportions import DECISION_CONFIDENCE, Decision, Interval, judge_non_inferior, tango_interval

Floats = npt.NDArray[np.float64]
MARGIN = 0.02
SEED = 6
Z = NormalDist().inv_cdf(0.975)
DISCORDANCES = (0.05, 0.1, 0.2)
NUM_ITEMS = (25, 50, 100, 200, 500, 1000, 2000, 3000)
NUM_GROUPS = (25, 50, 100, 200, 500)
GROUP_LEN = 4
CORRELATION = 0.4
OTHER_WEIGHT = 1 / CORRELATION - 1
SIGNED_CORRELATION = 0.1 + CORRELATION * 0.9  # of -1, 0, 1 where a tenth differs: (0.1^2 + 0.4 * 0.1 * 0.9) / 0.1
DROPS = (0.04, 0.02, 0.0)
SCORES = (-1.0, 1.0)  # limits of a difference of two scores in [0, 1]
NUM_MEAN_RUNS = 2_000
NUM_RESAMPLES = 2_000
FEWEST_THAT_DIFFER = 10
FEWEST_ITEMS = 100
FEWEST_GROUPS = 50
SPREADS = {  # standard deviation of an item's difference, and limits
    "scores, every item moves": (0.2, SCORES),
    "scores, three in ten move": (0.05**0.5, SCORES),
    "scores, a few lose all": (0.2, SCORES),
    "heavy tails (t with 3)": (0.2, None),
    "one-sided tail (lognormal)": (0.2, None),
    "groups of 4": (0.2, SCORES),
    "groups of 1 to 7": (0.2, SCORES),
    "groups of 4, right or wrong": (0.1**0.5, SCORES),
}


def paired_cells(num_items: int, num_runs: int) -> list[Row]:
    """Right-or-wrong items: what was announced, and what came."""
    rows, generator = list[Row](), np.random.default_rng([SEED, num_items])

    @cache
    def judged(b: int, c: int) -> Decision:
        return judge_non_inferior(tango_interval(b, c, num_items, DECISION_CONFIDENCE), MARGIN)

    for discordance in DISCORDANCES:
        for drop in DROPS:
            shares = ((discordance - drop) / 2, (discordance + drop) / 2, 1 - discordance)
            counts, times = np.unique(generator.multinomial(num_items, shares, num_runs)[:, :2], axis=0, return_counts=True)
            verdicts = np.array([judged(int(b), int(c)) for b, c in counts])
            passed, failed = verdicts == "PASS", verdicts == "FAIL"
            covered = np.abs(score_statistic(counts[:, 0], counts[:, 1], num_items, -drop)) <= Z  # the same as being within
            naive = counts[:, 0] - counts[:, 1] >= -MARGIN * num_items - 1e-9
            expected = paired_shares(num_items, discordance=discordance, margin=MARGIN, difference=-drop)
            case = f"{discordance:.0%} differ, n {num_items}, true {0.0 - 100 * drop:+.0f} points"
            found = {
                ("lorimer", "pass"): passed @ times / num_runs,
                ("lorimer", "pass, announced"): expected.passed,
                ("lorimer", "fail"): failed @ times / num_runs,
                ("lorimer", "coverage"): covered @ times / num_runs,
                ("naive rule", "pass"): naive @ times / num_runs,
            }
            rows += rows_of(case, found)
    return rows


def differences(kind: str, drop: float, num_groups: int, num_runs: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Sums and sizes of groups (rows) of each run (column), with a mean of -drop."""
    shape, deviation = (num_groups, num_runs), SPREADS[kind][0]
    sizes = np.ones(shape)
    if kind == "scores, every item moves":
        return generator.normal(-drop, deviation, shape), sizes
    if kind == "scores, three in ten move":
        size = generator.beta(1, 2, shape) * (generator.random(shape) < 0.3)  # a third on average, where it moves
        return np.where(generator.random(shape) < 0.5 + 5 * drop, -size, size), sizes
    if kind == "scores, a few lose all":
        return generator.normal(0, 0.02, shape) - (generator.random(shape) < drop), sizes
    if kind == "heavy tails (t with 3)":
        return -drop + deviation / math.sqrt(3) * generator.standard_t(3, shape), sizes
    if kind == "one-sided tail (lognormal)":
        centred = generator.lognormal(0, 1, shape) - math.exp(0.5)
        return -drop - deviation * centred / math.sqrt((math.e - 1) * math.e), sizes
    sizes = np.full(shape, float(GROUP_LEN)) if kind != "groups of 1 to 7" else generator.integers(1, 2 * GROUP_LEN, shape).astype(float)
    if kind.endswith("right or wrong"):
        # a tenth differs, with this correlation (a beta share's is 1 / (1 + a + b)); those of a group all go the same way
        differ = generator.binomial(GROUP_LEN, generator.beta(0.1 * OTHER_WEIGHT, 0.9 * OTHER_WEIGHT, shape)).astype(float)
        return np.where(generator.random(shape) < 0.5 + 5 * drop, -differ, differ), sizes
    shared = generator.normal(0, deviation * math.sqrt(CORRELATION), shape)
    own = generator.normal(0, deviation * math.sqrt(1 - CORRELATION), shape)
    return sizes * (shared - drop) + np.sqrt(sizes) * own, sizes


def mean_cells(kind: str, num_runs: int) -> list[Row]:
    """Scores and groups: what was announced, what came, and what the two intervals alone would have done."""
    rows, generator, (deviation, limits) = list[Row](), np.random.default_rng([SEED, *kind.encode()]), SPREADS[kind]
    for num_groups in NUM_GROUPS:
        for drop in DROPS:
            sums, sizes = differences(kind, drop, num_groups, num_runs, generator)
            shown, bounds = mean_intervals(sums, sizes, limits=limits, num_resamples=NUM_RESAMPLES)
            decided = [Interval(low=float(low), high=float(high), confidence=DECISION_CONFIDENCE) for low, high in bounds.T]
            verdicts = [judge_non_inferior(interval, MARGIN) for interval in decided]
            means = sums.sum(0) / sizes.sum(0)
            found = {
                ("lorimer", "pass"): verdicts.count("PASS") / num_runs,
                ("lorimer", "fail"): verdicts.count("FAIL") / num_runs,
                ("lorimer", "coverage"): share_between(shown, -drop),
                ("naive rule", "pass"): float((means >= -MARGIN).mean()),
            }
            if kind != "scores, a few lose all":
                found["lorimer", "pass, announced"] = announced(kind, num_groups, drop, deviation, limits)
            if drop == 0.04:
                found |= alone(sums, sizes, -drop)
            counted = "groups" if "groups" in kind else "items"
            rows += rows_of(f"{kind}, {num_groups} {counted}, true {0.0 - 100 * drop:+.0f} points", found)
    return rows


def announced(kind: str, num_groups: int, drop: float, deviation: float, limits: tuple[float, float] | None) -> float:
    """The power said before the run."""
    if "groups" not in kind:
        return mean_power(num_groups, margin=MARGIN, deviation=deviation, difference=-drop, limits=limits)
    sizes = [1, 2, 3, 4, 5, 6, 7] if kind == "groups of 1 to 7" else [GROUP_LEN]
    return mean_power(
        num_groups * GROUP_LEN,
        margin=MARGIN,
        deviation=deviation,
        difference=-drop,
        limits=limits,
        items_per_group=GROUP_LEN,
        design_effect=design_effect_of(sizes, SIGNED_CORRELATION if kind.endswith("right or wrong") else CORRELATION),
    )


def alone(sums: Floats, sizes: Floats, truth: float) -> dict[tuple[str, str], float]:
    """Coverage of each of the two intervals alone, and of BCa as it was published."""
    differ = np.ptp(sums / sizes, axis=0) > 1e-12
    sums, sizes = sums[:, differ], sizes[:, differ]
    resampled = np.sort(resample(sums, sizes, NUM_RESAMPLES, 0), axis=0)
    return {
        ("t alone", "coverage"): share_between(np.stack(student_ends(sums, sizes)), truth),
        ("BCa alone", "coverage"): share_between(np.stack(bca_ends(sums, sizes, resampled, is_expanded=False)), truth),
        ("BCa for few, alone", "coverage"): share_between(np.stack(bca_ends(sums, sizes, resampled)), truth),
    }


def share_between(ends: Floats, truth: float) -> float:
    """How often an interval holds the truth."""
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


def rows_of(case: str, found: dict[tuple[str, str], float]) -> Iterator[Row]:
    """A cell's figures."""
    print(case, " ".join(f"{system} {metric} {value:.4f};" for (system, metric), value in found.items()), flush=True)
    for (system, metric), value in found.items():
        yield Row(system=system, case=case, metric=metric, value=float(value), unit="share")


def coverage_cells(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Coverage by cell, of those that must keep 95% and of all; that of means is the average over the three true differences."""
    kept, every = dict[str, list[float]](), dict[str, list[float]]()
    for row in rows:
        if (row.system, row.metric) != ("lorimer", "coverage"):
            continue
        kind, number, truth = row.case.rsplit(", ", 2)
        is_counted = number.startswith("n ")
        cell = row.case if is_counted else f"{kind}, {number}"
        every.setdefault(cell, []).append(row.value)
        if is_counted:
            is_kept = int(number[2:]) * float(kind.split("%")[0]) / 100 >= FEWEST_THAT_DIFFER
        else:
            num_groups = int(number.split()[0])
            drop = -float(truth.split()[1]) / 100
            is_rare = kind == "scores, a few lose all" and 0 < num_groups * drop < FEWEST_THAT_DIFFER
            is_kept = not is_rare and num_groups >= (FEWEST_GROUPS if number.endswith("groups") else FEWEST_ITEMS)
        if is_kept:
            kept.setdefault(cell, []).append(row.value)
    return tuple({cell: sum(values) / len(values) for cell, values in cells.items()} for cells in (kept, every))  # type: ignore[return-value]


def main() -> None:
    """Simulate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000, help="of a cell of right-or-wrong items")
    parser.add_argument("--mean-runs", type=int, default=NUM_MEAN_RUNS)
    args = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        of_counts = [pool.submit(paired_cells, num_items, args.runs) for num_items in reversed(NUM_ITEMS)]
        of_means = [pool.submit(mean_cells, kind, args.mean_runs) for kind in SPREADS]
        paired = [row for cells in reversed(of_counts) for row in cells.result()]
        means = [row for cells in of_means for row in cells.result()]
    rows = paired + means
    values = {(row.system, row.case, row.metric): row.value for row in rows}

    def passes(kept: list[Row], system: str, drop: int) -> list[float]:
        return [row.value for row in kept if (row.system, row.metric) == (system, "pass") and row.case.endswith(f"true -{drop} points")]

    def power_errors(kept: list[Row]) -> list[float]:
        return [abs(row.value - values["lorimer", row.case, "pass"]) for row in kept if row.metric == "pass, announced"]

    kept, every = coverage_cells(rows)
    with_limits = [row for row in means if SPREADS[row.case.rsplit(", ", 2)[0]][1]]
    without = [row for row in means if not SPREADS[row.case.rsplit(", ", 2)[0]][1]]
    ratios: dict[str, float | str | None] = {
        "false_pass_rate_max": max(passes(rows, "lorimer", 4)),
        "false_pass_rate_at_margin_max": max(passes(paired, "lorimer", 2)),
        "false_pass_rate_at_margin_means_max": max(passes(means, "lorimer", 2)),
        "power_error_max": max(power_errors(paired)),
        "power_error_scores_max": max(power_errors(with_limits)),
        "power_error_heavy_tails_max": max(power_errors(without)),
        "coverage_min": min(kept.values()),
        "coverage_min_in": min(kept, key=kept.__getitem__),
        "coverage_max": max(kept.values()),
        "coverage_max_in": max(kept, key=kept.__getitem__),
        "coverage_min_all": min(every.values()),
        "coverage_max_all": max(every.values()),
        "naive_false_pass_n25": value_of(rows, "naive rule", "10% differ, n 25, true -4 points", "pass"),
        "naive_false_pass_max": max(passes(rows, "naive rule", 4)),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_results("gate", rows, ratios)
    bars = {
        f"{system}, {num_items} items": value_of(paired, system, f"10% differ, n {num_items}, true -4 points", "pass")
        for num_items in NUM_ITEMS
        for system in ("lorimer", "naive rule")
    }
    title = "An adapter that is 4 points worse: how often it passes a margin of 2 points"
    draw_bars("gate", title, "share of runs", bars, note="one item in ten differs")
    for name, ratio in ratios.items():
        print(f"{name:40} {ratio if isinstance(ratio, str) else round(ratio, 4)}")


if __name__ == "__main__":
    main()
