"""What past runs correct in the next plan: nothing without runs, half of what one says, the middle of many; the range holds them all."""

import pytest

from lorimer.training.calibration import Actual, correction_of_bytes, correction_of_seconds, record_actual

UNKNOWN = 0.75, 1.4


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("ratios", "middle"),
    [([], 1.0), ([2.0], 1.5), ([1.2, 1.4], 1.2), ([0.7, 0.8, 0.9, 0.9], 0.9)],
)
def test_correction_trusts_runs_as_they_become_more(ratios: list[float], middle: float) -> None:
    for ratio in ratios:
        record_actual(Actual(machine="m", planned_seconds=10, seconds=10 * ratio, planned_bytes=4, peak_bytes=4 * ratio))
    record_actual(Actual(machine="other", planned_seconds=1, seconds=99, planned_bytes=1, peak_bytes=99))
    for correction in (correction_of_seconds("m", UNKNOWN), correction_of_bytes("m", UNKNOWN)):
        assert correction.middle == pytest.approx(middle)
        assert correction.num_runs == len(ratios)
        assert all(correction.low <= ratio <= correction.high for ratio in ratios)


@pytest.mark.usefixtures("home")
def test_range_narrows_to_the_runs_own_spread() -> None:
    widths = []
    for _ in range(6):
        correction = correction_of_seconds("m", UNKNOWN)
        widths.append(correction.high - correction.low)
        record_actual(Actual(machine="m", planned_seconds=10, seconds=10, planned_bytes=1, peak_bytes=1))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.2
