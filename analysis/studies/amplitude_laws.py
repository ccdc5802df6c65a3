"""Laws that continue the amplitudes of partitions from past rounds.

`X_h = sqrt(E_h)` is the amplitude of partition h in a layer, `mu` the rule's multiplier for the
round's cohort. Real local training by Adam adds a drift c, so that a round is

    X' = mu (X + c)        the update is averaged as a whole,
    X' = X + mu c          earlier rounds are in the base (flora, fedex).

The drift laws estimate c from past rounds by least squares in X', and differ in what they assume
about later rounds: c stays, decays, continues its damped trend, or is a power of the amplitude,
`c = a X^p` (p = 0: a step of fixed size; p = 1: a gain). The other theoretical laws
are the logistic flow of plain gradient steps, `1/X' = (a / X + b) / mu`, the ledger's recursion of
energies, `E' = q mu^2 E + delta^2`, and linear moments, `X' = mu (g X + c)`. The baselines know no
multiplier.

Reference: linear recursions: Wu et al., arXiv 2602.13486, App. B. Drift laws and their estimates:
our derivation. Baselines: Gardner 2006 (exponential smoothing with damped trend).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RECENT = 3
"""Rounds whose mean drift is the present one."""
DAMPING = 0.5
"""Factor on the trend of the drift, per round."""
WINDOW = 5
"""Rounds of a trend, an exponent or a fit."""
LONG_WINDOW = 9
MOST_DECAY, MOST_GROWTH = -0.5, 0.3
"""Limits of the trend of log c per round."""
EXPONENTS = (-1.0, 1.2)
"""Limits of the exponent p of `c = a X^p`."""
LARGEST_GAIN = 1.5
LEAK = 0.1
"""Share of its amplitude that a partition without a contributor keeps, before one was seen."""
LEAST = 1e-9
"""Least amplitude, and least ratio of two amplitudes that follow each other in a forecast."""


@dataclass(frozen=True, eq=False)
class RoundStep:
    """What a rule makes of the amplitudes that clients return.

    Args:
        in_base: whether earlier rounds are in the base, so that mu applies to c alone.
        kept: share of its amplitude that a partition without a contributor keeps.
    """

    in_base: bool
    kept: float

    def after(self, x: Array, mu: Array, drift: Array) -> Array:
        """Return the amplitudes after a round with the given drift; they stay positive."""
        found = (
            x + mu * drift if self.in_base else np.where(mu > 0, mu * (x + drift), self.kept * x)
        )
        return np.maximum(found, np.maximum(LEAST * x, LEAST**2))

    def drift(self, before: Array, after: Array, mu: Array) -> Array:
        """Return the drift that explains a round, any number without a contributor."""
        safe = np.where(mu > 0, mu, 1.0)
        return (after - before) / safe if self.in_base else after / safe - before


@dataclass(frozen=True, eq=False)
class Past:
    """Rounds 0 to t of one run.

    Args:
        amplitude: X after each round, (t + 1, L, H).
        multiplier: mu of each round, (t, L, H); 0 without a contributor.
        in_base: whether earlier rounds are in the base, so that mu applies to c alone.
        carried: whether a partition without a contributor is carried over.
    """

    amplitude: Array
    multiplier: Array
    in_base: bool = False
    carried: bool = True

    @property
    def rounds(self) -> int:
        """Number of rounds t."""
        return len(self.multiplier)

    def until(self, last: int) -> Past:
        """Return rounds 0 to `last`."""
        amplitude, multiplier = self.amplitude[: last + 1], self.multiplier[:last]
        return Past(amplitude, multiplier, self.in_base, self.carried)

    @property
    def round(self) -> RoundStep:
        """The rule's round; where nothing is carried over, with the share that leaks back.

        Without contributors a partition is not empty: truncation fills it with the rest of the
        others. The share is the geometric mean of earlier such rounds.
        """
        before, after = self.amplitude[1:-1], self.amplitude[2:]
        empty = (self.multiplier[1:] == 0) & (before > 0) & (after > 0)
        if self.carried:
            return RoundStep(self.in_base, 1.0)
        if not empty.any():
            return RoundStep(self.in_base, LEAK)
        return RoundStep(self.in_base, float(np.exp(np.log(after[empty] / before[empty]).mean())))

    def recent(self, rounds: int) -> tuple[Array, Array, Array]:
        """Return X before, X after and mu of the last rounds, without the first, from zero."""
        first = max(self.rounds - rounds, min(1, self.rounds - 1))
        return self.amplitude[first:-1], self.amplitude[first + 1 :], self.multiplier[first:]

    def drifts(self, rounds: int) -> tuple[Array, Array, Array]:
        """Return the drift that explains each of the last rounds, its weight and X before.

        Least squares in X' weigh the implied drift by mu^2, which is 0 without a contributor.
        """
        before, after, mu = self.recent(rounds)
        return self.round.drift(before, after, mu), mu**2, before


Drift = Callable[[int, Array, Array], Array]
"""Returns the drift (S, L, H) of a later round from its number, from 0, X and mu (S, L, H)."""

Law = Callable[[Past], Drift]


def continued(drift: Drift, start: Array, multiplier: Array, rule: RoundStep) -> Array:
    """Return the amplitudes of later rounds.

    Args:
        drift: the drift of each later round.
        start: present amplitudes, (L, H).
        multiplier: mu of later rounds in S continuations, (S, T, L, H).
        rule: the rule's use of what clients return.

    Returns:
        Amplitudes, shape of `multiplier`.
    """
    x, found = np.broadcast_to(start, multiplier[:, 0].shape), []
    for t in range(multiplier.shape[1]):
        mu = multiplier[:, t]
        x = rule.after(x, mu, drift(t, x, np.maximum(mu, LEAST)))
        found.append(x)
    return np.stack(found, axis=1)


def weighted_mean(values: Array, weight: Array) -> Array:
    """Return means over rounds; 0 where all weights are 0."""
    total = weight.sum(0)
    return np.asarray((weight * values).sum(0) / np.where(total > 0, total, 1.0))


def slope(x: Array, y: Array, weight: Array, shared: bool = False) -> Array:
    """Return slopes of y on x over rounds; 0 where x does not vary. Layers may share them."""
    centred = x - weighted_mean(x, weight)
    product, square = (weight * centred * y).sum(0), (weight * centred**2).sum(0)
    if shared:
        product, square = (np.broadcast_to(s.sum(0), s.shape) for s in (product, square))
    return np.asarray(product / np.where(square > LEAST**2, square, np.inf))


# Drift laws


def constant_drift(past: Past, rounds: int = RECENT) -> Drift:
    """Continue with the mean drift of the last rounds."""
    mean = weighted_mean(*past.drifts(rounds)[:2])
    return lambda t, x, mu: mean


def decaying_drift(past: Past, decay: float) -> Drift:
    """Continue with a drift that falls by the same factor every round, as training converges."""
    drift, weight, _ = past.drifts(RECENT)
    age = np.arange(len(drift))[::-1, None, None]
    present = weighted_mean(drift * decay**age, weight)
    return lambda t, x, mu: present * decay ** (t + 1)


def trending_drift(past: Past, shared: bool) -> Drift:
    """Continue with a drift whose relative trend is damped.

    Args:
        past: past rounds.
        shared: whether the layers of a partition share the trend.
    """
    drift, weight, _ = past.drifts(WINDOW)
    level = weighted_mean(*(values[-RECENT:] for values in (drift, weight)))
    half = len(drift) // 2
    trend = np.zeros_like(level)
    if half >= 2:
        ends = [weighted_mean(drift[s], weight[s]) for s in (slice(half), slice(-half, None))]
        early, late = (np.maximum(end, 0.0) for end in ends)
        if shared:
            early, late = (np.broadcast_to(e.mean(0), e.shape) for e in (early, late))
        known = (early > 0) & (late > 0)
        ratio = np.where(known, late, 1.0) / np.where(known, early, 1.0)
        trend = np.clip(np.log(ratio) / (len(drift) - half), MOST_DECAY, MOST_GROWTH)
    centre = (min(RECENT, len(drift)) - 1) / 2  # of the level, in rounds before the present
    share = DAMPING / (1 - DAMPING)
    # sum of damping^j over j = 1 ... t + 1, after what the level lags behind
    return lambda t, x, mu: (
        level * np.exp(trend * (centre * DAMPING + share * (1 - DAMPING ** (t + 1))))
    )


def power_drift(past: Past) -> Drift:
    """Continue with a drift that is a power of the amplitude, `c = a X^p`.

    The layers of a partition share p. The factor a is that of the last rounds.
    """
    drift, weight, before = past.drifts(WINDOW)
    known = (drift > 0) & (before > 0)
    log_x, log_c = (np.log(np.where(known, values, 1.0)) for values in (before, drift))
    exponent = np.clip(slope(log_x, log_c, weight * known, shared=True), *EXPONENTS)
    drift, weight, before = past.drifts(RECENT)
    scale = weighted_mean(np.maximum(before, LEAST) ** exponent, weight)
    factor = weighted_mean(drift, weight) / np.where(scale > 0, scale, 1.0)
    return lambda t, x, mu: factor * np.maximum(x, LEAST) ** exponent


def drift_after_averaging(past: Past) -> Drift:
    """Continue with a drift that the coverage does not dilute, `X' = mu X + d`."""
    before, after, mu = past.recent(WINDOW)
    mean = (after - (before if past.round.in_base else mu * before)).mean(0)
    return lambda t, x, mu: mean / mu


# Other laws of the theory


def moments(past: Past, rounds: int = WINDOW) -> Drift:
    """Continue with gain and drift fitted together, `X' = mu (g X + c)`."""
    drift, weight, before = past.drifts(rounds)
    gain = np.clip(1 + slope(before, drift, weight), 0.0, LARGEST_GAIN) - 1
    level = weighted_mean(drift - gain * before, weight)
    return lambda t, x, mu: gain * x + level


def ledger(past: Past, rounds: int = LONG_WINDOW) -> Drift:
    """Continue the recursion of energies, `E' = q mu^2 E + delta^2`, with non-negative terms."""
    before, after, mu = past.recent(rounds)
    based = past.round.in_base
    kept, energy = (before if based else mu * before) ** 2, after**2
    mean = kept.mean(0)
    most = np.minimum(energy.mean(0) / np.where(mean > 0, mean, np.inf), LARGEST_GAIN**2)
    factor = np.clip(slope(kept, energy, np.ones_like(kept)), 0.0, most)
    floor = np.maximum(energy.mean(0) - factor * mean, 0.0)

    def drift(t: int, x: Array, mu: Array) -> Array:
        start = x if based else mu * x
        return np.asarray((np.sqrt(factor * start**2 + floor) - start) / mu)

    return drift


def flow(past: Past, rounds: int = WINDOW) -> Drift:
    """Continue the logistic flow of plain gradient steps: clients return `1 / (a / X + b)`."""
    drift, weight, before = past.drifts(rounds)
    usable = (weight > 0) & (before > 0) & (before + drift > 0)
    known = usable.astype(np.float64)
    unit = weighted_mean(before, known)
    unit = np.where(unit > 0, unit, 1.0)
    x, y = (unit / np.where(usable, values, 1.0) for values in (before, before + drift))
    factor = np.clip(slope(x, y, known), 0.0, 1.0)
    rest = np.maximum(weighted_mean(y - factor * x, known), 0.0)
    lost = factor + rest == 0  # nothing is known

    def drift_of(t: int, x: Array, mu: Array) -> Array:
        inverse = factor * unit / np.maximum(x, LEAST) + rest
        return np.where(lost, 0.0, unit / np.maximum(inverse, LEAST) - x)

    return drift_of


# Baselines: they know the amplitudes of the run alone

SMOOTHING = tuple(np.linspace(0.1, 1.0, 10))
TREND_SMOOTHING = tuple(np.linspace(0.05, 1.0, 8))
TREND_DAMPING = (0.8, 0.85, 0.9, 0.95, 0.98)


Baseline = Callable[[Past, int], Array]
"""Returns the amplitudes (T, L, H) of T later rounds."""


def persistence(past: Past, rounds: int) -> Array:
    """Keep the present amplitudes."""
    return np.repeat(past.amplitude[-1:], rounds, axis=0)


def local_trend(past: Past, rounds: int, damping: tuple[float, ...] = (1.0,)) -> Array:
    """Continue level and trend of Holt's exponential smoothing.

    The smoothing parameters of each series minimize the squared errors one round ahead.
    """
    series = past.amplitude[1:]
    if len(series) < 3:
        return persistence(past, rounds)
    grid = [np.ravel(a) for a in np.meshgrid(SMOOTHING, TREND_SMOOTHING, damping, indexing="ij")]
    alpha, beta, phi = (a[:, None, None] for a in grid)
    level, trend = series[0] + 0 * alpha, series[1] - series[0] + 0 * alpha
    squares = np.zeros_like(level)
    for value in series[1:]:
        error = value - level - phi * trend
        squares += error**2
        level, trend = level + phi * trend + alpha * error, phi * trend + alpha * beta * error
    best = squares.argmin(0)[None]
    level, trend = (np.take_along_axis(v, best, axis=0)[0] for v in (level, trend))
    factor = np.broadcast_to(phi, squares.shape)
    factor = np.take_along_axis(factor, best, axis=0)[0]
    sums = np.cumsum([factor ** (t + 1) for t in range(rounds)], axis=0)
    return np.asarray(np.maximum(level + sums * trend, LEAST * past.amplitude[-1]))


def power_of_round(past: Past, rounds: int) -> Array:
    """Continue a power law of the round, fitted to the logarithms by least squares."""
    count = past.rounds
    if count < 2:
        return persistence(past, rounds)
    log_t = np.log(np.arange(1, count + 1))[:, None, None]
    log_x = np.log(np.maximum(past.amplitude[1:], LEAST**2))
    centred = log_t - log_t.mean()
    exponent = (centred * log_x).sum(0) / (centred**2).sum()
    later = np.log(np.arange(count + 1, count + 1 + rounds))[:, None, None]
    return np.asarray(np.exp(log_x.mean(0) + exponent * (later - log_t.mean())))


LAWS: dict[str, Law] = {
    "constant drift": constant_drift,
    "slowly decaying drift": partial(decaying_drift, decay=0.97),
    "decaying drift": partial(decaying_drift, decay=0.94),
    "trend of each layer": partial(trending_drift, shared=False),
    "trend of all layers": partial(trending_drift, shared=True),
    "power of the amplitude": power_drift,
}
"""Laws that a forecast combines, by name."""

OTHER_LAWS: dict[str, Law] = {
    "drift after averaging": drift_after_averaging,
    "flow": flow,
    "ledger": ledger,
    "moments": moments,
}
"""Laws that a forecast leaves out, because they made it worse on the pilot runs."""

BASELINES: dict[str, Baseline] = {
    "persistence": persistence,
    "local trend": local_trend,
    "damped trend": partial(local_trend, damping=TREND_DAMPING),
    "power of the round": power_of_round,
}
"""Baselines by name."""
