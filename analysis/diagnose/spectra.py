"""Energies of the rounds of a run, and what can be fitted to them: rates, drift law, floors.

Let `E_h` be the energy of partition h, summed over layers or of one layer, and `X_h` its root.

Rate: the factor per round of `E_h / E_1`, the energy relative to the shared partition. It is the
mean of the logarithm's increments; its interval counts them as independent, which is exact for a
random walk and too wide for noise about a line.

Drift law: a round is `X' = mu (X + c)`, so that X' is a line in X with slope mu. The floor is
`mu c / (1 - mu)`, and the distance to it falls by mu per round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.collapse.measure import EXTINCT
from analysis.diagnose.layouts import FoundRun, SavedAdapter
from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]
Rounds = NDArray[np.int64]

ERROR = 0.05
"""Probability that any of the intervals of one kind misses."""
LATE = 20
"""With at least this number of rounds, the rate is that of their second half."""
DRAWS = 4_000
"""Random lines from which the interval of a floor is estimated."""
WITHIN = 0.1
"""A partition has settled when its amplitude is within this share of its floor."""
STEPS = 5
"""Steps of the weighted fit."""
LEAST_PAIRS = 4
"""A line needs this number of pairs of adjacent rounds."""
LEAST_SHARE = 0.05
"""Weights are those of amplitudes of at least this share of the measured ones."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Energies of the directions of a run.

    Args:
        rounds: numbers of the rounds, ascending, (T,).
        layers: names of the L layers.
        energy: squared singular values, (T, L, R), padded with zeros.
        is_scaled: whether they include the LoRA scaling.
    """

    rounds: Rounds
    layers: tuple[str, ...]
    energy: Array
    is_scaled: bool

    def partitions(self, levels: Sequence[int]) -> Array:
        """Return the energies between rank levels, (T, L, M); none without levels.

        All energies above the last level count to its partition.

        Raises:
            InputError: if the adapters have fewer directions than the highest level.
        """
        if not levels:
            return self.energy[..., :0]
        if self.energy.shape[-1] < levels[-1]:
            wanted = f"levels up to the rank of the adapters, {self.energy.shape[-1]}"
            raise expected("ranks", list(levels), wanted)
        return np.add.reduceat(self.energy, [0, *levels[:-1]], axis=-1)


def read_spectra(run: FoundRun, on_round: Callable[[], object] = lambda: None) -> Spectra:
    """Return the energies of all rounds, with one module in memory at a time.

    Args:
        run: the rounds of a run.
        on_round: called after each round.

    Raises:
        InputError: if the modules of two rounds differ.
    """
    rows, layers, scaled, first = [], None, True, ""
    for files in run.rounds:
        adapter = files.open_global()
        row = energies_of(adapter)
        if layers is None:
            layers, first = tuple(sorted(row)), adapter.where
        elif layers != tuple(sorted(row)):
            other = sorted(set(layers) ^ set(row))[:4]
            raise expected(adapter.where, other, f"the modules of {first}")
        rows.append([row[name] for name in layers])
        scaled &= adapter.is_scaled
        on_round()
    return stacked([files.number for files in run.rounds], layers or (), rows, is_scaled=scaled)


def energies_of(adapter: SavedAdapter) -> dict[str, Array]:
    """Return the squared singular values of each module; stacked experts are layers each."""
    found = {}
    for module in adapter.modules:
        factors = adapter.factors(module)
        values = factors.product.singular_values(factors.rank).numpy() ** 2
        if not np.isfinite(values).all():
            raise expected(f"{adapter.where}: {module}", np.inf, "finite energies")
        if values.ndim == 1:
            found[module] = values
        else:
            for i, own in enumerate(values.reshape(-1, values.shape[-1])):
                found[f"{module}[{i}]"] = own
    return found


def stacked(
    rounds: Sequence[int],
    layers: Sequence[str],
    rows: Sequence[Sequence[Array]],
    *,
    is_scaled: bool,
) -> Spectra:
    """Return the spectra of rounds whose adapters may have different ranks."""
    width = max(len(values) for row in rows for values in row)
    energy = np.zeros((len(rows), len(layers), width))
    for t, row in enumerate(rows):
        for layer, values in enumerate(row):
            energy[t, layer, : len(values)] = values
    return Spectra(np.asarray(rounds, dtype=np.int64), tuple(layers), energy, is_scaled)


# Rates


@dataclass(frozen=True)
class Estimate:
    """A fitted number with its interval; infinite ends where nothing is known."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(np.nan, -np.inf, np.inf)


def share_of_shared(energy: Array) -> Array:
    """Return the energies relative to the shared partition, (..., M); NaN where it is zero."""
    shared = energy[..., :1]
    return np.where(shared > 0, energy / np.where(shared > 0, shared, 1.0), np.nan)


def geometric_rate(rounds: Rounds, values: Array, error: float = ERROR) -> Estimate:
    """Return the factor per round of a series, over the late rounds of a long one.

    Args:
        rounds: numbers of the rounds, (T,); some may be missing.
        values: the series, (T,); values that are zero, extinct or NaN are left out.
        error: probability that the interval misses.

    Returns:
        The factor; without bounds from fewer than three values.
    """
    kept = alive(values)
    t, log = rounds[kept].astype(np.float64), np.log(values[kept])
    if len(t) > LATE:
        late = t >= (t[0] + t[-1]) / 2
        t, log = t[late], log[late]
    if len(t) < 2:
        return UNKNOWN
    span, change = np.diff(t), np.diff(log)
    mean, n = change.sum() / span.sum(), len(span)
    if n < 2:
        return Estimate(float(np.exp(mean)), 0.0, np.inf)
    spread = ((change - mean * span) ** 2 / span).sum() / (n - 1)
    half = stats.t.isf(error / 2, n - 1) * np.sqrt(spread / span.sum())
    value, low, high = np.exp([mean, mean - half, mean + half])
    return Estimate(float(value), float(low), float(high))


def alive(values: Array) -> NDArray[np.bool_]:
    """Return which values of a series are not extinct, relative to its largest, (T,)."""
    known = np.where(np.isfinite(values), values, 0.0)
    most = known.max(initial=0.0)
    return np.asarray(known > EXTINCT * most) if most > 0 else np.zeros(len(known), dtype=bool)


def half_life(rate: Estimate) -> Estimate:
    """Return the rounds in which a factor per round halves; infinite if it does not fall."""

    def rounds(factor: float) -> float:
        if not factor < 1:
            return np.nan if np.isnan(factor) else np.inf
        return float(np.log(0.5) / np.log(factor)) if factor > 0 else 0.0

    return Estimate(rounds(rate.value), rounds(max(rate.low, 0.0)), rounds(rate.high))


# The drift law


def pairs_of(rounds: Rounds, amplitude: Array) -> tuple[Array, Array]:
    """Return the amplitudes before and after each round whose predecessor is known, (n,) each.

    Rounds in which there is nothing before and after are left out.
    """
    at = np.flatnonzero(np.diff(rounds) == 1)
    x, y = amplitude[at], amplitude[at + 1]
    some = (x > 0) | (y > 0)
    return x[some], y[some]


@dataclass(frozen=True)
class DriftLine:
    """The line `X' = slope X + intercept` through adjacent rounds.

    Args:
        slope: fitted multiplier, times the gain of local training.
        slope_error: its standard error.
        mean: weighted means of X and X'.
        mean_error: standard error of the mean of X'.
        freedom: degrees of freedom.
    """

    slope: float
    slope_error: float
    mean: tuple[float, float]
    mean_error: float
    freedom: int


def drift_line(rounds: Rounds, amplitude: Array) -> DriftLine | None:
    """Return the weighted fit of the drift law to adjacent rounds of one series, (T,).

    Residuals are relative to the fitted amplitude, as random cohorts make them. None from fewer
    than `LEAST_PAIRS` adjacent pairs of rounds, or where the amplitude does not change.
    """
    x, y = pairs_of(rounds, amplitude)
    n = len(x)
    if n < LEAST_PAIRS:
        return None
    least = LEAST_SHARE * np.maximum(x, y)
    fitted = np.maximum((x + y) / 2, least)
    for _ in range(STEPS):
        w = fitted**-2.0
        mean_x, mean_y = float((w * x).sum() / w.sum()), float((w * y).sum() / w.sum())
        dx = x - mean_x
        spread = float((w * dx * dx).sum())
        if not spread > 0:
            return None
        slope = float((w * dx * y).sum() / spread)
        fitted = np.maximum(mean_y + slope * dx, least)
    rest = y - mean_y - slope * dx
    scale = float((w * rest**2).sum() / (n - 2))
    errors = np.sqrt([scale / spread, scale / float(w.sum())])
    return DriftLine(slope, float(errors[0]), (mean_x, mean_y), float(errors[1]), n - 2)


@dataclass(frozen=True)
class Settling:
    """Where a partition settles under the drift law.

    Args:
        floor: energy at which it settles; infinite if it grows without end.
        rounds: rounds from the last one until its amplitude is within 10% of that.
    """

    floor: Estimate
    rounds: Estimate


def settling(line: DriftLine | None, last: float, error: float = ERROR) -> Settling:
    """Return floor and remaining rounds of one series with their intervals.

    Args:
        line: the fitted line of the series.
        last: its last amplitude.
        error: probability that an interval misses.
    """
    if line is None:
        return Settling(UNKNOWN, UNKNOWN)
    t = stream(0, "settling").standard_t(line.freedom, (2, DRAWS))
    slopes = np.append(line.slope + line.slope_error * t[0], line.slope)
    levels = np.append(line.mean[1] + line.mean_error * t[1], line.mean[1])
    floors, waits = _settled(slopes, levels, line.mean[0], last)
    ends = [error / 2, 1 - error / 2]
    low, high = np.quantile(floors[:-1], ends, method="inverted_cdf")
    soon, later = np.quantile(waits[:-1], ends, method="inverted_cdf")
    return Settling(
        Estimate(float(floors[-1]) ** 2, float(low) ** 2, float(high) ** 2),
        Estimate(float(waits[-1]), float(soon), float(later)),
    )


def _settled(slope: Array, level: Array, mean: float, last: float) -> tuple[Array, Array]:
    """Return floors as amplitudes, and rounds until then."""
    settles = slope < 1
    intercept = level - slope * mean
    apart = np.where(settles, 1 - slope, 1.0)
    floor = np.where(settles, np.maximum(intercept / apart, 0.0), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(last - floor)
        share = np.where(floor > 0, WITHIN * floor / distance, 0.0)
        shrinks = np.log(np.clip(slope, 1e-300, 1.0))
        wait = np.where(share >= 1, 0.0, np.log(share) / np.where(shrinks < 0, shrinks, -0.0))
    wait = np.where(settles & np.isfinite(floor), np.maximum(wait, 0.0), np.inf)
    return floor, np.where(np.isnan(wait), np.inf, wait)
