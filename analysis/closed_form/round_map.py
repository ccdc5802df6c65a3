"""One round as an affine map of the first two moments of each amplitude.

Client k returns `a_k x + b_k` with independent gains (mean g, standard deviation nu) and drifts
(mean c, standard deviation tau); the server forms `x' = sum_k w_k (a_k x + b_k)`, or the result of
its rule. The mean-field recursion of Wu et al., arXiv 2602.13486, App. B; its exact second moment
and the other rules are our derivation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from analysis.closed_form.setting import Setting
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected

NO_SPREAD = "the factors hold square roots of client amplitudes: no closed form"
"""Reason why clients that differ are refused in factor space."""


@dataclass(frozen=True)
class Clients:
    """Distribution of what clients return, `a x + b`; every array has shape (r_max,).

    Args:
        gain_mean: g.
        gain_std: nu.
        drift_mean: c, in the unit of x.
        drift_std: tau, in the unit of x.
    """

    gain_mean: Array
    gain_std: Array
    drift_mean: Array
    drift_std: Array

    @property
    def differ(self) -> bool:
        """True if clients differ."""
        return bool(self.gain_std.any() or self.drift_std.any())

    def scaled(self, scale: float) -> Clients:
        """Return clients that change an amplitude by a share of this: gains `1 + s (a - 1)`."""
        if scale == 1:
            return self
        return Clients(
            1 + scale * (self.gain_mean - 1),
            scale * self.gain_std,
            scale * self.drift_mean,
            scale * self.drift_std,
        )


class MomentMap(Protocol):
    """Base class of maps of the mean and the mean energy of an amplitude in one round."""

    @property
    def rate(self) -> Array:
        """Factor of the mean energy per round, without drift, (r_max,)."""

    def floor(self) -> Array:
        """Return fixed point of the mean energy, `inf` where the rate is 1 or more, (r_max,)."""

    def mean_floor(self) -> Array:
        """Return the fixed point of the mean, `inf` where there is none, (r_max,)."""

    def begin(self, start: Array) -> tuple[Array, ...]:
        """Return the state of amplitudes (r_max,) that are known."""

    def advance(self, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the state after the round."""

    def moments(self, state: tuple[Array, ...]) -> tuple[Array, Array]:
        """Return the mean and the energy of the amplitude in a state, each (r_max,)."""


def follow(maps: Sequence[MomentMap], start: Array) -> tuple[Array, Array]:
    """Return the means and energies for t = 0..T, each (T + 1, r_max); `inf` on overflow.

    Args:
        maps: the maps of rounds 1 to T, at least one; all of the same kind.
        start: amplitudes of round 0, (r_max,).
    """
    mean, energy = np.empty((2, len(maps) + 1, start.size))
    state = maps[0].begin(start)
    with np.errstate(over="ignore", invalid="ignore"):
        mean[0], energy[0] = start, start**2
        for t, step in enumerate(maps, start=1):
            state = step.advance(state)
            mean[t], energy[t] = step.moments(state)
    return without_nan(mean), without_nan(energy)


@dataclass(frozen=True)
class RoundMap:
    """One round as an affine map of `(E[x], E[x^2])`; every array has shape (r_max,).

    `E[x'] = gain E[x] + shift`, `E[x'^2] = rate E[x^2] + cross E[x] + noise`; shift and cross have
    the unit of x, noise its square.
    """

    gain: Array
    shift: Array
    rate: Array
    cross: Array
    noise: Array

    def floor(self) -> Array:
        """Return the fixed point of the energy; with `rate < 1` the mean converges too (Jensen)."""
        settles = self.rate < 1
        mean = np.zeros_like(self.shift)
        np.divide(self.shift, 1 - self.gain, out=mean, where=settles)
        height = self.cross * mean + self.noise
        return np.divide(height, 1 - self.rate, out=np.full_like(mean, np.inf), where=settles)

    def mean_floor(self) -> Array:
        """Return the fixed point of the mean, `inf` where `|gain| >= 1`, (r_max,)."""
        settles = np.abs(self.gain) < 1
        endless = np.full_like(self.shift, np.inf)
        return np.divide(self.shift, 1 - self.gain, out=endless, where=settles)

    def begin(self, start: Array) -> tuple[Array, ...]:
        """Return the mean and the energy of known amplitudes."""
        with np.errstate(over="ignore"):
            return start, start**2

    def advance(self, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the mean and the energy after the round."""
        mean, energy = state
        energy = self.rate * energy + self.cross * mean + self.noise
        return self.gain * mean + self.shift, energy

    def moments(self, state: tuple[Array, ...]) -> tuple[Array, Array]:
        """Return the mean and the energy of a state."""
        return state[0], state[1]


def without_nan(values: Array) -> Array:
    """Return `inf` where terms of both signs overflowed."""
    return np.where(np.isnan(values), np.inf, values)


def clients_of(setting: Setting) -> Clients:
    """Return the checked distribution of what clients return.

    Raises:
        InputError: for an invalid value, and for spread in factor space.
    """
    checked = {name: setting.direction(name, minimum=0.0) for name in ("gain_std", "drift_std")}
    if not setting.form.takes_spread:
        for name, array in checked.items():
            if array.any():
                given = setting.values.get(name, getattr(setting.scenario, name))
                wanted = f"0 for a rule that averages factors ({NO_SPREAD})"
                raise expected(name, given, wanted)
    return Clients(
        setting.direction("gain_mean"),
        checked["gain_std"],
        setting.direction("drift_mean"),
        checked["drift_std"],
    )


def round_map(setting: Setting, clients: Clients) -> RoundMap:
    """Return the affine map of one round, for every rule except fedex.

    Args:
        setting: the rule in its federation.
        clients: the distribution of gains and drifts.

    Returns:
        The map's coefficients.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the coefficients: our derivation.
    """
    mean, second = multiplier_moments(setting)
    squares = setting.moments.sum_of_squares if clients.differ else np.zeros_like(mean)
    return affine_map(setting, clients, mean, second, squares)


def affine_map(
    setting: Setting, clients: Clients, mean: Array, second: Array, squares: Array
) -> RoundMap:
    """Return `round_map` for given moments of the multiplier and `E[sum w^2]`."""
    g, c = clients.gain_mean, clients.drift_mean
    spread = clients.gain_std**2 * squares
    noise = clients.drift_std**2 * squares + c**2 * second
    if setting.form.space == "base":
        d = g - 1
        rate = 1 + 2 * d * mean + d**2 * second + spread
        return RoundMap(1 + d * mean, c * mean, rate, 2 * c * (mean + d * second), noise)
    if setting.carries:
        # P0 + g (1 - P0), written so that g = 1 gives exactly 1
        gain, rate = 1 + (g - 1) * mean, 1 + (g**2 - 1) * second + spread
    else:
        gain, rate = g * mean, g**2 * second + spread
    return RoundMap(gain, c * mean, rate, 2 * g * c * second, noise)


def multiplier_moments(setting: Setting) -> tuple[Array, Array]:
    """Return the first two moments of the round's multiplier `W**power`, each (r_max,)."""
    if setting.form.normalizer == "contributors":
        # the share is 0 or 1: no enumeration or sampling
        kept = 1.0 - setting.empty
        return kept, kept
    moments = setting.moments
    if setting.form.power == 2:
        return moments.second, moments.fourth
    return moments.mean, moments.second
