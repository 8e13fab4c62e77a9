"""What a suite can show, said beforehand: as the gate itself then decides, on open items and on all."""

from dataclasses import replace

import pytest

from lorimer.evaluation.foresight import foresee
from lorimer.evaluation.results import unit_of
from lorimer.evaluation.statistics.means import compare_means
from lorimer.evaluation.statistics.proportions import compare_pairs, judge_non_inferior
from lorimer.evaluation.suite import Suite, SuiteTask, find_suite, shipped_suites

NEARLY_NONE = 0.001


def passes_unchanged(one: SuiteTask) -> bool:
    """Whether an adapter with the base's own scores passes."""
    groups = [sample.group for sample in one.task.samples]
    if any(groups):
        bounds = compare_means([0.0] * len(groups), groups, limits=(-1.0, 1.0)).bounds
    else:
        bounds = compare_pairs([(True, True)] * len(groups)).bounds
    return judge_non_inferior(bounds, one.rule.margin) == "PASS"


def shares_of(suite: Suite) -> list[SuiteTask]:
    return [one for one in suite.tasks if one.rule.not_worse_than and unit_of(one.task.metric) == "share"]


@pytest.mark.parametrize("name", shipped_suites())
def test_who_changes_nothing_passes_as_was_said(name: str) -> None:
    suite = find_suite(name)
    told = {own.task: own for own in foresee(suite, NEARLY_NONE).tasks}
    for whole, opened in zip(shares_of(suite), shares_of(suite.open_part()), strict=True):
        own = told[whole.task.name]
        assert own.passes is not None
        assert own.passes_open is not None
        assert (own.passes > 0.5, own.passes_open > 0.5) == (passes_unchanged(whole), passes_unchanged(opened)), whole.task.name


@pytest.mark.parametrize("name", shipped_suites())
def test_fewer_items_show_less(name: str) -> None:
    for own in foresee(find_suite(name), 0.1).tasks:
        assert own.num_open <= own.num_items
        if own.shows is not None:
            assert own.shows_open is not None
            assert own.shows_open >= own.shows


@pytest.mark.parametrize("name", shipped_suites())
def test_the_margin_and_the_items_that_are_told_are_enough_and_no_more(name: str) -> None:
    suite = find_suite(name)
    for number, own in enumerate(foresee(suite, 0.05).tasks):
        if own.shows is None or own.needed is None:
            continue
        one = suite.tasks[number]
        for margin, is_enough in ((own.shows, True), (round(own.shows - 0.01, 2), False)):
            held = replace(one, rule=one.rule.model_copy(update={"margin": margin}))
            (found,) = foresee(replace(suite, tasks=(held,)), 0.05).tasks
            assert found.passes is not None
            assert (found.passes >= 0.8) == is_enough
        assert (own.num_items >= own.needed) <= (own.passes is not None and own.passes >= 0.8)
