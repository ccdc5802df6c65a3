"""Ratios of means: Fieller's intervals by hand, their coverage, and unbounded ones."""

from __future__ import annotations

import numpy as np
import pytest
from interval_cases import coverage, slack

from analysis.stats import Prediction, Verdict, judge, mean_interval
from analysis.stats.intervals import fieller_ratio
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

ERROR = 0.1
CLOSE = relative("iteration")


def pairs(rng: np.random.Generator, runs: int, spread: float, shared: float = 0.0) -> np.ndarray:
    """Return means 3 and 2 of skewed numbers, paired by a share of their noise: ratio 1.5."""
    noise = rng.exponential(size=(runs, 1, 2)) - 1
    common = rng.exponential(size=(runs, 1, 1)) - 1
    return np.array([3.0, 2.0]) * (1 + spread * (shared * common + (1 - shared) * noise))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_intervals_cover_at_the_nominal_rate(spread: float, shared: float) -> None:
    held = coverage(fieller_ratio, lambda rng: pairs(rng, 400, spread, shared), 1.5, ERROR)
    assert abs(held - (1 - ERROR)) < slack(ERROR)


def test_an_interval_ends_where_the_mean_of_its_remainder_just_holds_zero() -> None:
    samples = pairs(np.random.default_rng(4), 20, 0.5)
    m = fieller_ratio(samples, ERROR)
    y, x = samples[:, 0, 0], samples[:, 0, 1]
    assert m.value == pytest.approx(y.mean() / x.mean(), rel=CLOSE)
    low = mean_interval((y - m.low * x)[:, None], ERROR)
    high = mean_interval((y - m.high * x)[:, None], ERROR)
    assert low.low == pytest.approx(0, abs=CLOSE)
    assert high.high == pytest.approx(0, abs=CLOSE)
    assert m.samples == 20


def test_a_negative_denominator_turns_the_interval_round() -> None:
    """Also if a skewed remainder makes one side longer than the other."""
    rng = np.random.default_rng(8)
    runs = np.stack([rng.exponential(1.0, (60, 1)), rng.uniform(1.0, 2.0, (60, 1))], axis=-1)
    found, turned = fieller_ratio(runs, ERROR), fieller_ratio(runs * [1.0, -1.0], ERROR)
    assert found.high - found.value > 1.1 * (found.value - found.low)
    for name, other in (("value", "value"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(
            getattr(turned, name), -getattr(found, other), rtol=relative("reduction")
        )


def test_pairing_shortens_the_interval() -> None:
    rng = np.random.default_rng(5)
    alone, paired = (fieller_ratio(pairs(rng, 400, 0.5, s), ERROR) for s in (0.0, 0.9))
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_runs_of_one_ratio_have_an_interval_without_width() -> None:
    x = np.random.default_rng(6).exponential(size=(30, 2))
    m = fieller_ratio(np.stack([1.25 * x, x], axis=-1), ERROR)
    assert m.low == pytest.approx(m.high, rel=CLOSE)
    assert (m.low <= m.value).all()
    assert (m.value <= m.high).all()


def test_more_quantities_widen_every_interval() -> None:
    samples = pairs(np.random.default_rng(7), 100, 0.5)
    one, three = fieller_ratio(samples, ERROR), fieller_ratio(samples.repeat(3, axis=1), ERROR)
    assert (three.low < one.low).all()
    assert (three.high > one.high).all()


def test_a_denominator_that_may_be_zero_leaves_the_ratio_open() -> None:
    samples = np.random.default_rng(8).standard_normal((20, 1, 2)) + np.array([3.0, 0.0])
    m = fieller_ratio(samples, ERROR)
    assert (m.low == -np.inf).all()
    assert (m.high == np.inf).all()
    assert judge(m, Prediction.at_least(-1e9)) is Verdict.UNDECIDED


@pytest.mark.parametrize("shape", [(5, 2), (5, 1, 3), (1, 1, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="samples="):
        fieller_ratio(np.ones(shape), ERROR)
