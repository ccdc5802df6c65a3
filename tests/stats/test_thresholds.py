"""Thresholds: brackets contain them, and ranges contain the brackets of all runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats import Prediction, Verdict, bisect, bracketed, judge
from fedlora_sim.errors import InputError


@given(st.floats(-0.999, 0.999), st.floats(1e-12, 3.0))
def test_brackets_contain_the_threshold_and_are_narrow(threshold: float, tolerance: float) -> None:
    asked = []

    def is_above(x: float) -> bool:
        asked.append(x)
        return x > threshold

    low, high = bisect(is_above, -1.0, 1.0, tolerance)
    assert low <= threshold <= high
    assert high - low <= tolerance
    assert len(asked) <= 2 + max(0.0, np.ceil(np.log2(2.0 / tolerance)))


def test_a_tolerance_below_resolution_ends_at_neighboring_floats() -> None:
    low, high = bisect(lambda x: x > 1 / 3, 0.0, 1.0, 1e-300)
    assert high == np.nextafter(low, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "message"),
    [
        (0.5, 1.0, 0.1, r"low=0\.5"),
        (-1.0, 0.0, 0.1, r"high=0\.0"),
        (1.0, -1.0, 0.1, r"high=-1\.0"),
        (-1.0, 1.0, 0.0, r"tolerance=0\.0"),
    ],
)
def test_ends_without_threshold_are_refused(
    low: float, high: float, tolerance: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bisect(lambda x: x > 0.25, low, high, tolerance)


def test_the_range_contains_the_brackets_of_all_runs_and_one_outside_refutes() -> None:
    low = np.array([[0.99, 1.0], [1.0, 0.98], [0.995, 1.01]])
    samples = np.stack([low, low + 0.01], axis=-1)
    m = bracketed(samples, 0.5)
    np.testing.assert_array_equal(m.low, [0.99, 0.98])
    np.testing.assert_allclose(m.high, [1.01, 1.02])
    np.testing.assert_allclose(m.value, [1.0, 1.005])
    assert m.every_run
    assert judge(m, Prediction.near([1.0, 1.0], 0.025)) is Verdict.SUPPORTED
    assert judge(m, Prediction.near([1.0, 1.0], 0.015)) is Verdict.REFUTED


def test_runs_that_agree_give_their_bracket() -> None:
    m = bracketed(np.tile([[0.5, 0.5625]], (4, 1, 1)), 1e-6)
    assert (m.low[0], m.value[0], m.high[0], m.samples) == (0.5, 0.53125, 0.5625, 4)


def test_samples_that_are_not_brackets_are_refused() -> None:
    with pytest.raises(InputError, match=r"samples=.*quantities, 2"):
        bracketed(np.zeros((4, 2)), 0.1)
