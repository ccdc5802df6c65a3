"""Verdicts: every case of an interval against a region, and regions of other widths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.stats import Measurement, Prediction, Verdict, judge, judge_near_control


def measured(*ends: tuple[float, float]) -> Measurement:
    low, high = np.array(ends, dtype=float).T
    return Measurement(np.ones(len(ends)), low, high, 9)


INSIDE, STRADDLING, ABOVE, BELOW = (0.95, 1.05), (0.85, 1.05), (1.2, 1.3), (0.5, 0.6)
NAN = (np.nan, np.nan)


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        ([INSIDE], Verdict.SUPPORTED),
        ([(0.9, 1.1)], Verdict.SUPPORTED),
        ([ABOVE], Verdict.REFUTED),
        ([BELOW], Verdict.REFUTED),
        ([STRADDLING], Verdict.UNDECIDED),
        ([(0.5, 1.5)], Verdict.UNDECIDED),
        ([NAN], Verdict.UNDECIDED),
        ([(0.95, np.nan)], Verdict.UNDECIDED),
        ([(-np.inf, np.inf)], Verdict.UNDECIDED),
        ([INSIDE, INSIDE], Verdict.SUPPORTED),
        ([INSIDE, STRADDLING], Verdict.UNDECIDED),
        ([INSIDE, ABOVE], Verdict.REFUTED),
        ([STRADDLING, BELOW], Verdict.REFUTED),
        ([INSIDE, NAN], Verdict.UNDECIDED),
    ],
)
def test_judge(intervals: list[tuple[float, float]], outcome: Verdict) -> None:
    assert judge(measured(*intervals), Prediction.within([1.0] * len(intervals), 0.1)) is outcome


def test_a_value_that_is_not_finite_decides_nothing_whatever_its_interval() -> None:
    m = Measurement(np.array([np.nan]), np.array([0.95]), np.array([1.05]), 9)
    assert judge(m, Prediction.within(1.0, 0.1)) is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("interval", "at_least", "at_most"),
    [
        ((2.0, 3.0), Verdict.SUPPORTED, Verdict.REFUTED),
        ((1.0, 2.0), Verdict.SUPPORTED, Verdict.UNDECIDED),
        ((0.5, 1.5), Verdict.UNDECIDED, Verdict.UNDECIDED),
        ((-9.0, 0.5), Verdict.REFUTED, Verdict.SUPPORTED),
    ],
)
def test_one_sided_regions(
    interval: tuple[float, float], at_least: Verdict, at_most: Verdict
) -> None:
    assert judge(measured(interval), Prediction.at_least(1.0)) is at_least
    assert judge(measured(interval), Prediction.at_most(1.0)) is at_most


def test_regions_have_a_text() -> None:
    two_sided = Prediction.within([2.0, -2.0], 0.05)
    np.testing.assert_allclose(two_sided.low, [1.9, -2.1])
    np.testing.assert_allclose(two_sided.high, [2.1, -1.9])
    assert two_sided.margin == "±5%"
    assert Prediction.at_least(1.0).margin == "at least"
    assert Prediction.at_most(1.0).margin == "at most"


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        ([ABOVE], Verdict.REFUTED),
        ([ABOVE, BELOW], Verdict.REFUTED),
        ([ABOVE, STRADDLING], Verdict.UNDECIDED),
        ([ABOVE, INSIDE], Verdict.SUPPORTED),
        ([STRADDLING, INSIDE], Verdict.SUPPORTED),
        ([ABOVE, NAN], Verdict.UNDECIDED),
    ],
)
def test_a_near_control_is_refuted_in_every_quantity_or_not_at_all(
    intervals: list[tuple[float, float]], outcome: Verdict
) -> None:
    prediction = Prediction.within([1.0] * len(intervals), 0.1)
    assert judge_near_control(measured(*intervals), prediction) is outcome


def test_one_run_outside_refutes_a_statement_on_every_run() -> None:
    prediction = Prediction.within([1.0], 0.1)
    for ends, outcome in ((INSIDE, Verdict.SUPPORTED), (STRADDLING, Verdict.REFUTED)):
        m = replace(measured(ends), every_run=True)
        assert judge(m, prediction) is outcome
        assert judge_near_control(m, prediction) is outcome


def test_distances_are_counted_in_margins() -> None:
    m = Measurement(np.array([1.3, 0.9]), np.array([1.0, 0.5]), np.array([1.5, 1.1]), 9)
    for prediction in (Prediction.within([1.0, 1.0], 0.1), Prediction.near([1.0, 1.0], 0.1)):
        np.testing.assert_allclose(prediction.distance(m), [3.0, 1.0])
    np.testing.assert_allclose(Prediction.at_most([1.0, 1.0], 0.1).distance(m), [3.0, -1.0])
    np.testing.assert_allclose(Prediction.at_least([1.0, 1.0], 0.1).distance(m), [-3.0, 1.0])
    whole = replace(m, every_run=True)
    np.testing.assert_allclose(Prediction.near([1.0, 1.0], 0.1).distance(whole), [5.0, 5.0])
    np.testing.assert_allclose(Prediction.at_most([1.0, 1.0], 0.1).distance(whole), [5.0, 1.0])
    assert np.isnan(Prediction.at_most([1.0, 1.0]).distance(m)).all(), "a scale must be given"
