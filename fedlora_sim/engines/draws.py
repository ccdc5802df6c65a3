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
from fedlora_sim.randomness import BLOCK, normals, stream, uniforms
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


def _of_round(
    scenario: Scenario,
    seeds: Sequence[int],
    purpose: str,
    t: int,
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Return standard normal draws of round t for each place of the cohort, (S, m, *shape)."""
    whole = places(scenario.federation), *shape
    blocks = -(-prod(whole) // BLOCK)
    drawn = normals(seeds, purpose, prod(whole), device, start=t * blocks)
    return drawn.reshape(-1, *whole).to(device)


def subspace_mixing(
    scenario: Scenario, seeds: Sequence[int], t: int, carried: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `I + eps E` for B (from the right) and A (from the left) of each client, (S, m, r, r).

    E has variance 1 / r_k among the r_k directions that the client carries, and is zero elsewhere.

    Args:
        scenario: `subspace_noise` is eps.
        seeds: one run per seed.
        t: the round, from 0.
        carried: which directions each client carries, boolean (S, m, r).
    """
    r = carried.shape[-1]
    drawn = _of_round(scenario, seeds, "subspace_noise", t, (2, r, r), carried.device)
    size = scenario.subspace_noise / carried.sum(-1).clamp_min(1).double().sqrt()
    both = carried.unsqueeze(-1) & carried.unsqueeze(-2)
    noise = drawn * (both * size[..., None, None]).unsqueeze(2)
    on_b, on_a = (torch.eye(r, dtype=noise.dtype, device=noise.device) + noise).unbind(2)
    return on_b, on_a


# Rotations of the basis. A random orthonormal basis is paired into planes, and each plane is
# rotated by the angle, so that every vector of an even-dimensional space turns by exactly the
# angle; in an odd-dimensional space one random axis is fixed. With J the quarter turn of all
# planes, a rotation is `cos(angle) I + sin(angle) J` off the axis.
#
# J is uniform among the quarter turns: given its values on some planes, it is uniform among those
# of the other dimensions. For a unit vector x orthogonal to the known planes, `J x` is therefore
# uniform on the unit sphere orthogonal to them and to x. The rotation of r columns takes r such
# draws: Gram-Schmidt of x_1, g_1, x_2, g_2, ... with Gaussian g_i gives the planes (x_i', J x_i')
# in which all columns lie, so that no d x d matrix is needed. Our derivation.


def basis_draws(
    scenario: Scenario, seeds: Sequence[int], t: int, device: torch.device = CPU
) -> tuple[Tensor, Tensor]:
    """Return the Gaussian vectors of the rotations in round t of each place of the cohort.

    Returns:
        (S, m, d_out, r_max + 1) and (S, m, d_in, r_max + 1): the last vector is the axis.
    """
    columns = scenario.federation.r_max + 1
    out, inner = (
        _of_round(scenario, seeds, f"basis_drift of {side}", t, (columns, d), device).mT
        for side, d in (("outputs", scenario.d_out), ("inputs", scenario.d_in))
    )
    return out, inner


def turned(factor: Tensor, span: Tensor, gaussian: Tensor, angle: float) -> Tensor:
    """Return factors rotated by the angle.

    Args:
        factor: columns in the span, (..., d, n).
        span: columns, (..., d, r); columns of zeros take no draw.
        gaussian: independent standard normal vectors, (..., d, r + 1), the last one for the axis.
        angle: the angle, in radians.

    Returns:
        Shape of `factor`.
    """
    d, odd = span.shape[-2], span.shape[-2] % 2
    pairs = min(span.shape[-1], d // 2)
    if pairs == 0:
        return factor
    norm = span.norm(dim=-2, keepdim=True)
    order = (norm == 0).to(torch.int8).argsort(dim=-1, stable=True)
    unit = (span / torch.where(norm > 0, norm, 1.0)).gather(-1, order.expand_as(span))
    both = torch.stack([unit[..., :pairs], gaussian[..., :pairs]], dim=-1).flatten(-2)
    q, triangle = torch.linalg.qr(torch.cat([gaussian[..., -1:], both], -1) if odd else both)
    sign = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    planes = (q * sign.unsqueeze(-2))[..., odd:]
    first, second = planes[..., 0::2], planes[..., 1::2]
    on_first, on_second = first.mT @ factor, second.mT @ factor
    cosine, sine = np.cos(angle) - 1, np.sin(angle)
    moved = first @ (cosine * on_first - sine * on_second)
    return factor + moved + second @ (cosine * on_second + sine * on_first)


def target_rotation(
    scenario: Scenario, seed: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rotations of client k's target by the target angle, once per run.

    In the law of `turned`, as orthogonal matrices (d_out, d_out) and (d_in, d_in).
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
