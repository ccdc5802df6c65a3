"""Adding runs until a verdict is clear, with an error that holds whatever makes us stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis.inference.measurement import Array, Estimator, Measurement
from analysis.inference.verdict import Prediction, Verdict, judge

Sampler = Callable[[Sequence[int]], Array]

# No model of noise holds further out: smaller p-values are reported as this one.
P_FLOOR = 1e-12
# Ratio to which a p-value is found.
P_RESOLUTION = 1.01


def measure_until_decided(
    sampler: Sampler,
    estimator: Estimator,
    prediction: Prediction,
    first: int,
    cap: int,
    error: float,
    decide: Callable[[Measurement, Prediction], Verdict] = judge,
) -> tuple[Measurement, Verdict, Array]:
    """Add runs, doubling their number, until the verdict is clear or the cap is reached.

    Looking repeatedly at growing data would inflate the error; each look therefore gets an equal
    part of it, and the intervals of all looks hold together whatever makes us stop.

    Args:
        sampler: runs of given numbers (0, 1, 2, ...) to samples (n, q, ...).
        estimator: samples and error to a measurement.
        prediction: the regions of acceptance.
        first: runs of the first look.
        cap: most runs.
        error: probability that any interval of any look misses its quantity.
        decide: compares a measurement with the prediction.

    Returns:
        The last measurement, its verdict and all samples.
    """
    looks = number_of_looks(first, cap)
    samples, count = sampler(range(first)), first
    while True:
        measurement = estimator(samples, error / looks)
        verdict = decide(measurement, prediction)
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


def p_value(
    samples: Array,
    estimator: Estimator,
    prediction: Prediction,
    verdict: Verdict,
    looks: int,
    error: float,
) -> float:
    """Smallest error probability at which the same samples would be decided the same way.

    It is paid for like the verdict, each look with an equal part. A smaller error makes intervals
    longer, so the looks before the last would have stayed undecided too: at this error the whole
    measurement would have gone as it went. It is the p-value of "outside the region" for what is
    supported and of "inside" for what is refuted, and never above the error of the verdict.

    Args:
        samples: all samples of the last look.
        estimator: that of the verdict.
        prediction: that of the verdict.
        verdict: what was decided.
        looks: `number_of_looks` that were announced.
        error: the error probability at which it was decided.

    Returns:
        The p-value to a ratio of `P_RESOLUTION`, at least `P_FLOOR`; 1 for what is undecided.
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
