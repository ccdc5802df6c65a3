"""HetLoRA's energies: weights are norms of updates, so all directions move together.

`x_i' = (sum_{k: r_k > i} w_k)**2 (g_i x_i + c_i)`, `w_k = ||y_k|| / sum_l ||y_l||`, y_k the first
r_k of all `g x + c`. As the directions of long clients collapse, all norms become those of the
shared directions and the weights uniform: that limit gives the rate. Our derivation; the rule is
that of Cho et al., arXiv 2401.06432, Sec. 3.2.
"""

from __future__ import annotations

import numpy as np

from analysis.closed_form.round_map import Clients, RoundMap
from analysis.closed_form.setting import Setting
from analysis.closed_form.targets import need_full
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected


def hetlora_trajectory(
    setting: Setting, clients: Clients, start: Array, rounds: int
) -> tuple[Array, Array]:
    """Amplitudes and energies under full participation, each (rounds + 1, r_max); no randomness.

    Raises:
        ValueError: without full participation.
    """
    need_full(setting, "hetlora's weights depend on the state")
    federation = setting.federation
    mean = np.empty((rounds + 1, start.size))
    mean[0] = start
    with np.errstate(over="ignore"):
        for t in range(rounds):
            reached = clients.gain_mean * mean[t] + clients.drift_mean
            weights = norm_weights(np.where(federation.members, np.abs(reached), 0.0))
            mean[t + 1] = federation.carried_shares(weights) ** 2 * reached
        return mean, mean**2


def norm_weights(returned: Array) -> Array:
    """Weights (K,) of clients by the norm of what they return, (K, r_max); equal if all is zero."""
    scale = returned.max() or 1.0  # squares of what is very large or small are not
    # beside what left the range of floating point all else is nothing
    relative = returned / scale if np.isfinite(scale) else np.isinf(returned).astype(np.float64)
    norms = np.sqrt((relative**2).sum(axis=1))
    total = norms.sum()
    return norms / total if total > 0 else np.full(norms.size, 1 / norms.size)


def hetlora_floor(step: RoundMap, clients: Clients) -> Array:
    """0 without drift where the limiting rate suppresses, `inf` where it does not.

    Raises:
        ValueError: with drift, which keeps the federation from the limit of uniform weights.
    """
    if clients.drift_mean.any():
        reason = "drift keeps hetlora's weights from their uniform limit: no closed form"
        value = clients.drift_mean.tolist()
        raise expected("drift_mean", value, f"0 for rule='hetlora' ({reason})")
    return step.floor()
