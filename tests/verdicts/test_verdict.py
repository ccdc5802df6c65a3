"""Verdicts: every case of an interval against a region, and the error over repeated looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from analysis.inference import verdict
from analysis.inference.estimators import Measurement, mean_interval
from analysis.inference.verdict import (
    ERROR,
    Prediction,
    Verdict,
    judge,
    measure_until_decided,
    number_of_looks,
)

SIGMAS = 4.0


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


def test_regions_say_what_they_are() -> None:
    two_sided = Prediction.within([2.0, -2.0], 0.05)
    np.testing.assert_allclose(two_sided.low, [1.9, -2.1])
    np.testing.assert_allclose(two_sided.high, [2.1, -1.9])
    assert two_sided.margin == "±5%"
    assert Prediction.at_least(1.0).margin == "at least"
    assert Prediction.at_most(1.0).margin == "at most"


@pytest.mark.parametrize(
    ("first", "cap", "looks"),
    [(8, 8, 1), (9, 8, 1), (8, 16, 2), (8, 17, 3), (8, 32, 3), (400, 6400, 5), (2, 3, 2)],
)
def test_number_of_looks(first: int, cap: int, looks: int) -> None:
    assert number_of_looks(first, cap) == looks


class Sampler:
    """Hands out rows of given data and notes how many it was asked for each time."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.asked = data, []

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        self.asked.append(list(numbers))
        return self.data[list(numbers)]


def spread(count: int, centre: float, width: float) -> np.ndarray:
    return centre + width * np.where(np.arange(count) % 2, 1.0, -1.0)[:, None]


@pytest.mark.parametrize(("centre", "outcome"), [(1.0, Verdict.SUPPORTED), (2.0, Verdict.REFUTED)])
def test_a_clear_case_stops_at_the_first_look(centre: float, outcome: Verdict) -> None:
    sampler = Sampler(spread(64, centre, 1e-3))
    m, found, samples = measure_until_decided(
        sampler, mean_interval, Prediction.within(1.0, 0.1), 8, 64
    )
    assert found is outcome
    assert sampler.asked == [list(range(8))]
    assert (m.samples, len(samples)) == (8, 8)


def test_runs_are_added_until_decided_and_none_twice() -> None:
    sampler = Sampler(spread(1024, 1.0, 0.2))
    m, found, samples = measure_until_decided(
        sampler, mean_interval, Prediction.within(1.0, 0.1), 4, 1024
    )
    assert found is Verdict.SUPPORTED
    assert 4 < m.samples < 1024
    assert [i for numbers in sampler.asked for i in numbers] == list(range(m.samples))
    np.testing.assert_array_equal(samples, sampler.data[: m.samples])


def test_an_unclear_case_stops_at_the_cap_after_the_announced_looks() -> None:
    sampler = Sampler(spread(50, 1.1, 0.5))
    errors = []

    def estimator(samples: np.ndarray, error: float) -> Measurement:
        errors.append(error)
        return mean_interval(samples, error)

    m, found, _ = measure_until_decided(sampler, estimator, Prediction.within(1.0, 0.1), 8, 50)
    assert found is Verdict.UNDECIDED
    assert m.samples == 50
    assert [len(numbers) for numbers in sampler.asked] == [8, 8, 16, 18]
    assert len(errors) == number_of_looks(8, 50)
    assert sum(errors) == pytest.approx(ERROR)


def wrong_verdicts(replicates: int) -> dict[Verdict, float]:
    """Share of each verdict when the truth lies on the edge of the region: no answer is right."""
    prediction, rng = Prediction.within(1.0, 0.1), np.random.default_rng(4)
    found = [
        measure_until_decided(
            Sampler(rng.normal(1.1, 0.05, (64, 1))), mean_interval, prediction, 4, 64
        )[1]
        for _ in range(replicates)
    ]
    return {v: found.count(v) / replicates for v in Verdict}


def test_repeated_looks_keep_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = 1500
    bound = ERROR + SIGMAS * np.sqrt(ERROR * (1 - ERROR) / replicates)
    shares = wrong_verdicts(replicates)
    assert shares[Verdict.SUPPORTED] + shares[Verdict.REFUTED] <= bound
    assert shares[Verdict.UNDECIDED] > 0.9

    # The same simulation must notice looks that are not paid for.
    monkeypatch.setattr(verdict, "number_of_looks", lambda first, cap: 1)
    unpaid = wrong_verdicts(replicates)
    assert unpaid[Verdict.SUPPORTED] + unpaid[Verdict.REFUTED] > bound


def test_a_false_claim_just_outside_its_margin_is_rarely_supported() -> None:
    prediction, rng, replicates = Prediction.within(np.ones(3), 0.1), np.random.default_rng(5), 800
    supported = 0
    for _ in range(replicates):
        data = rng.normal([1.0, 1.0, 1.101], 0.05, (64, 3))
        _, found, _ = measure_until_decided(Sampler(data), mean_interval, prediction, 4, 64)
        supported += found is Verdict.SUPPORTED
    assert supported / replicates <= ERROR + SIGMAS * np.sqrt(ERROR * (1 - ERROR) / replicates)
