"""Random draws of a run and rank allocation, shared by both fidelities.

All draws follow from the seed, so that rules and fidelities can be compared in pairs: two rules on
one seed get the same cohorts, gains and drifts. One exception: for fresh noise in product space,
the spectral fidelity draws the cohort's aggregate instead of one value per client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedlora_sim.engines.cohort_draws import places
from fedlora_sim.randomness import normals, stream, uniforms
from fedlora_sim.scenario import Scenario

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class ClientDraws:
    """Gains `a_{k,i}` and drifts `b_{k,i}` of runs, before the learning-rate schedule.

    Fresh ones are drawn for the places of a cohort, persistent ones for all clients.

    Args:
        gain: (S, T, m, r_max) or (S, 1, K, r_max), and of size 1 wherever all values are equal.
        drift: the same, in units of the amplitude.
        scales: learning rate of each round relative to the first one, T numbers.
        are_persistent: whether the third dimension has a place for each client.
    """

    gain: Tensor
    drift: Tensor
    scales: Sequence[float]
    are_persistent: bool

    def round(self, t: int, clients: Tensor) -> tuple[Tensor, Tensor]:
        """Return gains and drifts in round t, each broadcastable to (S, m, r_max).

        A schedule s_t scales what training changes: gains are `1 + s_t (a - 1)`, drifts `s_t b`.

        Args:
            t: the round, from 0.
            clients: client in each place of the cohort, (S or 1, m).
        """
        scale = self.scales[t]
        gain, drift = (self._drawn(x, t, clients) for x in (self.gain, self.drift))
        return (gain, drift) if scale == 1 else (1 + scale * (gain - 1), scale * drift)

    def _drawn(self, values: Tensor, t: int, clients: Tensor) -> Tensor:
        now = values[:, t % values.shape[1]]
        if not self.are_persistent or now.shape[1] == 1:
            return now
        runs = torch.arange(len(now), device=now.device).unsqueeze(1)
        return now[runs, clients]


def is_noisy(scenario: Scenario) -> bool:
    """Return True if gains or drifts are random."""
    return scenario.gain_std > 0 or scenario.drift_std > 0


def are_persistent(scenario: Scenario) -> bool:
    """Return True if every client has its own gains and drifts, the same in every round."""
    return scenario.heterogeneity == "persistent" and is_noisy(scenario)


def client_draws(
    scenario: Scenario,
    seeds: Sequence[int],
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
) -> ClientDraws:
    """Return the gains and drifts of one run per seed."""
    persists, r_max = are_persistent(scenario), scenario.federation.r_max
    each = scenario.federation.num_clients if persists else places(scenario.federation)
    shape = (1 if persists else scenario.rounds, each, r_max)

    def draw(purpose: str, mean: ArrayLike, std: float) -> Tensor:
        values = torch.as_tensor(mean, dtype=torch.float64).view(1, 1, 1, -1)
        if std > 0:
            drawn = normals(seeds, purpose, prod(shape), device)
            values = values.to(drawn.device) + std * drawn.reshape(-1, *shape)
        return values.to(dtype).to(device)

    return ClientDraws(
        draw("gains", scenario.gain_mean, scenario.gain_std),
        draw("drifts", scenario.drift_means, scenario.drift_std),
        scenario.training_scales.tolist(),
        persists,
    )


def client_targets(scenario: Scenario, seed: int) -> NDArray[np.float64]:
    """Return the amplitudes `m_{k,i}` that clients fit under the quadratic loss, (K, r_max).

    `m_i (1 + target_std z_k)` with one standard normal z_k per client and run; signed.
    """
    spread = np.ones(len(scenario.ranks))
    if scenario.target_std > 0:
        spread += scenario.target_std * normals([seed], "targets", len(spread)).numpy()[0]
    return spread[:, None] * scenario.target_amplitudes


def allocation_scores(
    scenario: Scenario, seeds: Sequence[int], device: torch.device = CPU
) -> Tensor:
    """Return uniform scores of each place of the cohort for random allocation, (S, T, m, r_max)."""
    shape = (scenario.rounds, places(scenario.federation), scenario.federation.r_max)
    return uniforms(seeds, "allocation", prod(shape), device).reshape(-1, *shape).to(device)


def initial_bases(scenario: Scenario, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return Haar-distributed U and V of the initial update of one run per seed.

    Shapes (S, d_out, r_max) and (S, d_in, r_max), float64, on the CPU.
    """
    sides = (("left basis", scenario.d_out), ("right basis", scenario.d_in))
    r_max = scenario.federation.r_max
    u, v = (
        _haar_of(normals(seeds, purpose, d * r_max).reshape(-1, d, r_max)) for purpose, d in sides
    )
    return u, v


def initial_basis(scenario: Scenario, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Haar-distributed U (d_out, r_max) and V (d_in, r_max) of the initial update."""
    u, v = initial_bases(scenario, [seed])
    return u[0].numpy(), v[0].numpy()


def _haar_of(gaussian: Tensor) -> Tensor:
    """Return orthonormal columns from the Haar measure, from standard normal matrices.

    LAPACK chooses the signs of Q by its own convention, which is not uniform. Multiplying by the
    signs of R's diagonal makes the factorization unique and Q Haar-distributed.

    Reference: Mezzadri, How to generate random matrices from the classical compact groups, Sec. 5.
    """
    q, r = torch.linalg.qr(gaussian)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def _haar(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """Draw orthonormal columns from the Haar measure."""
    return _haar_of(torch.from_numpy(rng.standard_normal((rows, columns)))).numpy()


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
