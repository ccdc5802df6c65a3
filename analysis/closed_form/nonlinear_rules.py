"""FedEx and HetLoRA, whose rounds are not a map of one amplitude's two moments.

FedEx averages the adapter x by factors, and a base z takes the residual. Clients change the total
to `a (x + z) + b` and return `y = a (x + z) + b - z`. With a common gain g and drift c the round is
linear, `x' = W**2 y` and `z' = z + (W - W**2) y` with `y = g x + (g - 1) z + c`, and so are the
second moments in `(x**2, x z, z**2)`. With g = 1 and c = 0 the total converges to `W / (1 + W)` of
its start, all of it in the base. Our derivation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.closed_form.round_map import Clients, round_map
from analysis.closed_form.setting import Setting, need_full
from analysis.cohorts.law import Array
from analysis.cohorts.shares import WeightMoments
from fedlora_sim.errors import expected


@dataclass(frozen=True)
class PairMap:
    """One round as an affine map of the moments of (x, z); `first = (E[x], E[z])`.

    `first' = means first + shift`, and for `second = (E[x^2], E[x z], E[z^2])`:
    `second' = energies second + cross first + noise`.

    Args:
        means: (r_max, 2, 2).
        shift: (r_max, 2).
        energies: (r_max, 3, 3).
        cross: (r_max, 3, 2).
        noise: (r_max, 3).
        rate: spectral radius of `energies`, (r_max,).
    """

    means: Array
    shift: Array
    energies: Array
    cross: Array
    noise: Array
    rate: Array

    def floor(self) -> Array:
        """Return the energy of the total at the fixed point; `inf` where the rate is 1 or more."""
        floor = np.full(self.rate.size, np.inf)
        for i in np.flatnonzero(self.rate < 1):
            first = np.linalg.solve(np.eye(2) - self.means[i], self.shift[i])
            height = self.cross[i] @ first + self.noise[i]
            floor[i] = _TOTAL @ np.linalg.solve(np.eye(3) - self.energies[i], height)
        return floor

    def mean_floor(self) -> Array:
        """Return the fixed point of the mean of the total; `inf` where there is none."""
        floor = np.full(self.rate.size, np.inf)
        # with g = 1 and dilution the base gains without end, which rounding may hide
        settles = np.where(self.means[:, 1, 1] == 1, np.inf, self.mean_radius()) < 1
        for i in np.flatnonzero(settles):
            floor[i] = np.linalg.solve(np.eye(2) - self.means[i], self.shift[i]).sum()
        return floor

    def mean_radius(self) -> Array:
        """Return the spectral radius of `means`, (r_max,)."""
        radius, finite = np.full_like(self.rate, np.inf), np.isfinite(self.means).all(axis=(1, 2))
        radius[finite] = np.abs(np.linalg.eigvals(self.means[finite])).max(axis=1)
        return radius

    def begin(self, start: Array) -> tuple[Array, ...]:
        """Return the moments of (x, z) for known amplitudes, all of them in the adapter."""
        none = np.zeros_like(start)
        with np.errstate(over="ignore"):
            second = np.stack([start**2, none, none], axis=1)
        return np.stack([start, none], axis=1), second

    def advance(self, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the moments of (x, z) after the round."""
        first, second = state
        moved = np.einsum("hij,hj->hi", self.cross, first) + self.noise
        second = np.einsum("hij,hj->hi", self.energies, second) + moved
        return np.einsum("hij,hj->hi", self.means, first) + self.shift, second

    def moments(self, state: tuple[Array, ...]) -> tuple[Array, Array]:
        """Return the mean and the energy of the total."""
        return state[0].sum(axis=1), state[1] @ _TOTAL


_TOTAL = np.array([1.0, 2.0, 1.0])  # (x + z)**2


def pair_map(setting: Setting, clients: Clients) -> PairMap:
    """Return the affine map of one round of fedex with a common gain and drift.

    Args:
        setting: the rule in its federation.
        clients: gains and drifts without spread.
    """
    # overflow is infinite: no rate, no floor
    with np.errstate(over="ignore", invalid="ignore"):
        return _pair_map(
            setting.moments, setting.third_moment, clients.gain_mean, clients.drift_mean
        )


def _pair_map(moments: WeightMoments, third: Array, g: Array, c: Array) -> PairMap:
    d, zero, one = g - 1, np.zeros_like(g), np.ones_like(g)
    u, v = moments.second, moments.mean - moments.second
    uu, uv = moments.fourth, third - moments.fourth
    vv = moments.second - 2 * third + moments.fourth
    # without dilution the base gains nothing, and starts at zero
    whole = moments.mean == 1
    keeps, v, uv, vv = (np.where(whole, 0.0, value) for value in (one, v, uv, vv))
    square = (g**2, 2 * g * d, d**2)  # y**2 in x**2, x z, z**2
    line = (2 * g * c, 2 * d * c)  # and in x, z
    energies = _rows(
        [uu * s for s in square],
        [zero + uv * square[0], u * g * keeps + uv * square[1], u * d * keeps + uv * square[2]],
        [vv * square[0], 2 * v * g + vv * square[1], keeps + 2 * v * d + vv * square[2]],
    )
    cross = _rows(
        [uu * s for s in line],
        [uv * line[0], u * c * keeps + uv * line[1]],
        [vv * line[0], 2 * v * c + vv * line[1]],
    )
    means = _rows([u * g, u * d], [v * g, keeps + v * d])
    noise = np.stack([uu * c**2, uv * c**2, vv * c**2], axis=-1)
    radius, finite = np.full_like(g, np.inf), np.isfinite(energies).all(axis=(1, 2))
    radius[finite] = np.abs(np.linalg.eigvals(energies[finite])).max(axis=1)
    # with g = 1 the map is triangular, and the content of the base does not change
    rate = np.where(whole, g**2, np.where(g == 1, 1.0, radius))
    return PairMap(means, np.stack([u * c, v * c], axis=-1), energies, cross, noise, rate)


def _rows(*rows: list[Array]) -> Array:
    """Return the entries, each (r_max,), as matrices (r_max, rows, columns)."""
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


# HetLoRA's energies: weights are norms of updates, so all directions are coupled.
#
# `x_i' = (sum_{k: r_k > i} w_k)**2 (g_i x_i + c_i)`, `w_k = ||y_k|| / sum_l ||y_l||`, y_k the first
# r_k of all `g x + c`. As the directions of the high-rank clients collapse, all norms become those
# of the shared directions and the weights uniform: that limit gives the rate. Our derivation; the
# rule is that of Cho et al., arXiv 2401.06432, Sec. 3.2.


def hetlora_trajectory(
    setting: Setting, rounds: Sequence[Clients], start: Array
) -> tuple[Array, Array]:
    """Return amplitudes and energies under full participation, each (rounds + 1, r_max).

    Deterministic. `rounds` are the clients of each round.

    Raises:
        InputError: without full participation.
    """
    need_full(setting, "hetlora's weights depend on the state")
    mean = np.empty((len(rounds) + 1, start.size))
    mean[0] = start
    with np.errstate(over="ignore"):
        for t, clients in enumerate(rounds):
            mean[t + 1] = _hetlora_round(setting, clients, mean[t])
        return mean, mean**2


def _hetlora_round(setting: Setting, clients: Clients, mean: Array) -> Array:
    """Return the amplitudes after one round of equal clients."""
    reached = clients.gain_mean * mean + clients.drift_mean
    weights = norm_weights(np.where(setting.federation.members, np.abs(reached), 0.0))
    return np.asarray(setting.federation.carried_shares(weights) ** 2 * reached, dtype=np.float64)


MOST_SETTLING_ROUNDS = 100_000


def hetlora_floors(setting: Setting, clients: Clients, start: Array) -> tuple[Array, Array]:
    """Return the mean amplitude and the energy at which drift holds all directions, each (r_max,).

    Where a shared direction grows without end, or where there is no drift, the weights become
    uniform, and the floors are those of zero padding with uniform weights, `inf` where there is
    none. Otherwise the limit of the recursion.

    Raises:
        InputError: without full participation if drift holds the shared directions, because the
            weights then depend on the state; if the recursion does not settle.
    """
    step = round_map(setting, clients)
    shared = slice(0, setting.federation.levels[0])
    gain, drift, x = clients.gain_mean[shared], clients.drift_mean[shared], start[shared]
    grows = ((gain >= 1) & (drift > 0)) | ((gain > 1) & (drift == 0) & (x > 0))
    if not clients.drift_mean.any() or (grows & (x >= 0)).any():
        return step.mean_floor(), step.floor()
    need_full(setting, "hetlora's weights depend on the state")
    mean = start
    enough = 8 * np.finfo(np.float64).eps  # rounding errors of one round
    for _ in range(MOST_SETTLING_ROUNDS):
        with np.errstate(over="ignore", invalid="ignore"):
            new = _hetlora_round(setting, clients, mean)
        if not np.isfinite(new).all():
            return np.full_like(new, np.inf), np.full_like(new, np.inf)
        if np.abs(new - mean).max() <= enough * np.abs(new).max():
            return new, new**2
        mean = new
    reason = f"hetlora does not settle within {MOST_SETTLING_ROUNDS} rounds there: no closed form"
    raise expected("gain_mean", clients.gain_mean.tolist(), f"others ({reason})")


def norm_weights(returned: Array) -> Array:
    """Return the clients' weights (K,) from the norms of (K, r_max); equal if all are zero."""
    scale = returned.max() or 1.0  # squares of very large or small values overflow
    # relative to an overflow all else is zero
    relative = returned / scale if np.isfinite(scale) else np.isinf(returned).astype(np.float64)
    norms = np.sqrt((relative**2).sum(axis=1))
    total = norms.sum()
    return norms / total if total > 0 else np.full(norms.size, 1 / norms.size)


def need_no_drift(clients: Clients) -> None:
    """Refuse drift under hetlora, which keeps the weights from their uniform limit."""
    if clients.drift_mean.any():
        reason = "drift keeps hetlora's weights from their uniform limit: no closed form"
        value = clients.drift_mean.tolist()
        raise expected("drift_mean", value, f"0 for rule='hetlora' ({reason})")
