"""What past runs on this machine really needed against what was planned: it corrects the next plan and says how sure it is."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorimer.config import home
from lorimer.storage import append_jsonl, read_jsonl

NUM_REMEMBERED = 20  # newest runs a correction rests on


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """One run: the plan's uncorrected estimates, and what it needed."""

    machine: str
    planned_seconds: float
    seconds: float
    planned_bytes: float
    peak_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What an estimate is multiplied by: the middle, and the range that most runs fell into."""

    middle: float
    low: float
    high: float
    num_runs: int

    @property
    def why(self) -> str:
        """A sentence for people."""
        if not self.num_runs:
            return "no run was finished on this machine yet: the range is wide"
        return f"corrected by {self.middle:.2f} from {self.num_runs} earlier runs on this machine"


def record_actual(actual: Actual) -> None:
    """Remember one run."""
    append_jsonl(_path(), asdict(actual))


def correction_of_seconds(machine: str, unknown: tuple[float, float]) -> Correction:
    """For times; `unknown` is the range while nothing is known."""
    return _correction([actual.seconds / actual.planned_seconds for actual in _actuals(machine) if actual.planned_seconds > 0], unknown)


def correction_of_bytes(machine: str, unknown: tuple[float, float]) -> Correction:
    """For peak memory; `unknown` is the range while nothing is known."""
    return _correction([actual.peak_bytes / actual.planned_bytes for actual in _actuals(machine) if actual.planned_bytes > 0], unknown)


def _actuals(machine: str) -> list[Actual]:
    path = _path()
    found = [Actual(**row) for row in read_jsonl(path)] if path.is_file() else []
    return [actual for actual in found if actual.machine == machine][-NUM_REMEMBERED:]


def _correction(ratios: Sequence[float], unknown: tuple[float, float]) -> Correction:
    """The median, an uncorrected plan among the runs, since one run says little; the range shrinks from the unknown one to their spread."""
    if not ratios:
        return Correction(middle=1.0, low=unknown[0], high=unknown[1], num_runs=0)
    middle = statistics.median([*ratios, 1.0])
    trust = 1 / len(ratios)
    low = min(*ratios, middle * (1 - trust * (1 - unknown[0])))
    high = max(*ratios, middle * (1 + trust * (unknown[1] - 1)))
    return Correction(middle=middle, low=low, high=high, num_runs=len(ratios))


def _path() -> Path:
    return home() / "calibration.jsonl"
