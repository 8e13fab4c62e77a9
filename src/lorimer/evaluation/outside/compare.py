"""Two runs of another harness, the adapter's and its baseline's, held to the rules that suites of ours are held to."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from lorimer.evaluation.checks import check_suite, gate_of
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.outside.garak_report import read_garak
from lorimer.evaluation.outside.imported import ImportedTask, pair_imports
from lorimer.evaluation.outside.inspect_log import read_inspect_log
from lorimer.evaluation.outside.lm_eval import read_lm_eval
from lorimer.evaluation.results import Family, SuiteReport
from lorimer.storage import digest_of

HARNESSES: Mapping[str, tuple[Family, Callable[[Path], tuple[ImportedTask, ...]]]] = {
    "lm-eval": ("general", read_lm_eval),
    "garak": ("safety", read_garak),
    "inspect": ("general", lambda path: (read_inspect_log(path),)),
}


def compare_runs(harness: str, candidate: Path, baseline: Path, *, margin: float) -> tuple[SuiteReport, GateResult]:
    """Read both and pair them; the baseline stands where a suite of ours has the base. It decides no promotion.

    Raises:
        DataError: if one cannot be read, or the two did not ask the same.
    """
    family, read = HARNESSES[harness]
    own, other = read(candidate), read(baseline)
    tasks = pair_imports(own, other, family=family, rule={"not_worse_than": "base", "margin": margin})
    report = SuiteReport(
        suite=harness,
        version=1,
        suite_digest=digest_of([task.task_digest for task in tasks]),
        candidate_name=str(candidate),
        candidate_digest=digest_of(["candidate", [task.about for task in own], str(candidate.absolute())]),
        base_name=str(baseline),
        base_digest=digest_of(["baseline", [task.about for task in other], str(baseline.absolute())]),
        incumbent_name=None,
        incumbent_digest=None,
        tasks=tasks,
        num_tokens=0,
        seconds=0.0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return report, gate_of(report, check_suite(report))
