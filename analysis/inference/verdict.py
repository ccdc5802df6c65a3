"""Verdicts: a measured interval against a region of acceptance that was fixed before the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.inference.estimators import Measurement

Array = NDArray[np.float64]

# Probability that any interval of one claim misses its quantity, over all its looks at the data.
ERROR = 0.01


class Verdict(StrEnum):
    """What a measurement says of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Prediction:
    """A predicted value and the region of values that count as agreeing with it.

    Args:
        value: what the theory says, (q,).
        low, high: ends of the region of acceptance, (q,); infinite where one-sided.
        margin: the region, for the report: `±3%`, `at least` or `at most`.
    """

    value: Array
    low: Array
    high: Array
    margin: str

    @classmethod
    def within(cls, value: ArrayLike, relative: float) -> Prediction:
        """Equal to `value` up to a relative margin (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        width = relative * np.abs(v)
        return cls(v, v - width, v + width, f"±{100 * relative:g}%")

    @classmethod
    def at_least(cls, value: ArrayLike) -> Prediction:
        """At least `value`."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return cls(v, v, np.full_like(v, np.inf), "at least")

    @classmethod
    def at_most(cls, value: ArrayLike) -> Prediction:
        """At most `value`."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return cls(v, np.full_like(v, -np.inf), v, "at most")


def judge(measurement: Measurement, prediction: Prediction) -> Verdict:
    """Compare every interval with its region.

    Supported if every interval lies inside its region (an equivalence test), refuted if any lies
    wholly outside, undecided otherwise. What is not finite was not measured: it decides nothing,
    neither for a claim nor for the negative control that it would make look refuted.

    Args:
        measurement: q estimates with simultaneous intervals.
        prediction: q regions.

    Returns:
        The verdict on all q together.
    """
    low, high = measurement.low, measurement.high
    if not np.isfinite([low, high, measurement.value]).all():
        return Verdict.UNDECIDED
    if ((low >= prediction.low) & (high <= prediction.high)).all():
        return Verdict.SUPPORTED
    if ((high < prediction.low) | (low > prediction.high)).any():
        return Verdict.REFUTED
    return Verdict.UNDECIDED


Sampler = Callable[[Sequence[int]], Array]
Estimator = Callable[[Array, float], Measurement]


def measure_until_decided(
    sampler: Sampler, estimator: Estimator, prediction: Prediction, first: int, cap: int
) -> tuple[Measurement, Verdict, Array]:
    """Add runs, doubling their number, until the verdict is clear or the cap is reached.

    Looking repeatedly at growing data would inflate the error; each look therefore gets an equal
    part of `ERROR`, and the intervals of all looks hold together whatever makes us stop.

    Args:
        sampler: runs of given numbers (0, 1, 2, ...) to samples (n, q).
        estimator: samples and error to a measurement.
        prediction: the regions of acceptance.
        first: runs of the first look.
        cap: most runs.

    Returns:
        The last measurement, its verdict and all samples.
    """
    looks = number_of_looks(first, cap)
    samples, count = sampler(range(first)), first
    while True:
        measurement = estimator(samples, ERROR / looks)
        verdict = judge(measurement, prediction)
        if verdict is not Verdict.UNDECIDED or count >= cap:
            return measurement, verdict, samples
        more = min(2 * count, cap)
        samples = np.concatenate([samples, sampler(range(count, more))])
        count = more


def number_of_looks(first: int, cap: int) -> int:
    """Looks of the doubling rule from `first` to `cap` runs."""
    looks, count = 1, first
    while count < cap:
        looks, count = looks + 1, min(2 * count, cap)
    return looks
