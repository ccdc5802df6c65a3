"""Thresholds: brackets hold them, and intervals hold brackets and sampling error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interval_cases import coverage, slack

from analysis.inference import bisect, bracketed, mean_interval

WIDTH = 0.05


@given(st.floats(-0.999, 0.999), st.floats(1e-12, 3.0))
def test_brackets_hold_the_threshold_and_are_narrow(threshold: float, tolerance: float) -> None:
    asked = []

    def is_above(x: float) -> bool:
        asked.append(x)
        return x > threshold

    low, high = bisect(is_above, -1.0, 1.0, tolerance)
    assert low <= threshold <= high
    assert high - low <= tolerance
    assert len(asked) <= 2 + max(0.0, np.ceil(np.log2(2.0 / tolerance)))


def test_a_tolerance_below_resolution_ends_at_neighbouring_floats() -> None:
    low, high = bisect(lambda x: x > 1 / 3, 0.0, 1.0, 1e-300)
    assert high == np.nextafter(low, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "message"),
    [
        (0.5, 1.0, 0.1, r"low=0\.5.*below the threshold"),
        (-1.0, 0.0, 0.1, r"high=0\.0.*above the threshold"),
        (1.0, -1.0, 0.1, r"high=-1\.0.*above low"),
        (-1.0, 1.0, 0.0, r"tolerance=0\.0"),
    ],
)
def test_ends_that_hold_no_threshold_are_refused(
    low: float, high: float, tolerance: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bisect(lambda x: x > 0.25, low, high, tolerance)


def brackets(rng: np.random.Generator, runs: int, std: float) -> np.ndarray:
    """Brackets on a grid of thresholds that vary about 0.51 from run to run, (runs, 2, 2)."""
    low = np.floor(rng.normal(0.51, std, (runs, 2)) / WIDTH) * WIDTH
    return np.stack([low, low + WIDTH], axis=-1)


@pytest.mark.parametrize("std", [1e-3, 0.2])
def test_intervals_hold_thresholds_at_the_nominal_rate_at_least(std: float) -> None:
    share = coverage(bracketed, lambda rng: brackets(rng, 10, std), 0.51, 0.1)
    assert share > 0.9 - slack(0.1)


def test_mid_points_alone_miss_what_the_bracket_hides() -> None:
    def middle(samples: np.ndarray, error: float) -> object:
        return mean_interval(samples.mean(-1), error)

    assert coverage(middle, lambda rng: brackets(rng, 10, 1e-3), 0.51, 0.1, 100) == 0.0


def test_runs_that_agree_give_their_bracket() -> None:
    m = bracketed(np.tile([[0.5, 0.5625]], (4, 1, 1)), 1e-6)
    assert (m.low[0], m.value[0], m.high[0], m.samples) == (0.5, 0.53125, 0.5625, 4)


def test_samples_that_are_no_brackets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples=.*quantities, 2"):
        bracketed(np.zeros((4, 2)), 0.1)
