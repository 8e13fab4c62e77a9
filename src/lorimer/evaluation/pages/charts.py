"""Small pictures of figures as SVG inside a page. Across, everything is a percentage, so that a picture is as wide as there is room and
its text stays as large as it is; colours are the page's classes. It knows values, not what they mean."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

ROW_HEIGHT = 34
AXIS_HEIGHT = 20
EDGE = 4.0  # percent left free at both ends
MOST_TICKS = 6
HALF = 30.0  # percent for the longest bar to one side: the rest is for its number
Shape = Literal["dot", "square", "diamond"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values and where each lies across a picture."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Percent from the left; a value beyond the range lies on its edge."""
        inside = min(max(value, self.low), self.high)
        return round(EDGE + (100 - 2 * EDGE) * (inside - self.low) / (self.high - self.low), 2)


def axis_of(values: Iterable[float], *, lowest: float = -math.inf, highest: float = math.inf) -> Axis:
    """A range with round ticks that holds all finite values, but nothing beyond what is possible."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = max(lowest, min(finite)), min(highest, max(finite))
    if high <= low:
        low, high = max(lowest, low - 0.01), min(highest, high + 0.01)
    step = _round_step((high - low) / (MOST_TICKS - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Axis(low=max(lowest, ticks[0]), high=min(highest, ticks[-1]), ticks=tuple(tick for tick in ticks if lowest <= tick <= highest))


def axis_svg(axis: Axis, labels: Sequence[str]) -> Markup:
    """The ticks in words, one label for each."""
    texts = [
        Markup('<text class="tick" x="{}%" y="14" text-anchor="middle">{}</text>').format(axis.place(tick), label)
        for tick, label in zip(axis.ticks, labels, strict=True)
    ]
    return Markup('<svg width="100%" height="{}" aria-hidden="true">{}</svg>').format(AXIS_HEIGHT, Markup("").join(texts))


def interval_svg(
    axis: Axis, *, value: float, low: float, high: float, limit: float, passes: Literal["above", "below"], kind: str, label: str
) -> Markup:
    """One row of a forest plot: an interval with its value, the limit, and the side that does not pass shaded."""
    at, start, end, border = (axis.place(number) for number in (value, low, high, limit))
    middle = ROW_HEIGHT // 2
    shaded = Markup('<rect class="shut" x="{}%" y="0" width="{}%" height="{}"/>')
    shut = shaded.format(0, border, ROW_HEIGHT) if passes == "above" else shaded.format(border, round(100 - border, 2), ROW_HEIGHT)
    return Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        kind,
        ROW_HEIGHT,
        label,
        Markup("").join(
            [
                shut,
                _grid(axis),
                Markup('<line class="limit" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>').format(border, ROW_HEIGHT),
                Markup('<line class="range" x1="{0}%" x2="{1}%" y1="{2}" y2="{2}"/>').format(start, end, middle),
                *(
                    Markup('<line class="range" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>').format(side, middle - 5, middle + 5)
                    for side in (start, end)
                ),
                Markup('<circle class="dot" cx="{}%" cy="{}" r="5.5"/>').format(at, middle),
            ]
        ),
    )


def points_svg(axis: Axis, points: Sequence[tuple[str, Shape, float]], label: str, *, has_grid: bool = True) -> Markup:
    """Values beside each other on one line: (class, shape, value), the last on top."""
    middle = ROW_HEIGHT // 2
    places = [axis.place(value) for _, _, value in points]
    track = Markup('<line class="track" x1="{0}%" x2="{1}%" y1="{2}" y2="{2}"/>').format(min(places), max(places), middle)
    marks = [_mark(shape, kind, place, middle) for (kind, shape, _), place in zip(points, places, strict=True)]
    return Markup('<svg width="100%" height="{}" role="img" aria-label="{}">{}{}{}</svg>').format(
        ROW_HEIGHT, label, _grid(axis) if has_grid else "", track, Markup("").join(marks)
    )


def duel_svg(num_won: int, num_lost: int, most: int, label: str) -> Markup:
    """Lost to the left, won to the right of the middle; `most` is as wide as half the picture leaves room for."""
    most = max(most, 1)
    lost, won = (round(HALF * number / most, 2) for number in (num_lost, num_won))
    return Markup(
        '<svg width="100%" height="22" role="img" aria-label="{label}">'
        '<rect class="lost" x="{left}%" y="4" width="{lost}%" height="14"/><rect class="won" x="50%" y="4" width="{won}%" height="14"/>'
        '<line class="zero" x1="50%" x2="50%" y1="0" y2="22"/>'
        '<text class="count" x="{at_left}%" dx="-5" y="15.5" text-anchor="end">{num_lost}</text>'
        '<text class="count" x="{at_right}%" dx="5" y="15.5">{num_won}</text></svg>'
    ).format(
        label=label,
        left=round(50 - lost, 2),
        lost=lost,
        won=won,
        at_left=round(50 - lost, 2),
        at_right=round(50 + won, 2),
        num_lost=f"−{num_lost}" if num_lost else "0",
        num_won=f"+{num_won}" if num_won else "0",
    )


def _grid(axis: Axis) -> Markup:
    line = Markup('<line class="{0}" x1="{1}%" x2="{1}%" y1="0" y2="{2}"/>')
    return Markup("").join(line.format("zero" if tick == 0 else "grid", axis.place(tick), ROW_HEIGHT) for tick in axis.ticks)


def _mark(shape: Shape, kind: str, place: float, middle: int) -> Markup:
    if shape == "dot":
        return Markup('<circle class="{}" cx="{}%" cy="{}" r="6"/>').format(kind, place, middle)
    turn = "M-6 0L0 -6L6 0L0 6Z" if shape == "diamond" else "M-5 -5H5V5H-5Z"
    # a path knows no percentages: a nested picture stands at one, and draws around its corner
    return Markup('<svg x="{}%" y="{}" overflow="visible"><path class="{}" d="{}"/></svg>').format(place, middle, kind, turn)


def _round_step(at_least: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least so large."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= at_least * (1 - 1e-9))
