"""The random draws of a run, from its seed alone, so that rules and fidelities can be paired.

The fidelities and the reference take their draws from here: two rules run on one seed meet the
same cohorts, gains and drifts, and their difference is the rule's. One exception: fresh noise in
product space is drawn at the spectral fidelity as the aggregate of the cohort's, not per client.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.federation import draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario


@dataclass(frozen=True, eq=False)
class ClientDraws:
    """Gains `a_{k,i}` and drifts `b_{k,i}`.

    Args:
        gain: (T, K, r_max), or (1, K, r_max) where every round is alike.
        drift: same shape, in units of the amplitude.
    """

    gain: NDArray[np.float64]
    drift: NDArray[np.float64]

    def round(self, t: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gain and drift of round t, each (K, r_max)."""
        return self.gain[t % len(self.gain)], self.drift[t % len(self.drift)]


def cohort_counts(scenario: Scenario, seed: int) -> NDArray[np.int64]:
    """How often each client is drawn in each round, (T, K)."""
    return draw_cohorts(scenario.federation, scenario.rounds, stream(seed, "cohorts"))


def client_draws(scenario: Scenario, seed: int) -> ClientDraws:
    """Gains and drifts of every client, direction and round."""
    noisy = scenario.gain_std > 0 or scenario.drift_std > 0
    rounds = scenario.rounds if noisy and scenario.heterogeneity == "fresh" else 1
    shape = (rounds, len(scenario.ranks), max(scenario.ranks))

    def draw(name: str, mean: float, std: float) -> NDArray[np.float64]:
        if std == 0:
            return np.full(shape, mean)
        return mean + std * stream(seed, name).standard_normal(shape)

    return ClientDraws(
        gain=draw("gains", scenario.gain_mean, scenario.gain_std),
        drift=draw("drifts", scenario.drift_mean, scenario.drift_std),
    )


def client_targets(scenario: Scenario, seed: int) -> NDArray[np.float64]:
    """Amplitudes `m_{k,i}` that clients fit under the quadratic loss, (K, r_max).

    `m_i (1 + target_std z_k)`, one standard normal z_k per client and run; signed.
    """
    spread = np.ones(len(scenario.ranks))
    if scenario.target_std > 0:
        spread += scenario.target_std * stream(seed, "targets").standard_normal(len(spread))
    return spread[:, None] * scenario.target_amplitudes


def allocation_scores(scenario: Scenario, seed: int) -> NDArray[np.float32]:
    """Uniform scores of every round, client and direction for random allocation, (T, K, r_max)."""
    shape = (scenario.rounds, len(scenario.ranks), max(scenario.ranks))
    return stream(seed, "allocation").random(shape, dtype=np.float32)


def initial_basis(scenario: Scenario, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Haar-random orthonormal U (d_out, r_max) and V (d_in, r_max) of the initial global update."""
    rng, r_max = stream(seed, "basis"), max(scenario.ranks)
    return _haar(rng, scenario.d_out, r_max), _haar(rng, scenario.d_in, r_max)


def _haar(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """Draw orthonormal columns from the Haar measure.

    LAPACK fixes the signs of Q by its own convention, which prefers one side; with the signs of R's
    diagonal the factorization is unique and Q is Haar.

    Reference: Mezzadri, How to generate random matrices from the classical compact groups, Sec. 5.
    """
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


def subspace_mixing(
    scenario: Scenario, seed: int, t: int, rank: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`I + eps E` on B (from the right) and on A (from the left) of client k, each (r_k, r_k)."""
    rng = stream(seed, "subspace_noise", t, k)
    noise = rng.standard_normal((2, rank, rank)) * scenario.subspace_noise / np.sqrt(rank)
    return np.eye(rank) + noise[0], np.eye(rank) + noise[1]


def basis_rotation(
    scenario: Scenario, seed: int, t: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations of the output and the input space of client k in round t, by exactly the angle.

    A random orthonormal basis is paired into planes, and each plane is turned by the angle, so
    that *every* vector of an even-dimensional space turns by it (in an odd-dimensional space one
    random axis stays).

    Returns:
        (d_out, d_out) and (d_in, d_in), orthogonal.
    """
    rng = stream(seed, "basis_drift", t, k)
    angle = scenario.basis_drift
    return _turn(rng, scenario.d_out, angle), _turn(rng, scenario.d_in, angle)


def target_rotation(
    scenario: Scenario, seed: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations of client k's target, as `basis_rotation`, by the target angle and once per run."""
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


# Rank allocation: which directions of the global update a client of rank r_k receives.
#
# svd the r_k strongest, as the paper has it (Wu et al., arXiv 2602.13486, Sec. 3) random a fresh
# uniform subset of r_k of the r_max directions, every client and round importance the r_k along
# which the client's own gradient is longest; where nothing is trained, the r_k whose amplitude
# the client is about to change most
#
# All three are "the r_k directions of highest score", with scores that fall with the index, that
# are random, or that the client computes.


def carried_directions(ranks: Tensor, scores: Tensor) -> Tensor:
    """Mark the `ranks` directions of highest score; of equal scores the lower index.

    Args:
        ranks: whole numbers, (...).
        scores: (..., r_max).

    Returns:
        Boolean (..., r_max), with `ranks` entries true along the last dimension.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, _index_like(order))
    return place < ranks.unsqueeze(-1)


def leading_directions(ranks: Tensor, r_max: int) -> Tensor:
    """Mark the first `ranks` of r_max directions: SVD allocation. Boolean (..., r_max)."""
    return ranks.unsqueeze(-1) > torch.arange(r_max, device=ranks.device)


def _index_like(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1], device=order.device).expand_as(order)
