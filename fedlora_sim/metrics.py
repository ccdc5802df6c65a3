"""Metrics of a global update: energies, energy ratio, effective rank, direction preservation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora_sim.errors import check_choice, check_numbers, check_positive_int, expected

if TYPE_CHECKING:  # torch takes seconds to import, and predictions need energies alone
    from torch import Tensor

    from fedlora_sim.lora import LoRAFactors
    from fedlora_sim.lowrank import LowRankProduct


def energy_ratio(energy: ArrayLike, r: int) -> NDArray[np.float64]:
    """Return `rho_r = sum_{i<=r} E_i / sum_i E_i`, the share of energy in the first r directions.

    Args:
        energy: energies `sigma_i**2`, shape (..., direction), non-negative.
        r: number of leading directions; rank collapse means `rho_{l_1} -> 1`.

    Returns:
        Shape (...), in [0, 1]; NaN if the update is zero and has no direction.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    e = _energies(energy)
    check_positive_int("r", r)
    total = _sums(e)
    with np.errstate(invalid="ignore"):
        share = np.where(total > 0, _sums(e[..., :r]), np.nan) / total
    # Two sums of one row may differ by a rounding error; a share is never above one.
    return np.asarray(np.minimum(share, 1.0))


def effective_rank(energy: ArrayLike) -> NDArray[np.float64]:
    """Return the effective rank `exp(-sum_i p_i ln p_i)` with `p_i = sigma_i / sum sigma`.

    Args:
        energy: energies `sigma_i**2`, shape (..., direction), non-negative.

    Returns:
        Shape (...), between 1 and the number of directions; NaN if the update is zero.

    Reference:
        Roy and Vetterli 2007, "The effective rank", EUSIPCO, Eq. 3.
    """
    e = _energies(energy)
    rows = e.reshape(-1, e.shape[-1])
    negentropy, step = np.empty(len(rows)), max(1, IN_CACHE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        p = np.sqrt(rows[start : start + step])
        total = _sums(p)[:, None]
        p /= np.where(total > 0, total, np.nan)
        logs = np.log(np.maximum(p, np.finfo(np.float64).tiny))
        negentropy[start : start + step] = np.einsum("ij,ij->i", p, logs)
    return np.asarray(np.exp(-negentropy.reshape(e.shape[:-1])))


IN_CACHE = 65_536
"""Numbers that are worked on at a time, so that they stay in the processor's cache."""


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of short rows, (...); NumPy's `sum` takes twice as long."""
    return np.asarray(np.einsum("...i->...", values))


def _energies(energy: ArrayLike) -> NDArray[np.float64]:
    wanted = "energies, an array (..., direction) of numbers"
    found: NDArray[np.float64] = check_numbers("energy", energy, wanted)
    if found.ndim == 0:
        raise expected("energy", energy, wanted)
    return found


def projected_amplitudes(u: Tensor, vh: Tensor, update: LoRAFactors) -> Tensor:
    """Return `s_i = u_i^T dW v_i`, an update's amplitudes on given directions, without forming dW.

    Args:
        u: left directions, (..., d_out, q).
        vh: right directions, (..., q, d_in).
        update: the update to project.

    Returns:
        Shape (..., q), signed, in units of dW.
    """
    left = u.mT @ update.lora_B
    right = update.lora_A @ vh.mT
    return update.scaling * (left * right.mT).sum(-1)


def principal_angles(
    first: LowRankProduct, second: LowRankProduct, r: int, side: str = "left"
) -> Tensor:
    """Return the angles between the leading singular subspaces of two updates, forming neither.

    Args:
        first: a low-rank product, as `Aggregated.product` or `LoRAFactors.product`.
        second: another product of the same shape.
        r: dimension of the subspaces, at most the rank of either.
        side: `left` (output space, U) or `right` (input space, V).

    Returns:
        Shape (..., r), radians, ascending, from 0 to pi/2.

    Reference:
        Bjorck and Golub 1973, "Numerical methods for computing angles between linear subspaces",
        Math. Comp. 27. Cosines lose small angles to rounding, so small angles come from the sines.
    """
    chosen = check_choice("side", side, ("left", "right"))
    return subspace_angles(*(_basis(product, r, chosen) for product in (first, second)))


def subspace_angles(q1: Tensor, q2: Tensor) -> Tensor:
    """Return the principal angles between the spans of orthonormal columns; see `principal_angles`.

    Args:
        q1: (..., d, r).
        q2: (..., d, r).

    Returns:
        Shape (..., r), radians, ascending.
    """
    import torch

    inner = q1.mT @ q2
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(q2 - q1 @ inner).clamp(max=1.0).flip(-1)
    return torch.where(sines < cosines, sines.asin(), cosines.acos())


def _basis(product: LowRankProduct, r: int, side: str) -> Tensor:
    u, _, vh = product.svd(r)
    if u.shape[-1] < r:
        raise expected("r", r, f"at most the {u.shape[-1]} directions of the update")
    return u if side == "left" else vh.mT


def direction_preservation(u: Tensor, vh: Tensor, update: LoRAFactors) -> Tensor:
    """Return `sum_i s_i**2 / ||dW||_F**2`, the share of energy that stays on given directions.

    Args:
        u: left directions, (..., d_out, q), orthonormal columns.
        vh: right directions, (..., q, d_in), orthonormal rows.
        update: a client's update.

    Returns:
        Shape (...), in [0, 1]: 1 means that the paper's premise of direction-preserving local
        training (App. A) holds exactly; NaN for a zero update.
    """
    import torch

    from fedlora_sim.lora import LoRAFactors

    # The share does not depend on scale: normalize, so that tiny factors do not underflow when
    # squared.
    lora_b, lora_a = (
        x / x.abs().amax((-2, -1), keepdim=True) for x in (update.lora_B, update.lora_A)
    )
    norm = ((lora_b.mT @ lora_b) * (lora_a @ lora_a.mT)).sum((-2, -1))
    amplitudes = projected_amplitudes(u, vh, LoRAFactors(lora_a, lora_b))
    return torch.where(norm > 0, amplitudes.square().sum(-1) / norm, torch.nan)
