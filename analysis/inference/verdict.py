"""Verdicts: a measured interval against a region of acceptance that was fixed before the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.measurement import Array, Measurement

# Quick runs have fewer runs; their margins, where they are widths, are this many times as wide.
QUICK_MARGIN = 2.0


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
        margin: the region, for the report: `±3%`, `±0.05`, `at least` or `at most`.
        relative: width to each side as a share of the value, or None.
        absolute: width to each side in the value's unit, or None.
    """

    value: Array
    low: Array
    high: Array
    margin: str
    relative: float | None = None
    absolute: float | None = None

    @classmethod
    def within(cls, value: ArrayLike, relative: float) -> Prediction:
        """Equal to `value` up to a relative margin (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        width = relative * np.abs(v)
        return cls(v, v - width, v + width, f"±{100 * relative:g}%", relative=relative)

    @classmethod
    def near(cls, value: ArrayLike, absolute: float) -> Prediction:
        """Equal to `value` up to an absolute margin, in the value's unit (equivalence)."""
        v = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return cls(v, v - absolute, v + absolute, f"±{absolute:g}", absolute=absolute)

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

    def widened(self, factor: float) -> Prediction:
        """The same prediction with a margin `factor` times as wide; one-sided ones stay."""
        if self.relative is not None:
            return Prediction.within(self.value, factor * self.relative)
        if self.absolute is not None:
            return Prediction.near(self.value, factor * self.absolute)
        return self


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
