"""What every benchmark does with its figures: one JSON file, one picture."""

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from lorimer.model.machine import probe

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, as measured once or as a median."""

    system: str
    case: str
    metric: str
    value: float
    unit: str


def run_json(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run a script that prints one JSON line last; its other output is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def median_rows(rows: Sequence[Row]) -> list[Row]:
    """The median of each system's, case's and metric's repeats."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.system, row.case, row.metric, row.unit), []).append(row.value)
    return [Row(system=s, case=c, metric=m, value=statistics.median(values), unit=u) for (s, c, m, u), values in groups.items()]


def keep_rows(name: str, rows: Sequence[Row]) -> None:
    """Add to what this commit measured, so that a benchmark can be repeated in pieces."""
    path = _kept(name)
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def kept_rows(name: str) -> list[Row]:
    """All that this commit measured."""
    with _kept(name).open(encoding="utf-8") as file:
        return [Row(**json.loads(line)) for line in file]


def _kept(name: str) -> Path:
    return RESULTS.parent / ".work" / f"{name}-{_commit()}.jsonl"


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def value_of(rows: Sequence[Row], system: str, case: str, metric: str) -> float:
    """One figure."""
    return next(row.value for row in rows if (row.system, row.case, row.metric) == (system, case, metric))


def write_results(name: str, rows: Sequence[Row], ratios: Mapping[str, float | str | None]) -> None:
    """`bench/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    machine = probe()
    value = {
        "machine": f"{machine.name}, {machine.memory_bytes / 1e9:.0f} GB",
        "commit": _commit(),
        "rows": [{**asdict(row), "value": round(row.value, 6)} for row in rows],
        "ratios": {key: round(ratio, 4) if isinstance(ratio, float) else ratio for key, ratio in ratios.items()},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def draw_bars(name: str, title: str, unit: str, bars: Mapping[str, float], *, note: str = "") -> None:
    """`bench/results/NAME.svg`: one bar a system, its figure beside it."""
    figure = Figure(figsize=(8, 0.6 + 0.45 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    labels, values = list(bars), list(bars.values())
    drawn = axes.barh(labels[::-1], values[::-1], color=["#4477aa" if "lorimer" in label else "#bbbbbb" for label in labels[::-1]])
    axes.bar_label(drawn, labels=[f"{value:,.3g}" for value in values[::-1]], padding=3)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(f"{unit}{'; ' + note if note else ''}")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
