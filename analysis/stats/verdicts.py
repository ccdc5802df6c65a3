"""Verdicts: compare intervals with regions of acceptance that were fixed before the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.intervals import Array, Estimator, Measurement
from fedlora_sim.errors import expected


class Verdict(StrEnum):
    """Outcome of comparing a measurement with a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Prediction:
    """A predicted value and the region of values that agree with it.

    Args:
        value: predicted values, (q,).
        low, high: ends of the region of acceptance, (q,); infinite where one-sided.
        margin: text of the region for the report: `±3%`, `±0.05`, `at least` or `at most`.
        width: one margin, in the unit of the value, (q,). For a two-sided region this is its
            half-width. For a one-sided region it is the smallest relevant difference, the unit in
            which the distance of a control from the bound is stated.
    """

    value: Array
    low: Array
    high: Array
    margin: str
    width: Array

    @classmethod
    def within(cls, value: ArrayLike, relative: float) -> Prediction:
        """Return the prediction of `value` within a relative margin (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        width = relative * np.abs(v)
        return cls(v, v - width, v + width, f"±{100 * relative:g}%", width)

    @classmethod
    def near(cls, value: ArrayLike, absolute: float) -> Prediction:
        """Return the prediction of `value` within an absolute margin (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return cls(v, v - absolute, v + absolute, f"±{absolute:g}", np.full_like(v, absolute))

    @classmethod
    def at_least(cls, value: ArrayLike, scale: ArrayLike = np.nan) -> Prediction:
        """Return the prediction `at least value`; `scale` is the smallest relevant difference."""
        v, unit = _same_length(value, scale)
        return cls(v, v, np.full_like(v, np.inf), "at least", unit)

    @classmethod
    def at_most(cls, value: ArrayLike, scale: ArrayLike = np.nan) -> Prediction:
        """Return the prediction `at most value`; `scale` is the smallest relevant difference."""
        v, unit = _same_length(value, scale)
        return cls(v, np.full_like(v, -np.inf), v, "at most", unit)

    def distance(self, measurement: Measurement) -> Array:
        """Return the distance of the measured value from the predicted one in margins, (q,).

        For a one-sided region a value on the allowed side has a negative distance. For a
        measurement of every run the most distant run counts.
        """
        ends = [measurement.value, measurement.value]
        if measurement.every_run:
            ends = [measurement.low, measurement.high]
        below, above = (self.value - ends[0]) / self.width, (ends[1] - self.value) / self.width
        below = np.where(np.isfinite(self.low), below, -np.inf)
        above = np.where(np.isfinite(self.high), above, -np.inf)
        return np.asarray(np.maximum(below, above))


def _same_length(value: ArrayLike, scale: ArrayLike) -> tuple[Array, Array]:
    v = np.atleast_1d(np.asarray(value, dtype=np.float64))
    return v, np.broadcast_to(np.asarray(scale, dtype=np.float64), v.shape)


def judge(measurement: Measurement, prediction: Prediction) -> Verdict:
    """Compare all intervals with their regions.

    Supported if every interval lies inside its region (an equivalence test), refuted if any lies
    entirely outside, undecided otherwise. A measurement of every run has the range of its runs as
    interval: one run outside is a counterexample and refutes. Non-finite values count as not
    measured and decide nothing, neither for a claim nor for a control.

    Args:
        measurement: q estimates with simultaneous intervals.
        prediction: q regions.

    Returns:
        The verdict on all q together.
    """
    if not _is_finite(measurement):
        return Verdict.UNDECIDED
    if _inside(measurement, prediction).all():
        return Verdict.SUPPORTED
    return Verdict.REFUTED if _outside(measurement, prediction).any() else Verdict.UNDECIDED


def judge_near_control(measurement: Measurement, prediction: Prediction) -> Verdict:
    """Compare as `judge` does, but refute only if every quantity is refuted.

    Returns:
        Refuted if every interval lies entirely outside its region. Supported if any lies inside,
        which means that the check does not detect the error in this quantity. Undecided otherwise.
    """
    if not _is_finite(measurement):
        return Verdict.UNDECIDED
    if _outside(measurement, prediction).all():
        return Verdict.REFUTED
    return Verdict.SUPPORTED if _inside(measurement, prediction).any() else Verdict.UNDECIDED


def _is_finite(measurement: Measurement) -> bool:
    ends = [measurement.low, measurement.high, measurement.value]
    return bool(np.isfinite(ends).all())


def _inside(measurement: Measurement, prediction: Prediction) -> NDArray[np.bool_]:
    return np.asarray((measurement.low >= prediction.low) & (measurement.high <= prediction.high))


def _outside(measurement: Measurement, prediction: Prediction) -> NDArray[np.bool_]:
    if measurement.every_run:
        return np.logical_not(_inside(measurement, prediction))
    return np.asarray((measurement.high < prediction.low) | (measurement.low > prediction.high))


# Families of claims: the error of all verdicts together, and p-values.
#
# A claim that its quantities lie within a region is tested for equivalence: it is supported if
# every confidence interval lies inside. This corresponds to the two one-sided tests (TOST) of
# "below the region" and "above it" for each quantity, each at half the quantity's share of the
# error: the interval [low, high] at error e lies inside exactly if both tests reject at e / 2. The
# usual TOST tests each side at e and would support earlier. Here the same interval is also used for
# refuting, so that one error bounds both wrong supports and wrong refutations.
#
# The theorems of a report form one family, its conjectures another. Every claim gets an equal part
# of the family's error (Bonferroni). Its quantities and its looks at growing data get equal parts
# of that, so that all intervals of a family hold together with probability 1 - FAMILY_ERROR. The
# part depends on the number of claims in the registry, not on how many are run, so that running one
# claim alone gives the same verdict. Negative controls that are simulated separately have intervals
# at the same error each, in addition.

# Probability that any interval of a family misses its quantity, over all claims and looks.
FAMILY_ERROR = 0.05


def claim_error(claims: int) -> float:
    """Return each claim's part of its family's error.

    Args:
        claims: number of claims in the family.

    Returns:
        `FAMILY_ERROR / claims`.
    """
    if claims < 1:
        raise expected("claims", claims, "at least one claim")
    return FAMILY_ERROR / claims


def holm(p_values: ArrayLike, size: int | None = None) -> Array:
    """Return Holm's adjusted p-values.

    An adjusted value is at most e if the claim would still be decided at the family's error e. The
    i-th smallest of `size` p-values is multiplied by size + 1 - i and is at least the previous one.

    Args:
        p_values: (k,), one per claim that was run.
        size: claims in the family, at least k; those that were not run count as undecided.

    Returns:
        Adjusted p-values in the given order, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    total = len(p) if size is None else size
    if total < len(p):
        raise expected("size", total, f"at least the {len(p)} p-values given")
    order = np.argsort(p, kind="stable")
    steps = np.minimum((total - np.arange(len(p))) * p[order], 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


# Sequential sampling: add runs until the verdict is clear, with a valid error for any stopping time

Sampler = Callable[[Sequence[int]], Array]

# No noise model is valid further out: smaller p-values are reported as this one.
P_FLOOR = 1e-12
# Ratio to which a p-value is computed.
P_RESOLUTION = 1.01


def measure_until_decided(
    sampler: Sampler,
    estimator: Estimator,
    prediction: Prediction,
    first: int,
    cap: int,
    error: float,
    decide: Callable[[Measurement, Prediction], Verdict] = judge,
    is_settled: Callable[[Measurement, Verdict], bool] = lambda measurement, verdict: True,
) -> tuple[Measurement, Verdict, Array]:
    """Add runs, doubling their number, until the verdict is clear or the cap is reached.

    Repeated looks at growing data would inflate the error. Each look therefore gets an equal part
    of it, and the intervals of all looks hold together for any stopping time.

    Args:
        sampler: maps run numbers (0, 1, 2, ...) to samples (n, q, ...).
        estimator: maps samples and error to a measurement.
        prediction: the regions of acceptance.
        first: runs of the first look.
        cap: maximum number of runs.
        error: probability that any interval of any look misses its quantity.
        decide: compares a measurement with the prediction.
        is_settled: whether nothing else is to be decided on the same runs.

    Returns:
        The last measurement, its verdict and all samples.
    """
    looks = number_of_looks(first, cap)
    samples, count = sampler(range(first)), first
    while True:
        measurement = estimator(samples, error / looks)
        verdict = decide(measurement, prediction)
        is_decided = verdict is not Verdict.UNDECIDED and is_settled(measurement, verdict)
        if is_decided or count >= cap:
            return measurement, verdict, samples
        more = min(2 * count, cap)
        samples = np.concatenate([samples, sampler(range(count, more))])
        count = more


def number_of_looks(first: int, cap: int) -> int:
    """Return the number of looks of the doubling rule from `first` to `cap` runs."""
    looks, count = 1, first
    while count < cap:
        looks, count = looks + 1, min(2 * count, cap)
    return looks


def p_value(
    samples: Array,
    estimator: Estimator,
    prediction: Prediction,
    verdict: Verdict,
    looks: int,
    error: float,
) -> float:
    """Return the smallest error probability at which the same samples give the same verdict.

    Each look gets an equal part of it, as for the verdict. A smaller error gives longer intervals,
    so the earlier looks would have been undecided too, and the whole measurement would have
    proceeded in the same way. It is the p-value of "outside the region" for supported claims and of
    "inside" for refuted ones, and never exceeds the error of the verdict.

    Args:
        samples: all samples of the last look.
        estimator: estimator of the verdict.
        prediction: prediction of the verdict.
        verdict: the verdict.
        looks: announced `number_of_looks`.
        error: error probability of the verdict.

    Returns:
        The p-value to a ratio of `P_RESOLUTION`, at least `P_FLOOR`; 1 for an undecided verdict.
    """
    if verdict is Verdict.UNDECIDED:
        return 1.0

    def is_decided(at: float) -> bool:
        return judge(estimator(samples, at / looks), prediction) is verdict

    low, high = P_FLOOR, error
    if is_decided(low):
        return low
    while high > P_RESOLUTION * low:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high
