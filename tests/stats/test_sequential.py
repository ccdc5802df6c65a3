"""Runs until decided: the error over repeated looks, and the p-value of the decision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from interval_cases import SIGMAS
from scipy import stats

from analysis.stats import (
    Estimator,
    Measurement,
    Prediction,
    Verdict,
    judge,
    mean_interval,
    measure_until_decided,
    number_of_looks,
    p_value,
    proportion_interval,
    verdicts,
)
from analysis.stats.intervals import SKEWNESS_RUNS
from analysis.stats.verdicts import P_FLOOR, P_RESOLUTION

ERROR = 0.01


@pytest.mark.parametrize(
    ("first", "cap", "looks"),
    [(8, 8, 1), (9, 8, 1), (8, 16, 2), (8, 17, 3), (8, 32, 3), (400, 6400, 5), (2, 3, 2)],
)
def test_number_of_looks(first: int, cap: int, looks: int) -> None:
    assert number_of_looks(first, cap) == looks


class Sampler:
    """Returns rows of given data and records how many were requested each time."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.asked = data, []

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        self.asked.append(list(numbers))
        return self.data[list(numbers)]


def spread(count: int, center: float, width: float) -> np.ndarray:
    return center + width * np.where(np.arange(count) % 2, 1.0, -1.0)[:, None]


@pytest.mark.parametrize(("center", "outcome"), [(1.0, Verdict.SUPPORTED), (2.0, Verdict.REFUTED)])
def test_a_clear_case_stops_at_the_first_look(center: float, outcome: Verdict) -> None:
    sampler = Sampler(spread(64, center, 1e-3))
    m, found, samples = measure_until_decided(
        sampler, mean_interval, Prediction.within(1.0, 0.1), 8, 64, ERROR
    )
    assert found is outcome
    assert sampler.asked == [list(range(8))]
    assert (m.samples, len(samples)) == (8, 8)


def test_runs_are_added_until_decided_and_none_twice() -> None:
    sampler = Sampler(spread(1024, 1.0, 0.2))
    m, found, samples = measure_until_decided(
        sampler, mean_interval, Prediction.within(1.0, 0.1), 4, 1024, ERROR
    )
    assert found is Verdict.SUPPORTED
    assert 4 < m.samples < 1024
    assert [i for numbers in sampler.asked for i in numbers] == list(range(m.samples))
    np.testing.assert_array_equal(samples, sampler.data[: m.samples])


def test_runs_are_added_until_all_else_is_settled() -> None:
    sampler = Sampler(spread(64, 1.0, 1e-3))
    m, found, _ = measure_until_decided(
        sampler,
        mean_interval,
        Prediction.within(1.0, 0.1),
        8,
        64,
        ERROR,
        is_settled=lambda measurement, verdict: measurement.samples >= 20,
    )
    assert found is Verdict.SUPPORTED
    assert m.samples == 32


def test_an_unclear_case_stops_at_the_cap_after_the_announced_looks() -> None:
    sampler = Sampler(spread(50, 1.1, 0.5))
    errors = []

    def estimator(samples: np.ndarray, error: float) -> Measurement:
        errors.append(error)
        return mean_interval(samples, error)

    m, found, _ = measure_until_decided(
        sampler, estimator, Prediction.within(1.0, 0.1), 8, 50, ERROR
    )
    assert found is Verdict.UNDECIDED
    assert m.samples == 50
    assert [len(numbers) for numbers in sampler.asked] == [8, 8, 16, 18]
    assert len(errors) == number_of_looks(8, 50)
    assert sum(errors) == pytest.approx(ERROR)


def wrong_verdicts(replicates: int) -> dict[Verdict, float]:
    """Return the share of each verdict if the true value is on the edge of the region."""
    prediction, rng = Prediction.within(1.0, 0.1), np.random.default_rng(4)
    found = [
        measure_until_decided(
            Sampler(rng.normal(1.1, 0.05, (64, 1))), mean_interval, prediction, 4, 64, ERROR
        )[1]
        for _ in range(replicates)
    ]
    return {v: found.count(v) / replicates for v in Verdict}


@pytest.mark.slow
def test_repeated_looks_keep_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = 1500
    bound = ERROR + SIGMAS * np.sqrt(ERROR * (1 - ERROR) / replicates)
    shares = wrong_verdicts(replicates)
    assert shares[Verdict.SUPPORTED] + shares[Verdict.REFUTED] <= bound
    assert shares[Verdict.UNDECIDED] > 0.9

    # The same simulation must detect looks that do not share the error.
    monkeypatch.setattr(verdicts, "number_of_looks", lambda first, cap: 1)
    unpaid = wrong_verdicts(replicates)
    assert unpaid[Verdict.SUPPORTED] + unpaid[Verdict.REFUTED] > bound


@pytest.mark.slow
def test_a_false_claim_just_outside_its_margin_is_rarely_supported() -> None:
    prediction, rng, replicates = Prediction.within(np.ones(3), 0.1), np.random.default_rng(5), 800
    supported = 0
    for _ in range(replicates):
        data = rng.normal([1.0, 1.0, 1.101], 0.05, (64, 3))
        _, found, _ = measure_until_decided(Sampler(data), mean_interval, prediction, 4, 64, ERROR)
        supported += found is Verdict.SUPPORTED
    assert supported / replicates <= ERROR + SIGMAS * np.sqrt(ERROR * (1 - ERROR) / replicates)


def decided(
    samples: np.ndarray,
    prediction: Prediction,
    estimator: Estimator = mean_interval,
    looks: int = 1,
) -> tuple[Verdict, float]:
    verdict = judge(estimator(samples, ERROR / looks), prediction)
    return verdict, p_value(samples, estimator, prediction, verdict, looks, ERROR)


def test_the_p_value_of_a_one_sided_claim_is_twice_students() -> None:
    x = np.random.default_rng(6).normal(0.8, 1.0, (SKEWNESS_RUNS - 1, 1))
    verdict, p = decided(x, Prediction.at_least(0.0))
    assert verdict is Verdict.SUPPORTED
    exact = stats.ttest_1samp(x[:, 0], 0.0, alternative="greater").pvalue
    assert exact < ERROR / 2
    assert p == pytest.approx(2 * exact, rel=P_RESOLUTION - 1)  # an interval has two sides


def test_the_p_value_of_equivalence_is_that_of_the_closer_side() -> None:
    x = np.random.default_rng(7).normal(1.01, 0.1, (90, 1))
    verdict, p = decided(x, Prediction.within(1.0, 0.1))
    sides = [
        stats.ttest_1samp(x[:, 0], end, alternative=side).pvalue
        for end, side in ((0.9, "greater"), (1.1, "less"))
    ]
    assert verdict is Verdict.SUPPORTED
    assert p == pytest.approx(2 * max(sides), rel=P_RESOLUTION - 1)


@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("estimator", [mean_interval, proportion_interval])
def test_at_its_p_value_the_verdict_stands_and_just_below_it_falls(
    looks: int, estimator: Estimator
) -> None:
    x = (np.random.default_rng(9).random((400, 2)) < [0.5, 0.52]).astype(float)
    for prediction in (Prediction.at_least([0.4, 0.4]), Prediction.at_most([0.4, 0.4])):
        verdict, p = decided(x, prediction, estimator, looks)
        assert verdict is not Verdict.UNDECIDED
        assert P_FLOOR < p <= ERROR
        assert judge(estimator(x, p / looks), prediction) is verdict
        below = p / P_RESOLUTION / looks
        assert judge(estimator(x, below), prediction) is Verdict.UNDECIDED


def test_every_look_has_a_share_of_the_error() -> None:
    x = np.random.default_rng(6).normal(0.6, 1.0, (60, 1))
    once, thrice = (decided(x, Prediction.at_least(0.0), looks=n)[1] for n in (1, 3))
    assert thrice == pytest.approx(3 * once, rel=2 * (P_RESOLUTION - 1))


def test_p_values_fall_with_the_distance_from_the_region() -> None:
    x = np.random.default_rng(11).normal(0.0, 1.0, (50, 1))
    found = [decided(x + shift, Prediction.at_least(0.0))[1] for shift in (0.6, 0.8, 1.0, 1.2)]
    assert (np.diff(found) < 0).all()


def test_the_undecided_have_p_value_one_and_the_exact_the_floor() -> None:
    x = np.random.default_rng(12).normal(0.0, 1.0, (50, 1))
    assert decided(x, Prediction.at_least(0.0)) == (Verdict.UNDECIDED, 1.0)
    assert decided(np.ones((4, 1)), Prediction.within(1.0, 1e-6)) == (Verdict.SUPPORTED, P_FLOOR)


@pytest.mark.slow
def test_p_values_of_claims_on_the_edge_are_calibrated() -> None:
    """The true value is on the edge of the region, so p <= e has probability e."""
    rng, prediction, error, replicates = (
        np.random.default_rng(13),
        Prediction.at_least(0.0),
        0.2,
        800,
    )
    small = 0
    for _ in range(replicates):
        m = measure_until_decided(
            Sampler(rng.normal(size=(32, 1))), mean_interval, prediction, 8, 32, error
        )
        p = p_value(m[2], mean_interval, prediction, m[1], number_of_looks(8, 32), error)
        small += p <= error / 4
    assert small / replicates <= error / 4 + SIGMAS * np.sqrt(error / 4 / replicates)
