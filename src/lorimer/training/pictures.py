"""Pictures of a run: loss and learning rate as it went, score against size. Knows rows of numbers, nothing of how they came to be."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from lorimer.storage import write_bytes

# three of the colours of Okabe and Ito (2008), which people with any kind of colour blindness tell apart; shape and width differ as well
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
MAX_DRAWN_STEPS = 1000  # more than a picture has columns; a file of a long run would be megabytes
WINDOWS, MIN_WINDOW = 25, 3  # the running mean is over one part in so many of the run, of at least so many steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPoint:
    """One adapter size that was tried."""

    num_parameters: int
    adapter_bytes: int
    exact: float
    """Share of validation answers exactly right."""
    low: float
    """Lower end of its interval."""
    high: float
    loss: float
    """Validation loss, in nats per supervised token."""


class Series(NamedTuple):
    """One measurement over the steps at which it was taken."""

    steps: np.ndarray  # [num_points]
    values: np.ndarray  # [num_points]


def draw_curves(metrics: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw `loss.svg` and `learning_rate.svg` from the rows of a run's `metrics.jsonl`; what no row has is not drawn."""
    rows: dict[int, dict[str, Any]] = {}
    for row in metrics:
        if "step" in row:
            rows.setdefault(row["step"], {}).update(row)  # a resumed run repeats steps: the last one counts
    num_steps = max((row.get("num_steps") or step for step, row in rows.items()), default=0)
    extent = f"over {max(rows, default=0):,} of {num_steps:,} steps"
    loss, validation, grad_norm, learning_rate = (_series(rows, key) for key in ("loss", "validation_loss", "grad_norm", "learning_rate"))
    paths = []
    if len(loss.steps) or len(validation.steps):
        paths.append(_draw_loss(loss, validation, grad_norm, f"Loss {extent}", num_steps, folder))
    if len(learning_rate.steps):
        paths.append(_draw_learning_rate(learning_rate, f"Learning rate {extent}", num_steps, folder))
    return paths


def draw_rank_curve(points: Sequence[RankPoint], chosen: int, folder: Path) -> Path:
    """Draw `rank.svg`: the score of each size with its interval, and which one was chosen."""
    points_by_size = sorted(points, key=lambda point: point.adapter_bytes)
    best = points[chosen]
    megabytes = [point.adapter_bytes / 1e6 for point in points_by_size]
    scores = [point.exact for point in points_by_size]
    below = [max(0.0, point.exact - point.low) for point in points_by_size]
    above = [max(0.0, point.high - point.exact) for point in points_by_size]
    with _plain_style():
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(megabytes, scores, yerr=[below, above], fmt="o-", color=BLUE, capsize=4, label="validation score and its interval")
        axes.plot(
            best.adapter_bytes / 1e6,
            best.exact,
            "D",
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=2.5,
            color=ORANGE,
            label=f"chosen: {_count(best.num_parameters)} parameters, {best.exact:.1%} exact",
        )
        axes.set(xscale="log", xlabel="adapter size (MB, logarithmic)", ylabel="answers exactly right (%)")
        axes.set_xlim(megabytes[0] / 1.7, megabytes[-1] * 1.7)  # wider than the widest gap between ticks: one of them always shows
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))
        axes.set_title(f"Score against adapter size: {best.adapter_bytes / 1e6:.3g} MB chosen")
        figure.legend(loc="outside lower center", ncols=2)
        return _save(figure, folder / "rank.svg")


def _draw_loss(loss: Series, validation: Series, grad_norm: Series, title: str, num_steps: int, folder: Path) -> Path:
    with _plain_style():
        num_panels = 2 if len(grad_norm.steps) else 1
        figure = Figure(figsize=(7, 3.8 if num_panels == 1 else 5.6), layout="constrained")
        panels = figure.subplots(num_panels, sharex=True, squeeze=False, height_ratios=[2, 1][:num_panels])[:, 0]
        if len(loss.steps):
            _draw_noisy(panels[0], loss, "training loss")
        if len(validation.steps):
            lowest = int(validation.values.argmin())
            label = f"validation loss (lowest {validation.values[lowest]:.3g} at step {validation.steps[lowest]:,})"
            panels[0].plot(*validation, "o", color=ORANGE, markersize=6, zorder=3, label=label)
        panels[0].set(ylabel="loss (nats per token)", title=title)
        panels[0].legend(loc="best")
        if num_panels == 2:
            _draw_noisy(panels[1], grad_norm, "gradient norm")
            panels[1].set(ylabel="gradient norm\n(before clipping)")
        for panel in panels:
            panel.set_ylim(bottom=0)
        _label_steps(panels[-1], num_steps)
        return _save(figure, folder / "loss.svg")


def _draw_learning_rate(learning_rate: Series, title: str, num_steps: int, folder: Path) -> Path:
    with _plain_style():
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*_thinned(learning_rate), color=BLUE, linewidth=2, marker=_marker(learning_rate))
        axes.set(ylabel="learning rate", title=title)
        _label_steps(axes, num_steps)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        return _save(figure, folder / "learning_rate.svg")


def _draw_noisy(axes: Axes, series: Series, label: str) -> None:
    """Every step thin, the running mean bold."""
    axes.plot(*_thinned(series), color=GREY, linewidth=0.8, marker=_marker(series), label=label)
    window = max(MIN_WINDOW, math.ceil(len(series.steps) / WINDOWS)) | 1  # odd: as many steps before as after
    if len(series.steps) >= window:
        axes.plot(*_thinned(_running_mean(series, window)), color=BLUE, linewidth=2.2, label=f"its mean over {window} steps")


def _label_steps(axes: Axes, num_steps: int) -> None:
    """The whole run, also while it is going on."""
    axes.set(xlabel="optimizer step", xlim=(0, max(1, num_steps) * 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _marker(series: Series) -> str:
    return "o" if len(series.steps) == 1 else ""  # a line through one point is invisible


def _series(rows: Mapping[int, Mapping[str, Any]], key: str) -> Series:
    found = [(step, value) for step, row in sorted(rows.items()) if (value := row.get(key)) is not None and math.isfinite(value)]
    return Series(np.array([step for step, _ in found], dtype=np.int64), np.array([value for _, value in found], dtype=np.float64))


def _running_mean(series: Series, window: int) -> Series:
    """Mean over the window around each value; at both ends over as much of it as there is."""
    sums = np.concatenate([[0.0], series.values.cumsum()])
    middles = np.arange(len(series.values))
    starts, stops = np.maximum(middles - window // 2, 0), np.minimum(middles + window // 2 + 1, len(middles))
    return Series(series.steps, (sums[stops] - sums[starts]) / (stops - starts))


def _thinned(series: Series) -> Series:
    """Of many steps, the lowest and the highest of each part: no peak is lost."""
    if len(series.steps) <= MAX_DRAWN_STEPS:
        return series
    edges = np.linspace(0, len(series.steps), MAX_DRAWN_STEPS // 2 + 1).astype(int)
    parts = [(start, series.values[start:stop]) for start, stop in pairwise(edges)]
    kept = sorted({start + int(index) for start, part in parts for index in (part.argmin(), part.argmax())})
    return Series(series.steps[kept], series.values[kept])


def _count(number: int) -> str:
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,}"


@contextmanager
def _plain_style() -> Iterator[None]:
    """The same picture whatever the user's matplotlib is set to; text stays text, so that it can be searched and read out."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "lorimer",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "#e6e6e6",
                "axes.axisbelow": True,
                "legend.frameon": False,
            }
        )
        yield


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Title": figure.axes[0].get_title(), "Date": None})
    write_bytes(path, buffer.getvalue())
    return path
