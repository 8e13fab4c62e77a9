"""Pictures are read back as SVG: what is in them, that the same rows give the same bytes, and that gaps in the rows do no harm."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.training.pictures import MAX_DRAWN_STEPS, RankPoint, Series, _running_mean, _thinned, draw_curves, draw_rank_curve


def texts(path: Path) -> list[str]:
    return [" ".join(element.itertext()).strip() for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def rows(num_rows: int, num_steps: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "num_steps": num_steps, "loss": 2 / step, "learning_rate": 1e-3 / step, "num_tokens": 9, "seconds": 1.0, **more}
        for step in range(1, num_rows + 1)
    ]


def rank_point(size: int, exact: float) -> RankPoint:
    return RankPoint(num_parameters=size // 4, adapter_bytes=size, exact=exact, low=exact - 0.02, high=min(1.0, exact + 0.02), loss=0.1)


def test_loss_picture_shows_training_validation_and_gradient_norm(tmp_path: Path) -> None:
    metrics = rows(50, 100, grad_norm=1.5)
    metrics[19] |= {"validation_loss": 0.75, "validation_exact": 0.8}
    metrics[39] |= {"validation_loss": 0.875, "validation_exact": 0.8}
    assert draw_curves(metrics, tmp_path) == [tmp_path / "loss.svg", tmp_path / "learning_rate.svg"]
    shown = texts(tmp_path / "loss.svg")
    assert {
        "Loss over 50 of 100 steps",
        "loss (nats per token)",
        "optimizer step",
        "training loss",
        "its mean over 3 steps",
        "validation loss (lowest 0.75 at step 20)",
    } <= set(shown)
    assert "gradient norm" in " ".join(shown)
    assert {"Learning rate over 50 of 100 steps", "learning rate", "optimizer step"} <= set(texts(tmp_path / "learning_rate.svg"))


def test_what_no_row_has_is_not_drawn(tmp_path: Path) -> None:
    assert draw_curves([], tmp_path) == []
    assert draw_curves([{"step": 1, "num_steps": 2}, {"loss": 1.0}], tmp_path) == []
    assert draw_curves([{"step": 4, "validation_loss": 1.0}], tmp_path) == [tmp_path / "loss.svg"]
    shown = texts(tmp_path / "loss.svg")
    assert "Loss over 4 of 4 steps" in shown
    assert "training loss" not in shown
    assert "gradient norm" not in " ".join(shown)


def test_repeated_step_counts_once_and_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    clean = rows(9, 9)
    draw_curves(clean, tmp_path / "clean")
    before = [{**clean[0], "loss": 99.0}, {**clean[1], "learning_rate": math.nan}, {"step": 3, "num_steps": 9, "loss": math.inf}]
    draw_curves([*before, *clean, {"step": 9, "num_steps": 9, "grad_norm": None}], tmp_path / "resumed")
    for name in ("loss.svg", "learning_rate.svg"):
        assert (tmp_path / "clean" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_pictures_are_the_same_whatever_the_users_style_and_leave_it_alone(tmp_path: Path) -> None:
    draw_curves(rows(9, 9), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.facecolor": "black"}):
        draw_curves(rows(9, 9), tmp_path / "styled")
        assert matplotlib.rcParams["font.size"] == 20
    plain, styled = ((tmp_path / folder / "loss.svg").read_bytes() for folder in ("plain", "styled"))
    assert plain == styled
    assert b"<dc:date>" not in plain


def test_rank_picture_names_the_chosen_size(tmp_path: Path) -> None:
    points = [rank_point(16_000_000, 0.93), rank_point(1_000_000, 0.9), rank_point(4_000_000, 0.925)]
    assert draw_rank_curve(points, 2, tmp_path) == tmp_path / "rank.svg"
    shown = set(texts(tmp_path / "rank.svg"))
    assert {
        "Score against adapter size: 4 MB chosen",
        "adapter size (MB, logarithmic)",
        "answers exactly right (%)",
        "chosen: 1 million parameters, 92.5% exact",
        "validation score and its interval",
        *("1", "2", "5", "10", "20"),
    } <= shown


@pytest.mark.parametrize(
    "point", [rank_point(94_000, 1.0), RankPoint(num_parameters=9, adapter_bytes=36, exact=0, low=0.1, high=0.1, loss=math.nan)]
)
def test_rank_picture_of_one_size_with_an_odd_interval(point: RankPoint, tmp_path: Path) -> None:
    draw_rank_curve([point], 0, tmp_path)
    assert f"chosen: {point.num_parameters:,} parameters, {point.exact:.1%} exact" in texts(tmp_path / "rank.svg")


@pytest.mark.parametrize("num_points", [1, 2, 7, 40])
def test_running_mean_is_that_of_the_window_around_each_step(num_points: int) -> None:
    values = np.random.default_rng(0).normal(size=num_points)
    found = _running_mean(Series(np.arange(num_points), values), window=5)
    assert found.values == pytest.approx([values[max(0, i - 2) : i + 3].mean() for i in range(num_points)])


@settings(max_examples=30)
@given(st.integers(1, 5 * MAX_DRAWN_STEPS), st.integers(0, 2**32 - 1))
def test_long_runs_are_drawn_from_fewer_points_and_keep_their_peaks(num_points: int, seed: int) -> None:
    series = Series(np.arange(num_points), np.random.default_rng(seed).normal(size=num_points))
    found = _thinned(series)
    assert len(found.steps) <= MAX_DRAWN_STEPS
    assert (found.values.min(), found.values.max()) == (series.values.min(), series.values.max())
    assert (np.diff(found.steps) > 0).all()
    assert (series.values[found.steps] == found.values).all()
