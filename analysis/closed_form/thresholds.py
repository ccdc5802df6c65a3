"""The local time at which training just makes up for what averaging dilutes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.inputs import Ranks, Samples
from analysis.closed_form.setting import Setting, setting_of
from analysis.closed_form.targets import (
    client_targets,
    full_weights,
    missing_share,
    need_equal,
    need_full,
    shared_targets,
)
from analysis.cohorts.law import Array

_HALVINGS = 200


def collapse_threshold(
    rule: str,
    ranks: Ranks,
    target: ArrayLike,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Local time T* below which a direction collapses: `omega G = 1`, `T* = ln(1/omega) / (2 M)`.

    Random cohorts: for a typical run that survives, `E[log omega | omega > 0] + 2 M T = 0`. Unequal
    targets: `sum_{C} w_k exp(2 M_k T) = 1`; in factor space `sum_{C} w_k exp(M_k T) = 1`. hetlora:
    uniform weights, its limit when the directions above have collapsed.

    Args:
        rule: any of `RULES`.
        ranks: client ranks.
        target: M, a scalar, (r_max,), or per client (K,) or (K, r_max).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor.

    Returns:
        Local times, shape (r_max,). 0 where nothing is diluted; also for ffa and flora, which any
        training pulls towards the target, and for fedex, whose base keeps what it has. `inf` where
        no local time helps: no target above 0 (but fedex).

    Raises:
        ValueError: on a bad argument; on unequal targets without full participation, or under
            hetlora.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    targets = client_targets(setting, target)
    equal = shared_targets(setting, targets)
    if setting.form.space == "residual":
        return np.zeros(setting.r_max)
    if equal is None:
        need_equal(setting, target)
        need_full(setting, "targets differ")
    if setting.form.space == "base" or setting.form.name == "ffa":
        pull = equal if equal is not None else (full_weights(setting) * targets).sum(axis=0)
        return np.where(pull > 0, 0.0, np.inf)
    if equal is None:
        return _unequal_threshold(setting, targets)
    dilution = np.zeros(setting.r_max)
    if setting.form.normaliser == "cohort":
        dilution = -setting.form.power * setting.moments.log_mean + 0.0
    never = np.full(setting.r_max, np.inf)
    with np.errstate(over="ignore"):
        return np.divide(dilution, 2 * equal, out=never, where=equal > 0)


def _unequal_threshold(setting: Setting, targets: Array) -> Array:
    """Return the time at which the carriers' growth makes up for the weight that is missing.

    `sum w_k (exp(s M_k T) - 1)` is convex in T and 0 at T = 0; it has to exceed the share of the
    clients that do not carry the direction.
    """
    weights, missing = full_weights(setting), missing_share(setting)
    scale = 2.0 / setting.form.power
    rising = (weights > 0) & (targets > 0)
    longest = np.finfo(np.float64).max
    alone = np.full_like(weights, longest)  # the time at which one client carries it all
    needed = -np.log(np.where(rising, weights, 1.0)) / scale
    low = np.zeros(setting.r_max)
    with np.errstate(over="ignore"):
        np.divide(needed, targets, out=alone, where=rising)
        high = np.minimum(alone, longest).min(axis=0)
        for _ in range(_HALVINGS):
            middle = low + (high - low) / 2
            growth = np.expm1(scale * (targets * middle))
            below = (weights * growth).sum(axis=0) <= missing
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    pull = np.array([math.fsum(column) for column in (weights * targets).T])
    undiluted = (missing == 0) & (pull >= 0)
    never = ~rising.any(axis=0) | (high == longest)
    return np.where(undiluted & rising.any(axis=0), 0.0, np.where(never, np.inf, low))
