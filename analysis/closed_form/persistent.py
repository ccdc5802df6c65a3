"""Persistent heterogeneity: gains and drifts are drawn once per client.

Rounds are then independent only given the gains: the pair of moments follows an affine map, and the
closed forms are means of its iterates over normal gains `a_k` (mean g, standard deviation nu) and
drifts `b_k` (mean c, standard deviation tau).

- Full participation, any weights: `x_{t+1} = A x_t + D` with one normal pair (A, D) for the whole
  run, so `E[x_t^2]` is a sum of moments of A up to order 2 t.
- Random cohorts of clients with equal samples: contributors' weights are exchangeable, so gains
  enter through their mean (normal) and their sum of squares about it (chi-square). `E[x_t^2]` is
  polynomial in both, which Gauss-Hermite and generalized Gauss-Laguerre quadrature sum exactly.

Normal gains are unbounded: for nu > 0 the runs with `|A| > 1` make the mean energy grow without
limit and at an increasing rate, however small nu is. The mean therefore has no rate and no finite
floor. All of this is our derivation.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh_tridiagonal

from analysis.closed_form.round_map import Clients, multiplier_moments, without_nan
from analysis.closed_form.setting import Setting
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected

# Gauss quadrature for normal and gamma distributions, exact for polynomials of any order


def normal_rule(order: int) -> tuple[Array, Array]:
    """Return nodes and weights of the standard normal distribution.

    Exact to degree `2 * order - 1`.
    """
    return gauss_rule(np.zeros(order), np.sqrt(np.arange(1.0, order)))


def gamma_rule(order: int, shape: float) -> tuple[Array, Array]:
    """Return nodes and weights of the gamma distribution of scale 1.

    Exact to degree `2 * order - 1`.
    """
    k = np.arange(1.0, order)
    return gauss_rule(2 * np.arange(float(order)) + shape, np.sqrt(k * (k + shape - 1)))


def gauss_rule(diagonal: Array, off_diagonal: Array) -> tuple[Array, Array]:
    """Return nodes and weights from the recurrence of a distribution's orthonormal polynomials.

    Nodes are the eigenvalues of the Jacobi matrix. A weight is `1 / sum_k p_k(node)**2`, a sum of
    positive terms, computed with a running scale: tail weights are accurate until they underflow.

    Args:
        diagonal: coefficients a_k, (order,).
        off_diagonal: coefficients b_k between k - 1 and k, (order - 1,).

    Returns:
        Nodes and weights, which sum to 1; nodes of weight 0 are left out.
    """
    nodes = np.asarray(
        eigh_tridiagonal(diagonal, off_diagonal, eigvals_only=True), dtype=np.float64
    )
    before, here = np.zeros_like(nodes), np.ones_like(nodes)
    total, scale = np.ones_like(nodes), np.zeros_like(nodes)
    for k in range(1, nodes.size):
        earlier = off_diagonal[k - 2] if k > 1 else 0.0
        after = ((nodes - diagonal[k - 1]) * here - earlier * before) / off_diagonal[k - 1]
        total = total + after**2
        root = np.sqrt(total)
        before, here, total = here / root, after / root, np.ones_like(nodes)
        scale += np.log(root)
    weights = np.exp(-2 * scale)
    keep = weights > 0
    return nodes[keep], weights[keep] / weights[keep].sum()


_MOST_ROUNDS = 500  # the cost grows with the third power of the rounds


def stays(setting: Setting, clients: Clients) -> bool:
    """Return True if clients are persistent and differ.

    Equal clients are fresh and persistent at once.
    """
    return setting.scenario.heterogeneity == "persistent" and clients.differ


def persistent_trajectory(
    setting: Setting, clients: Clients, start: Array, rounds: int
) -> tuple[Array, Array]:
    """Return means and energies for t = 0..rounds, each (rounds + 1, r_max); `inf` on overflow.

    Raises:
        InputError: for unequal samples or random allocation without full participation; for more
            than 500 rounds with random cohorts.
    """
    if setting.is_full:
        return _full_trajectory(setting, clients, start, rounds)
    _check_exchangeable(setting)
    if rounds > _MOST_ROUNDS:
        reason = "the quadrature is exact, and its work grows with the cube of the rounds"
        raise expected("rounds", rounds, f"at most {_MOST_ROUNDS} with random cohorts ({reason})")
    # directions that differ in their start only share one quadrature
    rows = [setting.federation.members.sum(axis=0), *_map_moments(setting), clients.gain_mean]
    rows += [clients.gain_std, clients.drift_mean, clients.drift_std]
    _, first, group = np.unique(np.stack(rows), axis=1, return_index=True, return_inverse=True)
    parts = np.stack([_coefficients(setting, clients, int(i), rounds) for i in first], axis=-1)
    constant, line, none, linear, square = parts[..., group.ravel()]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = constant + _times(start, line)
        energy = none + _times(start, linear) + _times(start**2, square)
    return without_nan(mean), without_nan(energy)


def persistent_floor(setting: Setting, clients: Clients) -> Array:
    """Return the energy at which persistent drifts hold a direction, (r_max,).

    `inf` where gains differ (see the module) or the common gain suppresses nothing.

    Raises:
        InputError: for unequal samples or random allocation without full participation.
    """
    if not setting.is_full:
        _check_exchangeable(setting)
    g, c, tau = clients.gain_mean, clients.drift_mean, clients.drift_std
    share, second, kept, kept_pair = _map_moments(setting)
    height = c**2 * second + tau**2 * setting.moments.sum_of_squares
    if setting.is_full:
        gain = _full_gain(setting, g)
        rate, margin = gain**2, (1 - gain) ** 2
    else:
        shifted = g - _offset(setting)
        gain = kept + share * shifted
        rate = kept + 2 * kept_pair * share * shifted + second * shifted**2
        # the amplitude is correlated with the drifts: E[x times their mean], in the limit
        drift = share * (c**2 + tau**2 / setting.federation.members.sum(axis=0))
        settled = np.divide(drift, 1 - gain, out=np.zeros_like(g), where=rate < 1)
        height = height + 2 * (kept_pair * share + shifted * second) * settled
        margin = 1 - rate
    finite = (rate < 1) & (clients.gain_std == 0)
    return np.divide(height, margin, out=np.full_like(g, np.inf), where=finite)


def _check_exchangeable(setting: Setting) -> None:
    """Refuse contributors that are not exchangeable: unequal samples, or random allocation."""
    samples = setting.federation.num_samples
    assert samples is not None  # resolved by Federation
    if setting.scenario.allocation != "svd":
        reason = "clients of unequal rank carry a random direction unequally often"
        raise expected("allocation", "random", f"'svd' with persistent heterogeneity ({reason})")
    if len(set(samples)) > 1:
        raise expected(
            "num_samples",
            list(samples),
            "equal values, or full participation, with persistent heterogeneity",
        )


def _offset(setting: Setting) -> float:
    """Return gain from which a contribution is counted: the base's content is not sent again."""
    return 1.0 if setting.form.space == "base" else 0.0


def _map_moments(setting: Setting) -> tuple[Array, Array, Array, Array]:
    """Return `E[W]`, `E[W^2]`, and the probabilities that x is kept without and with a client."""
    mean, second = multiplier_moments(setting)
    if setting.form.space == "base":
        return mean, second, np.ones_like(mean), np.ones_like(mean)
    return mean, second, (1 - mean) if setting.carries else 0 * mean, 0 * mean


def _full_gain(setting: Setting, g: Array) -> Array:
    share = multiplier_moments(setting)[0]
    offset = _offset(setting)
    return np.asarray(offset + share * (g - offset), dtype=np.float64)


def _full_trajectory(
    setting: Setting, clients: Clients, start: Array, rounds: int
) -> tuple[Array, Array]:
    """Return means and energies under full participation, from moments of one normal gain A."""
    squares = setting.moments.sum_of_squares
    drift = clients.drift_mean * multiplier_moments(setting)[0]
    drift_square = drift**2 + clients.drift_std**2 * squares
    center, variance = _full_gain(setting, clients.gain_mean), clients.gain_std**2 * squares
    mean, energy = np.empty((2, rounds + 1, start.size))
    with np.errstate(over="ignore", invalid="ignore"):
        moments = _normal_moments(center, variance, 2 * rounds)
        for t in range(rounds + 1):
            # A**t x_0 + D (1 + A + ... + A**(t - 1)), and its square
            s = np.arange(max(2 * t - 1, 0))
            pairs = np.minimum(s + 1, 2 * t - 1 - s)
            mean[t] = _times(start, moments[t]) + _times(drift, moments[:t].sum(axis=0))
            energy[t] = _times(start**2, moments[2 * t])
            energy[t] += _times(2 * start * drift, moments[t : 2 * t].sum(axis=0))
            energy[t] += _times(drift_square, pairs @ moments[: s.size])
    return without_nan(mean), without_nan(energy)


def _normal_moments(center: Array, variance: Array, order: int) -> Array:
    """Return `E[A^j]` for j = 0..order, A normal: `M_{j+1} = mu M_j + j s^2 M_{j-1}`."""
    moments = np.ones((order + 1, center.size))
    for j in range(order):
        moments[j + 1] = _times(center, moments[j])
        if j:
            moments[j + 1] += _times(j * variance, moments[j - 1])
    return moments


def _times(factor: Array, value: Array) -> Array:
    """Return a product in which zero times infinity is zero."""
    return np.where(factor == 0, 0.0, factor * value)


def _coefficients(setting: Setting, clients: Clients, i: int, rounds: int) -> Array:
    """Return direction i as a function of its start, shape (5, rounds + 1).

    `E[x_t] = p + q x_0` and `E[x_t^2] = u + v x_0 + w x_0**2`, in the order p, q, u, v, w. Given
    the gains they follow an affine map, together with x times the mean drift.
    """
    nu, c, tau = clients.gain_std[i], clients.drift_mean[i], clients.drift_std[i]
    number = int(setting.federation.members[:, i].sum())
    own, spread, weight = _gain_nodes(number, rounds)
    share, second, kept, kept_pair = (values[i] for values in _map_moments(setting))
    squares = setting.moments.sum_of_squares[i]
    shifted = clients.gain_mean[i] + nu / np.sqrt(number) * own - _offset(setting)
    # E[w_k^2] - E[w_k w_l] of two contributors
    apart = (squares - (second - squares) / max(number - 1, 1)) / number
    rate = kept + 2 * kept_pair * share * shifted + second * shifted**2 + apart * nu**2 * spread
    gain, pull = kept + share * shifted, 2 * (kept_pair * share + shifted * second)
    # rows: the part without x_0, with x_0, with its square; all times the weight of the node,
    # because the powers of a far node overflow and their share of the mean does not
    drift = np.outer([share * c, 0.0], weight)
    tied_drift = np.outer([share * (c**2 + tau**2 / number), 0.0], weight)
    noise = np.outer([second * c**2 + squares * tau**2, 0.0, 0.0], weight)
    x, tied = (np.outer([0.0, start], weight) for start in (1.0, c))
    energy = np.outer([0.0, 0.0, 1.0], weight)
    result = np.empty((5, rounds + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(rounds + 1):
            result[:2, t], result[2:, t] = x.sum(axis=1), energy.sum(axis=1)
            energy = rate * energy + noise
            energy[:2] += pull * tied
            x, tied = gain * x + drift, gain * tied + tied_drift
    return result


def _gain_nodes(number: int, rounds: int) -> tuple[Array, Array, Array]:
    """Return nodes for the scaled mean and sum of squares of `number` normal gains, and weights."""
    own, weight = normal_rule(rounds + 1)
    if number == 1:
        return own, np.zeros_like(own), weight
    half, chance = gamma_rule(rounds // 2 + 1, (number - 1) / 2)
    mean, spread = np.meshgrid(own, 2 * half, indexing="ij")
    joint = np.outer(weight, chance)
    keep = joint > 0  # a tail that underflows is negligible within the limit on rounds
    return mean[keep], spread[keep], joint[keep]
