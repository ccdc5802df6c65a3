"""Random draws of a run and rank allocation, shared by both fidelities.

All draws follow from the seed, so that rules and fidelities can be compared in pairs: two rules on
one seed get the same cohorts, gains and drifts. One exception: for fresh noise in product space,
the spectral fidelity draws the cohort's aggregate instead of one value per client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.federation import draw_cohorts, smallest_keys
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario


@dataclass(frozen=True, eq=False)
class ClientDraws:
    """Gains `a_{k,i}` and drifts `b_{k,i}` of a run, including the schedule of the drift law.

    Args:
        gain: (T, K, r_max), or (1, K, r_max) if all rounds are equal.
        drift: same shape, in units of the amplitude.
    """

    gain: NDArray[np.float64]
    drift: NDArray[np.float64]

    def round(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the gain and drift of round t, each (K, r_max)."""
        return self.gain[t % len(self.gain)], self.drift[t % len(self.drift)]


def cohort_counts(scenario: Scenario, seed: int) -> NDArray[np.int64]:
    """Return how often each client is drawn in each round, (T, K)."""
    return draw_cohorts(scenario.federation, scenario.rounds, stream(seed, "cohorts"))


def cohort_counts_of_runs(scenario: Scenario, seeds: Sequence[int]) -> NDArray[np.integer[Any]]:
    """Return `cohort_counts` of several seeds, (S, T, K), with one selection for all."""
    federation = scenario.federation
    if federation.sampling != "without_replacement":
        return np.stack([cohort_counts(scenario, seed) for seed in seeds])
    assert federation.cohort_size is not None  # resolved by the federation
    shape = (scenario.rounds, federation.num_clients)
    keys = np.stack([stream(seed, "cohorts").random(shape) for seed in seeds])
    return smallest_keys(keys, federation.cohort_size).view(np.int8)


def is_noisy(scenario: Scenario) -> bool:
    """Return True if gains or drifts are random."""
    return scenario.gain_std > 0 or scenario.drift_std > 0


def are_persistent(scenario: Scenario) -> bool:
    """Return True if every client has its own gains and drifts, the same in every round."""
    return scenario.heterogeneity == "persistent" and is_noisy(scenario)


def client_draws(scenario: Scenario, seed: int) -> ClientDraws:
    """Return the gains and drifts of every client, direction and round.

    A schedule s_t scales what training changes: gains are `1 + s_t (a - 1)`, drifts `s_t b`.
    """
    rounds = scenario.rounds if is_noisy(scenario) and not are_persistent(scenario) else 1
    shape = (rounds, len(scenario.ranks), max(scenario.ranks))

    def draw(name: str, mean: float | NDArray[np.float64], std: float) -> NDArray[np.float64]:
        if std == 0:
            return np.broadcast_to(mean, shape).astype(np.float64)
        return mean + std * stream(seed, name).standard_normal(shape)

    gain = draw("gains", scenario.gain_mean, scenario.gain_std)
    drift = draw("drifts", scenario.drift_means, scenario.drift_std)
    if scenario.learning_rate_schedule != "constant":
        scale = scenario.training_scales[:, None, None]
        gain, drift = 1 + scale * (gain - 1), scale * drift
    return ClientDraws(gain, drift)


def client_targets(scenario: Scenario, seed: int) -> NDArray[np.float64]:
    """Return the amplitudes `m_{k,i}` that clients fit under the quadratic loss, (K, r_max).

    `m_i (1 + target_std z_k)` with one standard normal z_k per client and run; signed.
    """
    spread = np.ones(len(scenario.ranks))
    if scenario.target_std > 0:
        spread += scenario.target_std * stream(seed, "targets").standard_normal(len(spread))
    return spread[:, None] * scenario.target_amplitudes


def allocation_scores(scenario: Scenario, seed: int) -> NDArray[np.float32]:
    """Return uniform scores for random allocation, (T, K, r_max)."""
    shape = (scenario.rounds, len(scenario.ranks), max(scenario.ranks))
    return stream(seed, "allocation").random(shape, dtype=np.float32)


def initial_basis(scenario: Scenario, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Haar-distributed U (d_out, r_max) and V (d_in, r_max) of the initial update."""
    rng, r_max = stream(seed, "basis"), max(scenario.ranks)
    return _haar(rng, scenario.d_out, r_max), _haar(rng, scenario.d_in, r_max)


def _haar(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """Draw orthonormal columns from the Haar measure.

    LAPACK chooses the signs of Q by its own convention, which is not uniform. Multiplying by the
    signs of R's diagonal makes the factorization unique and Q Haar-distributed.

    Reference: Mezzadri, How to generate random matrices from the classical compact groups, Sec. 5.
    """
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


def subspace_mixing(
    scenario: Scenario, seed: int, t: int, rank: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `I + eps E` for B (from the right) and A (from the left) of client k, (r_k, r_k)."""
    rng = stream(seed, "subspace_noise", t, k)
    noise = rng.standard_normal((2, rank, rank)) * scenario.subspace_noise / np.sqrt(rank)
    return np.eye(rank) + noise[0], np.eye(rank) + noise[1]


def basis_rotation(
    scenario: Scenario, seed: int, t: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return client k's rotations of the output and the input space in round t.

    A random orthonormal basis is paired into planes and each plane is rotated by the angle, so that
    *every* vector of an even-dimensional space is rotated by exactly the angle. In an
    odd-dimensional space one random axis is fixed.

    Returns:
        (d_out, d_out) and (d_in, d_in), orthogonal.
    """
    rng = stream(seed, "basis_drift", t, k)
    angle = scenario.basis_drift
    return _turn(rng, scenario.d_out, angle), _turn(rng, scenario.d_in, angle)


def target_rotation(
    scenario: Scenario, seed: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rotations of client k's target by the target angle, once per run.

    See `basis_rotation`.
    """
    rng = stream(seed, "target_rotation", k)
    angle = scenario.target_angle
    return _turn(rng, scenario.d_out, angle), _turn(rng, scenario.d_in, angle)


def _turn(rng: np.random.Generator, d: int, angle: float) -> NDArray[np.float64]:
    q = _haar(rng, d, d)
    half = d // 2
    first, second = q[:, :half], q[:, half : 2 * half]
    plane = second @ first.T - first @ second.T
    kept = q[:, : 2 * half] @ q[:, : 2 * half].T
    return np.eye(d) + (np.cos(angle) - 1) * kept + np.sin(angle) * plane


# Rank allocation: the directions of the global update that a client of rank r_k receives.
#
# - svd: the r_k strongest, as in the paper (Wu et al., arXiv 2602.13486, Sec. 3)
# - random: a fresh uniform subset of r_k of the r_max directions, per client and round
# - importance: the r_k directions with the largest gradient norm of the client; without training,
#   those whose amplitude the client is about to change most
#
# All three select the r_k directions of highest score. The scores decrease with the index, are
# random, or are computed by the client.


def carried_directions(ranks: Tensor, scores: Tensor) -> Tensor:
    """Mark the `ranks` directions of highest score; ties go to the lower index.

    Args:
        ranks: whole numbers, (...).
        scores: (..., r_max).

    Returns:
        Boolean (..., r_max), with `ranks` true entries along the last dimension.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, _index_like(order))
    return place < ranks.unsqueeze(-1)


def leading_directions(ranks: Tensor, r_max: int) -> Tensor:
    """Mark the first `ranks` of r_max directions (SVD allocation), boolean (..., r_max)."""
    return ranks.unsqueeze(-1) > torch.arange(r_max, device=ranks.device)


def _index_like(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1], device=order.device).expand_as(order)
