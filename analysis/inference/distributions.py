"""Distribution tests: how far a measured law is from a predicted one, with a certain band."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.measurement import Array, Estimator, Measurement
from fedlora_sim.errors import expected

Cdf = Callable[[Array], Array]


def cdf_distance(
    predicted: Cdf | Sequence[Cdf], *, integer: bool = False, horizon: float = np.inf
) -> Estimator:
    """Estimator of `sup_x |F(x) - predicted(x)|` from samples (n, q), F their true law.

    The empirical law is within `sqrt(log(2 / error) / (2 n))` of F everywhere with probability
    1 - error, for every n and every F (Dvoretzky-Kiefer-Wolfowitz with Massart's constant), so the
    measured distance is within it of the true one. A claim predicts it to be at most a margin.

    Args:
        predicted: the predicted cumulative distribution function, or one for each quantity;
            vectorised. A law with jumps must be right-continuous.
        integer: samples are whole numbers, and `predicted` need be right only there: the step
            below x is at x - 1.
        horizon: laws are compared up to here only; what lies beyond (a survivor of all rounds) may
            be written as any larger number, infinity included.

    Returns:
        The estimator; intervals within [0, 1], together over the q quantities (Bonferroni).

    Raises:
        ValueError: by the estimator, if samples said to be whole numbers are not.

    Reference: Massart, The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality.
    """

    def estimate(samples: Array, error: float) -> Measurement:
        x = np.asarray(samples, dtype=np.float64)
        n, q = x.shape
        laws = [predicted] * q if callable(predicted) else list(predicted)
        if len(laws) != q:
            raise expected("predicted", len(laws), f"a law for each of the {q} quantities")
        value = np.array(
            [largest_gap(x[:, j], law, integer, horizon) for j, law in enumerate(laws)]
        )
        band = np.sqrt(np.log(2 * q / error) / (2 * n))
        return Measurement(value, np.maximum(value - band, 0.0), np.minimum(value + band, 1.0), n)

    return estimate


def largest_gap(
    values: ArrayLike, predicted: Cdf, integer: bool = False, horizon: float = np.inf
) -> float:
    """Largest distance of the empirical law of values (n,) from a predicted one, up to a horizon.

    Between two values the empirical law is flat and the predicted one rises, so the distance is
    largest at a value, or just below one; see `cdf_distance` for the arguments.

    Returns:
        The distance in [0, 1]; NaN if a value is NaN.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    if np.isnan(x).any():
        return np.nan
    inside = x[x <= horizon]
    if integer and not (inside[np.isfinite(inside)] % 1 == 0).all():
        raise expected("samples", "fractions", "whole numbers")
    points = np.unique(inside)
    if np.isfinite(horizon):
        points = np.union1d(points, [np.floor(horizon) if integer else horizon])
    below = points - 1 if integer else np.nextafter(points, -np.inf)
    at, before = (np.searchsorted(x, points, side) / len(x) for side in ("right", "left"))
    return float(
        np.maximum(np.abs(at - predicted(points)), np.abs(before - predicted(below))).max()
    )
