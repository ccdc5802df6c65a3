"""Training itself, as a flow: local gradient descent restores what averaging dilutes.

Clients follow `flow_map` towards their targets for local time T, and a round is
`x' = omega f(x)`, omega = W (fedavg), W**2 (zero_pad) or 1 (raflora, rbla). In `y = 1/x` it is
affine: `y' = (y/G + (G - 1)/(M G)) / omega`. So with equal targets the mean of 1/x over cohorts is
known for every t, given that somebody carried the direction in every round; the functions return
the harmonic-mean amplitude `1/E[1/x]`. Clients with targets of their own need full participation.
ffa trains B alone, with A of unit length: `f(x) = M + (x - M) exp(-T)`, linear, and the functions
return the mean. All of this is our derivation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.flow_rounds import (
    Step,
    hetlora_path,
    hetlora_rest,
    path,
    ratio,
    reciprocal_step,
    rest,
    slope,
)
from analysis.closed_form.inputs import Ranks, Samples, per_direction
from analysis.closed_form.setting import Setting, setting_of
from analysis.closed_form.targets import (
    client_targets,
    full_weights,
    need_equal,
    need_full,
    shared_targets,
)
from analysis.cohorts.law import Array
from fedlora_sim.errors import MOST_ROUNDS, check_count, check_finite, expected


def flow_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    target: ArrayLike,
    local_time: float,
    initial_amplitude: ArrayLike,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Amplitude of every direction after every round of training, exact for every t.

    Random cohorts: `1/E[1/x_t]` given a contributor in every round (with `carry`: over all runs);
    for ffa the mean `E[x_t]`. hetlora: the joint recursion of all directions.

    Args:
        rule: any of `RULES` but flora and fedex.
        ranks: client ranks.
        rounds: number of rounds T, at least 1.
        target: M, a scalar, (r_max,), or per client (K,) or (K, r_max).
        local_time: total step length of a round's local training, at least 0.
        initial_amplitude: amplitudes x_0, not negative, scalar or (r_max,).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first.

    Raises:
        ValueError: on a bad argument; on flora and fedex, whose clients start from other factors;
            on unequal targets, or hetlora, without full participation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    count = check_count("rounds", rounds, MOST_ROUNDS)
    time = check_finite("local_time", local_time, minimum=0.0)
    start = per_direction("initial_amplitude", initial_amplitude, setting.r_max, minimum=0.0)
    _refuse_other_factors(setting)
    targets = client_targets(setting, target)
    if setting.form.norm_weighted:
        need_full(setting, "hetlora's weights depend on the state")
        return hetlora_path(setting, targets, time, start, count)
    equal = shared_targets(setting, targets)
    if setting.form.name == "ffa":
        return _ffa_step(setting, targets, time).path(start, count)
    if equal is not None:
        reciprocals = reciprocal_step(setting, equal, time)
        some = start > 0
        with np.errstate(over="ignore"):
            first = np.minimum(1 / np.where(some, start, 1.0), np.finfo(np.float64).max)
            return np.where(some, 1 / reciprocals.path(first, count), 0.0)
    need_full(setting, "targets differ")
    return path(setting, targets, time, start, count)


def flow_floor(
    rule: str,
    ranks: Ranks,
    target: ArrayLike,
    local_time: float,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Amplitude at which training holds a direction: `M (omega G - 1) / (G - 1)`, or 0.

    0 where `omega G <= 1`; for random cohorts omega is `1/E[1/omega]` given a contributor, so the
    floor is that of `1/E[1/x]`, which vanishes before a typical run collapses. ffa:
    `W M (1 - e) / (1 - W e)`, `e = exp(-T)`. flora: M, which the base reaches. hetlora: where its
    recursion settles when it starts from the targets.

    Args:
        rule: any of `RULES` but fedex.
        ranks: client ranks.
        target: M, a scalar, (r_max,), or per client (K,) or (K, r_max).
        local_time: total step length of a round's local training; 0 stands for the limit.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor.

    Returns:
        Amplitudes, shape (r_max,).

    Raises:
        ValueError: on a bad argument; on fedex, whose floor depends on the path; on unequal
            targets, or hetlora, without full participation; on flora with unequal targets; on
            hetlora so close to the threshold that its recursion does not settle.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    time = check_finite("local_time", local_time, minimum=0.0)
    targets = client_targets(setting, target)
    equal = shared_targets(setting, targets)
    if setting.form.space == "base" and equal is not None:
        return equal
    _refuse_other_factors(setting)
    if setting.form.norm_weighted:
        need_full(setting, "hetlora's weights depend on the state")
        return hetlora_rest(setting, targets, time)
    if setting.form.name == "ffa":
        return _ffa_step(setting, targets, time).floor()
    if equal is None:
        need_full(setting, "targets differ")
        return rest(setting, targets, time)
    step = reciprocal_step(setting, equal, time)
    # training that changes nothing holds every amplitude: the limit of short training is M
    still = (step.margin == 0) & (step.shift == 0)
    held = np.where(still, np.maximum(equal, 0.0), 0.0)
    with np.errstate(over="ignore"):
        moves = (step.margin > 0) & (step.shift > 0)
        return np.divide(step.margin, step.shift, out=held, where=moves)


def flow_rate(
    rule: str,
    ranks: Ranks,
    target: ArrayLike,
    local_time: float,
    *,
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Factor per round by which an amplitude nears its floor: `omega G` below, `1/(omega G)` above.

    1 at the critical point, where the approach is algebraic, 1/t. omega as in `flow_floor`; hetlora
    as zero_pad with uniform weights, its limit when the directions above have collapsed. Unequal
    targets: the slope of the round's map at its fixed point. ffa: `W exp(-T)`.

    Args:
        rule: any of `RULES` but flora and fedex.
        ranks: client ranks.
        target: M, a scalar, (r_max,), or per client (K,) or (K, r_max).
        local_time: total step length of a round's local training, at least 0.
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor.

    Returns:
        Factors in [0, 1], shape (r_max,).

    Raises:
        ValueError: on a bad argument; on flora and fedex; on unequal targets without full
            participation, or under hetlora.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    time = check_finite("local_time", local_time, minimum=0.0)
    _refuse_other_factors(setting)
    targets = client_targets(setting, target)
    equal = shared_targets(setting, targets)
    if setting.form.name == "ffa":
        return _ffa_step(setting, targets, time).slope
    if equal is None:
        need_equal(setting, target)
        need_full(setting, "targets differ")
        growth = ratio(setting, targets, time, np.zeros(setting.r_max))
        floor = rest(setting, targets, time)
        return np.where(floor > 0, slope(setting, targets, time, floor), growth)
    step = reciprocal_step(setting, equal, time)
    inverse = np.divide(1.0, step.slope, out=np.ones_like(equal), where=step.slope > 1)
    return np.where(step.slope > 1, inverse, step.slope)


def _ffa_step(setting: Setting, targets: Array, time: float) -> Step:
    """`E[x'] = W (e E[x] + (1 - e) M)`, with `e = exp(-T)`: B alone is trained."""
    equal = shared_targets(setting, targets)
    if equal is None:
        need_full(setting, "targets differ")
        pull, share = (full_weights(setting) * targets).sum(axis=0), setting.moments.mean
    else:
        share = setting.moments.mean
        pull = share * equal
    moved = -np.expm1(-time)
    return Step(share * np.exp(-time), moved * pull, (1 - share) + share * moved, limit=pull)


def _refuse_other_factors(setting: Setting) -> None:
    if setting.form.space in ("base", "residual"):
        reasons = {
            "base": "its clients start every round from fresh factors, which are not balanced",
            "residual": "its adapters chase what the base does not hold yet, path by path",
        }
        reason = reasons[setting.form.space]
        raise expected(
            "rule", setting.form.name, f"a rule whose clients train all there is ({reason})"
        )
