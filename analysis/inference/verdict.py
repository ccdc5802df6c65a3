"""Verdicts: a measured interval against a region of acceptance that was fixed before the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.inference.measurement import Array, Measurement


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Prediction:
    """A predicted value and the region of values that count as agreeing with it.

    Args:
        value: what the theory says, (q,).
        low, high: ends of the region of acceptance, (q,); infinite where one-sided.
        margin: the region, for the report: `±3%`, `±0.05`, `at least` or `at most`.
        width: one margin, in the unit of the value, (q,). For a two-sided region this is its
            half-width. A one-sided region has no width: here it is the smallest difference that
            matters, the unit in which the distance of a control from the bound is counted.
    """

    value: Array
    low: Array
    high: Array
    margin: str
    width: Array

    @classmethod
    def within(cls, value: ArrayLike, relative: float) -> Prediction:
        """Equal to `value` up to a relative margin (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        width = relative * np.abs(v)
        return cls(v, v - width, v + width, f"±{100 * relative:g}%", width)

    @classmethod
    def near(cls, value: ArrayLike, absolute: float) -> Prediction:
        """Equal to `value` up to an absolute margin, in the value's unit (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return cls(v, v - absolute, v + absolute, f"±{absolute:g}", np.full_like(v, absolute))

    @classmethod
    def at_least(cls, value: ArrayLike, scale: ArrayLike = np.nan) -> Prediction:
        """At least `value`; `scale` is the smallest difference that matters, see `width`."""
        v, unit = _same_length(value, scale)
        return cls(v, v, np.full_like(v, np.inf), "at least", unit)

    @classmethod
    def at_most(cls, value: ArrayLike, scale: ArrayLike = np.nan) -> Prediction:
        """At most `value`; `scale` is the smallest difference that matters, see `width`."""
        v, unit = _same_length(value, scale)
        return cls(v, np.full_like(v, -np.inf), v, "at most", unit)

    def distance(self, measurement: Measurement) -> Array:
        """Return how many margins the measured value is away from the predicted one, (q,).

        For a one-sided region only the forbidden side counts: a value on the allowed side has a
        negative distance. Of a measurement of every run the run that is furthest away counts.
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
    """Compare every interval with its region.

    Supported if every interval lies inside its region (an equivalence test), refuted if any lies
    wholly outside, undecided otherwise. A measurement of every run has the range of its runs in
    place of an interval: one run outside, a counterexample, refutes. What is not finite was not
    measured: it decides nothing, neither for a claim nor for a control.

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
    """Compare as `judge` does, but refute only if every quantity on its own is refuted.

    Returns:
        Refuted if every interval lies wholly outside its region, supported if any lies inside:
        the check does not see that this quantity is wrong. Undecided otherwise.
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
