"""Metrics of a global update: energies, energy ratio, effective rank, direction preservation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedlora_sim.factors import LoRAFactors


def energy_ratio(energy: ArrayLike, r: int) -> NDArray[np.float64]:
    """Share of the energy in the first r directions, `rho_r = sum_{i<=r} E_i / sum_i E_i`.

    Args:
        energy: energies `sigma_i**2`, shape (..., direction), non-negative.
        r: number of leading directions; rank collapse means `rho_{l_1} -> 1`.

    Returns:
        Shape (...), in [0, 1]; NaN where the update is zero and has no direction at all.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    e = np.asarray(energy, dtype=np.float64)
    total = e.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        share = np.where(total > 0, e[..., :r].sum(axis=-1), np.nan) / total
    # Two sums of one row may differ by a rounding; a share is never above one.
    return np.asarray(np.minimum(share, 1.0))


def effective_rank(energy: ArrayLike) -> NDArray[np.float64]:
    """Effective rank `exp(-sum_i p_i ln p_i)` with `p_i = sigma_i / sum sigma`.

    Args:
        energy: energies `sigma_i**2`, shape (..., direction), non-negative.

    Returns:
        Shape (...), between 1 and the number of directions; NaN where the update is zero.

    Reference:
        Roy and Vetterli 2007, "The effective rank", EUSIPCO, Eq. 3.
    """
    sigma = np.sqrt(np.asarray(energy, dtype=np.float64))
    total = sigma.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = sigma / np.where(total > 0, total, np.nan)
        entropy = -np.where(p > 0, p * np.log(p), p).sum(axis=-1)
    return np.asarray(np.exp(entropy))


def projected_amplitudes(u: Tensor, vh: Tensor, update: LoRAFactors) -> Tensor:
    """Amplitudes of an update on given directions, `s_i = u_i^T dW v_i`, without forming dW.

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


def direction_preservation(u: Tensor, vh: Tensor, update: LoRAFactors) -> Tensor:
    """Share of an update's energy that stays on given directions, `sum_i s_i**2 / ||dW||_F**2`.

    Args:
        u: left directions, (..., d_out, q), orthonormal columns.
        vh: right directions, (..., q, d_in), orthonormal rows.
        update: a client's update.

    Returns:
        Shape (...), in [0, 1]: 1 means that the paper's premise of direction-preserving local
        training (App. A) holds exactly; NaN for a zero update.
    """
    # A share does not depend on scale; brought to one, tiny factors do not underflow when squared.
    lora_b, lora_a = (
        x / x.abs().amax((-2, -1), keepdim=True) for x in (update.lora_B, update.lora_A)
    )
    norm = ((lora_b.mT @ lora_b) * (lora_a @ lora_a.mT)).sum((-2, -1))
    amplitudes = projected_amplitudes(u, vh, LoRAFactors(lora_a, lora_b))
    return torch.where(norm > 0, amplitudes.square().sum(-1) / norm, torch.nan)
