"""One round as an affine map of the first two moments of every amplitude.

Client k returns `a_k x + b_k` with independent gains (mean g, deviation nu) and drifts (mean c,
deviation tau); the server forms `x' = sum_k w_k (a_k x + b_k)`. The mean-field recursion of Wu et
al., arXiv 2602.13486, App. B; its exact second moment is our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import per_direction
from analysis.cohorts.law import Array
from analysis.cohorts.moments import WeightMoments, empty_probability, weight_moments
from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import EMPTY_PARTITION, Federation

RULES = ("fedavg", "zero_pad", "raflora")
_NORMALISERS = {"fedavg": "cohort", "zero_pad": "cohort", "raflora": "contributors"}


@dataclass(frozen=True)
class RoundMap:
    """One round as an affine map of `(E[x], E[x^2])`; every array has shape (r_max,).

    `E[x'] = gain E[x] + shift`, `E[x'^2] = rate E[x^2] + cross E[x] + noise`, where
    `x' = sum_k w_k (a_k x + b_k)`; shift and cross have the unit of x, noise its square.
    """

    gain: Array
    shift: Array
    rate: Array
    cross: Array
    noise: Array


def round_map(
    rule: str,
    federation: Federation,
    empty_partition: str,
    gain_mean: ArrayLike,
    gain_std: ArrayLike,
    drift_mean: ArrayLike,
    drift_std: ArrayLike,
) -> RoundMap:
    """The affine map that one round applies to the first two moments of every amplitude.

    Args:
        rule: `fedavg`, `zero_pad` or `raflora`.
        federation: the clients and the cohort law.
        empty_partition: what raFLoRA does without a contributor, `zero`, `carry` or `error`.
        gain_mean: mean g of the client gains a_k, scalar or (r_max,).
        gain_std: their standard deviation nu.
        drift_mean: mean c of the client drifts b_k, in units of x.
        drift_std: their standard deviation tau.

    Returns:
        The map's coefficients.

    Raises:
        ValueError: on a bad argument; on spread under `zero_pad`; on `error` where P0 > 0.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the coefficients: our derivation.
    """
    name = check_choice("rule", rule, RULES)
    policy = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    r_max = federation.r_max
    g = per_direction("gain_mean", gain_mean, r_max)
    c = per_direction("drift_mean", drift_mean, r_max)
    nu = _spread("gain_std", gain_std, name, r_max)
    tau = _spread("drift_std", drift_std, name, r_max)
    moments = _needed_moments(name, policy, federation, random=bool(nu.any() or tau.any()))
    mean, second = moments.mean, moments.second
    if name == "zero_pad":
        # both factors are diluted: the product's amplitude is multiplied by W^2
        mean, second = moments.second, moments.fourth
    spread = nu**2 * moments.sum_of_squares
    gain, rate = g * mean, g**2 * second + spread
    if name == "raflora" and policy == "carry":
        # P0 + g (1 - P0), written so that g = 1 gives exactly 1
        gain, rate = 1 + (g - 1) * mean, 1 + (g**2 - 1) * second + spread
    noise = tau**2 * moments.sum_of_squares + c**2 * second
    return RoundMap(gain, c * mean, rate, 2 * g * c * second, noise)


def _spread(argument: str, value: ArrayLike, name: str, r_max: int) -> Array:
    """A standard deviation per direction; zero for `zero_pad`."""
    array = per_direction(argument, value, r_max, minimum=0.0)
    if name == "zero_pad" and array.any():
        reason = "the factors hold square roots of client amplitudes, so there is no closed form"
        raise expected(argument, value, f"0 for rule='zero_pad' ({reason})")
    return array


def _needed_moments(
    name: str, policy: str, federation: Federation, *, random: bool
) -> WeightMoments:
    """The rule's weight moments, refusing `error` where a partition can be empty."""
    if name != "raflora":
        return weight_moments(_NORMALISERS[name], federation)
    empty = empty_probability(federation)
    if policy == "error" and empty.max() > 0:
        chance = f"a partition is empty with probability up to {empty.max():.3g}"
        raise expected("empty_partition", policy, f"'zero' or 'carry' ({chance})")
    if random:
        return weight_moments(_NORMALISERS[name], federation)
    # sum w is 0 or 1 and E[sum w^2] will meet zero variances only: nothing to enumerate or sample
    kept, nothing = 1.0 - empty, np.zeros_like(empty)
    ones = np.ones_like(empty)
    return WeightMoments(kept, kept, kept, nothing, nothing, nothing, ones, empty)
