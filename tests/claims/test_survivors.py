"""Estimators over the runs that still have a direction, and of functions of an estimate."""

from __future__ import annotations

import numpy as np
import pytest
from interval_cases import coverage, slack

from analysis.stats.intervals import mapped, mean_interval, over_survivors
from fedlora_sim.tolerances import relative

ERROR = 0.1
CLOSE = relative("reduction")


def with_losses(rng: np.random.Generator, share: float) -> np.ndarray:
    samples = rng.normal([1.0, -2.0], 0.5, size=(60, 2))
    samples[rng.random(60) < share, 1] = np.nan
    return samples


def test_without_losses_it_is_the_estimator_itself() -> None:
    samples = with_losses(np.random.default_rng(1), 0.0)
    found, wanted = over_survivors(mean_interval)(samples, ERROR), mean_interval(samples, ERROR)
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=CLOSE)
    assert found.samples == wanted.samples


def test_every_quantity_is_estimated_over_its_own_survivors() -> None:
    samples = with_losses(np.random.default_rng(2), 0.4)
    kept = samples[~np.isnan(samples[:, 1])]
    found = over_survivors(mean_interval)(samples, ERROR)
    np.testing.assert_allclose(found.value, [samples[:, 0].mean(), kept[:, 1].mean()], rtol=CLOSE)
    assert found.samples == len(kept) < len(samples)


def test_survivors_share_the_error_over_quantities() -> None:
    samples = with_losses(np.random.default_rng(5), 0.4)
    found = over_survivors(mean_interval)(samples, ERROR)
    for j, column in enumerate(samples.T):
        alone = mean_interval(column[~np.isnan(column)][:, None], ERROR / 2)
        np.testing.assert_allclose([found.low[j]], alone.low, rtol=CLOSE)
        np.testing.assert_allclose([found.high[j]], alone.high, rtol=CLOSE)


@pytest.mark.slow
def test_intervals_contain_all_means_together() -> None:
    covered = coverage(
        over_survivors(mean_interval), lambda rng: with_losses(rng, 0.4), [1.0, -2.0], ERROR
    )
    assert covered >= 1 - ERROR - slack(ERROR)


@pytest.mark.parametrize("left", [0, 1])
def test_quantities_of_almost_no_run_are_not_measured(left: int) -> None:
    samples = with_losses(np.random.default_rng(3), 0.0)
    samples[left:, 1] = np.nan
    found = over_survivors(mean_interval)(samples, ERROR)
    assert found.samples == left
    np.testing.assert_array_equal(
        np.isnan([found.value, found.low, found.high]), [[False, True]] * 3
    )


def test_an_increasing_function_carries_the_ends_over() -> None:
    samples = with_losses(np.random.default_rng(4), 0.0)
    inner, outer = mean_interval(samples, ERROR), mapped(mean_interval, np.exp)(samples, ERROR)
    for name in ("value", "low", "high"):
        np.testing.assert_array_equal(getattr(outer, name), np.exp(getattr(inner, name)))
