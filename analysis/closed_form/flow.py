"""Local training as a gradient flow, which restores what averaging dilutes.

Clients follow `flow_map` towards their targets for local time T, and a round is `x' = omega f(x)`,
omega = W (fedavg), W**2 (zero_pad) or 1 (raflora, rbla). In `y = 1/x` it is affine:
`y' = (y/G + (G - 1)/(M G)) / omega`. With equal targets the mean of 1/x over cohorts is therefore
known for every t, given a carrier in every round; the functions return the harmonic-mean amplitude
`1/E[1/x]`. Clients with different targets require full participation. ffa trains B only, with A of
unit length: `f(x) = M + (x - M) exp(-T)`, which is linear, and the functions return the mean. All
of this is our derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.nonlinear_rules import norm_weights
from analysis.closed_form.setting import (
    Setting,
    client_targets,
    full_weights,
    local_map,
    missing_share,
    need_equal,
    need_full,
    reciprocal_map,
    setting_of,
    shared_targets,
)
from analysis.cohorts.law import Array
from fedlora_sim.errors import MOST_ROUNDS, check_count, expected
from fedlora_sim.scenario import Scenario
from fedlora_sim.tolerances import relative

# One round of the flow as an affine map, and its fixed points

_HALVINGS = 200
_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class Step:
    """An affine recursion `y' = slope y + shift` per direction; arrays of shape (r_max,).

    Args:
        slope: factor per round.
        shift: increment per round.
        margin: `1 - slope`, from terms that do not cancel.
        limit: fixed point if slope and shift do not determine it (1 and 0).
    """

    slope: Array
    shift: Array
    margin: Array
    limit: Array | None = None

    def path(self, start: Array, rounds: int) -> Array:
        """Return the values for t = 0..rounds, (rounds + 1, r_max); `inf` on overflow."""
        values = np.empty((rounds + 1, start.size))
        values[0] = start
        with np.errstate(over="ignore"):
            for t in range(rounds):
                values[t + 1] = self.slope * values[t] + self.shift
        return values

    def floor(self) -> Array:
        """Return the fixed point of a contraction."""
        rest = np.zeros_like(self.shift) if self.limit is None else self.limit.copy()
        return np.divide(self.shift, self.margin, out=rest, where=self.margin > 0)


def reciprocal_step(setting: Setting, target: Array, time: float) -> Step:
    """Return the affine recursion of `E[1/x]` given a contributor, for equal targets (r_max,)."""
    decay, pull = reciprocal_map(target, time)
    if setting.form.normalizer == "contributors":
        trained = 1 - setting.empty if setting.carries else np.ones_like(target)
        with np.errstate(over="ignore"):
            margin = trained * -np.expm1(-2 * target * time)
        return Step(1 - trained + trained * decay, trained * pull, margin)
    inverse = _mean_inverse(setting)
    with np.errstate(over="ignore"):
        margin = -np.expm1(np.log(inverse) - 2 * target * time)
        return Step(inverse * decay, inverse * pull, margin)


def _mean_inverse(setting: Setting) -> Array:
    """Return `E[1/omega | omega > 0]`, (r_max,)."""
    if setting.form.power == 1:
        return setting.moments.inverse

    def inverse_square(share: Array) -> Array:
        some = share > 0
        return np.where(some, 1 / np.where(some, share, 1.0) ** 2, 0.0)

    return setting.expect(inverse_square) / (1 - setting.empty)


def ratio(setting: Setting, targets: Array, time: float, amplitude: Array) -> Array:
    """Return `x'/x` under full participation with targets (K, r_max); it decreases with x."""
    decay, pull = reciprocal_map(targets, time)
    weights, power = full_weights(setting), setting.form.power
    # both coefficients may be infinite; clients that do not carry the direction have no effect
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        growth = 1 / (decay + np.where(amplitude > 0, pull * amplitude, 0.0))
        mean = np.where(weights > 0, weights * growth ** (1 / power), 0.0).sum(axis=0)
        return np.asarray(mean**power, dtype=np.float64)


def path(setting: Setting, targets: Array, time: float, start: Array, rounds: int) -> Array:
    """Return the amplitudes for t = 0..rounds under full participation with targets (K, r_max)."""
    values = np.empty((rounds + 1, start.size))
    values[0] = start
    weights, power = full_weights(setting), setting.form.power
    for t in range(rounds):
        trained = local_map(values[t], targets, time)
        values[t + 1] = (weights * trained ** (1 / power)).sum(axis=0) ** power
    return values


def excess(setting: Setting, targets: Array, time: float, amplitude: Array) -> Array:
    """Return `(x'/x)**(1/power) - 1` of `ratio`, without the cancellation of close numbers."""
    decay, pull = reciprocal_map(targets, time)
    weights = full_weights(setting)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        gain = pull * (targets - amplitude) / (decay + pull * amplitude)
        # a client with a target far below 0 returns zero
        gain = np.where(np.isfinite(decay), gain, -1.0)
        if setting.form.power == 2:
            gain = np.where(np.isinf(gain), gain, gain / (np.sqrt(1 + gain) + 1))
        return np.where(weights > 0, weights * gain, 0.0).sum(axis=0) - missing_share(setting)


def rest(setting: Setting, targets: Array, time: float) -> Array:
    """Return the positive fixed point of `path`, 0 if there is none; for zero time its limit."""
    if time == 0:
        mean = (full_weights(setting) * targets).sum(axis=0)
        return np.where(missing_share(setting) == 0, np.maximum(mean, 0.0), 0.0)
    grows = excess(setting, targets, time, np.zeros(setting.r_max)) > 0
    # no amplitude exceeds the largest target
    low = np.zeros(setting.r_max)
    high = np.where(full_weights(setting) > 0, targets, -np.inf).max(axis=0)
    high = np.where(grows, high, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = excess(setting, targets, time, middle) >= 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(grows, (low + high) / 2, 0.0)


def slope(setting: Setting, targets: Array, time: float, amplitude: Array) -> Array:
    """Return the derivative of a round under full participation at amplitudes (r_max,)."""
    decay, pull = reciprocal_map(targets, time)
    power, weights = setting.form.power, full_weights(setting)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # f/x = 1/(e + k x), and x f'/f = e/(e + k x)
        held = decay / (decay + pull * amplitude)
        root = (1 / (decay + pull * amplitude)) ** (1 / power)
    held = np.where(np.isfinite(decay), held, 1.0)
    root = np.where(np.isfinite(root), root, 0.0)
    mean = (weights * root).sum(axis=0)
    result = (weights * root * held).sum(axis=0) * mean ** (power - 1)
    return np.asarray(result, dtype=np.float64)


def hetlora_path(setting: Setting, targets: Array, time: float, start: Array, rounds: int) -> Array:
    """Return the amplitudes of HetLoRA under full participation, weighted by norms of updates."""
    values = np.empty((rounds + 1, start.size))
    values[0] = start
    for t in range(rounds):
        values[t + 1] = _hetlora_round(setting, targets, time, values[t])[0]
    return values


def hetlora_rest(setting: Setting, targets: Array, time: float) -> Array:
    """Return the limit of `hetlora_path` from the targets; 0 if its last weights let x fall."""
    members = setting.federation.members
    x = np.where(members, np.maximum(targets, 0.0), 0.0).max(axis=0)
    enough = 8 * np.finfo(np.float64).eps * x.max()  # rounding errors of one round
    for _ in range(_MOST_ROUNDS):
        new, shares = _hetlora_round(setting, targets, time, x)
        if np.abs(new - x).max() <= enough:
            decay = reciprocal_map(targets, time)[0]
            with np.errstate(divide="ignore"):
                own = shares[:, None] / np.sqrt(decay)
                growth = np.where(members, own, 0.0).sum(axis=0)
            return np.where(growth > 1 - relative("reduction"), new, 0.0)
        x = new
    raise expected(
        "local_time", time, f"another: hetlora does not settle within {_MOST_ROUNDS} rounds there"
    )


def _hetlora_round(setting: Setting, targets: Array, time: float, x: Array) -> tuple[Array, Array]:
    """Return the next amplitudes (r_max,) and the clients' weights (K,)."""
    trained = local_map(x, targets, time) * setting.federation.members
    shares = norm_weights(trained)
    return (shares[:, None] * np.sqrt(trained)).sum(axis=0) ** 2, shares


def flow_trajectory(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the amplitude of each direction after each round of training, exact for every t.

    Random cohorts: `1/E[1/x_t]` given a contributor in every round (with `carry`: over all runs);
    for ffa the mean `E[x_t]`. hetlora: the joint recursion of all directions.

    Args:
        scenario: the federation and its training, `local_loss="quadratic"` at fidelity `spectral`.
        rule: any of `RULES` except flora and fedex.
        **values: the start per direction, targets M per direction, or per client (K,) or
            (K, r_max); see `analysis.closed_form`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first.

    Raises:
        InputError: for a field that the form does not cover; for flora and fedex, whose clients
            start from other factors; for unequal targets, or hetlora, without full participation.
    """
    setting = setting_of("flow_trajectory", scenario, rule, values)
    count = check_count("rounds", scenario.rounds, MOST_ROUNDS)
    time = scenario.local_time
    start = setting.direction("initial_amplitude", minimum=0.0)
    _refuse_other_factors(setting)
    targets = client_targets(setting)
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


def flow_floor(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the amplitude at which training holds a direction: `M (omega G - 1) / (G - 1)`, or 0.

    0 where `omega G <= 1`. For random cohorts omega is `1/E[1/omega]` given a contributor, so the
    floor is that of `1/E[1/x]`, which vanishes before a typical run collapses. ffa:
    `W M (1 - e) / (1 - W e)`, `e = exp(-T)`. flora: M, which the base reaches. hetlora: the limit
    of its recursion from the targets. A local time of 0 means the limit.

    Args:
        scenario: the federation and its training, `local_loss="quadratic"` at fidelity `spectral`.
        rule: any of `RULES` except fedex.
        **values: targets, see `flow_trajectory`.

    Returns:
        Amplitudes, shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for fedex, whose floor depends on the
            path; for unequal targets, or hetlora, without full participation; for flora with
            unequal targets; for hetlora so close to the threshold that its recursion does not
            converge.
    """
    setting = setting_of("flow_floor", scenario, rule, values)
    time = scenario.local_time
    targets = client_targets(setting)
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
    # training without effect holds every amplitude: the limit of short training is M
    still = (step.margin == 0) & (step.shift == 0)
    held = np.where(still, np.maximum(equal, 0.0), 0.0)
    with np.errstate(over="ignore"):
        moves = (step.margin > 0) & (step.shift > 0)
        return np.divide(step.margin, step.shift, out=held, where=moves)


def flow_rate(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the factor per round by which an amplitude approaches its limit.

    `omega G` below the threshold, `1/(omega G)` above, and 1 at the critical point, where the
    approach is algebraic, 1/t. omega as in `flow_floor`; hetlora as zero_pad with uniform weights,
    its limit after the directions above have collapsed. Unequal targets: the slope of the round's
    map at its fixed point. ffa: `W exp(-T)`.

    Args:
        scenario: the federation and its training, `local_loss="quadratic"` at fidelity `spectral`.
        rule: any of `RULES` except flora and fedex.
        **values: targets, see `flow_trajectory`.

    Returns:
        Factors in [0, 1], shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for flora and fedex; for unequal
            targets without full participation, or under hetlora.
    """
    setting = setting_of("flow_rate", scenario, rule, values)
    time = scenario.local_time
    _refuse_other_factors(setting)
    targets = client_targets(setting)
    equal = shared_targets(setting, targets)
    if setting.form.name == "ffa":
        return _ffa_step(setting, targets, time).slope
    if equal is None:
        need_equal(setting)
        need_full(setting, "targets differ")
        growth = ratio(setting, targets, time, np.zeros(setting.r_max))
        floor = rest(setting, targets, time)
        return np.where(floor > 0, slope(setting, targets, time, floor), growth)
    step = reciprocal_step(setting, equal, time)
    inverse = np.divide(1.0, step.slope, out=np.ones_like(equal), where=step.slope > 1)
    return np.where(step.slope > 1, inverse, step.slope)


def _ffa_step(setting: Setting, targets: Array, time: float) -> Step:
    """Return `E[x'] = W (e E[x] + (1 - e) M)`, with `e = exp(-T)`, because only B is trained."""
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


# The local time at which training balances dilution

_THRESHOLD_HALVINGS = 200


def collapse_threshold(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the local time below which a direction collapses, `T* = ln(1/omega) / (2 M)`.

    There `omega G = 1`.

    Random cohorts: for a typical run that survives, `E[log omega | omega > 0] + 2 M T = 0`. Unequal
    targets: `sum_{C} w_k exp(2 M_k T) = 1`; in factor space `sum_{C} w_k exp(M_k T) = 1`. hetlora:
    uniform weights, its limit after the directions above have collapsed.

    Args:
        scenario: the federation and its targets, `local_loss="quadratic"` at fidelity `spectral`;
            its local time has no effect.
        rule: any of `RULES`, or an alias.
        **values: targets, see `flow_trajectory`.

    Returns:
        Local times, shape (r_max,). 0 where nothing is diluted; also for ffa and flora, which any
        training moves towards the target, and for fedex, whose base keeps its value. `inf` where no
        local time is sufficient: no target above 0 (except fedex).

    Raises:
        InputError: for a field that the form does not cover; for unequal targets without full
            participation, or under hetlora.
    """
    setting = setting_of("collapse_threshold", scenario, rule, values)
    targets = client_targets(setting)
    equal = shared_targets(setting, targets)
    if setting.form.space == "residual":
        return np.zeros(setting.r_max)
    if equal is None:
        need_equal(setting)
        need_full(setting, "targets differ")
    if setting.form.space == "base" or setting.form.name == "ffa":
        pull = equal if equal is not None else (full_weights(setting) * targets).sum(axis=0)
        return np.where(pull > 0, 0.0, np.inf)
    if equal is None:
        return _unequal_threshold(setting, targets)
    dilution = np.zeros(setting.r_max)
    if setting.form.normalizer == "cohort":
        dilution = -setting.form.power * setting.moments.log_mean + 0.0
    never = np.full(setting.r_max, np.inf)
    with np.errstate(over="ignore"):
        return np.divide(dilution, 2 * equal, out=never, where=equal > 0)


def _unequal_threshold(setting: Setting, targets: Array) -> Array:
    """Return the time at which the carriers' growth compensates for the missing weight.

    `sum w_k (exp(s M_k T) - 1)` is convex in T and 0 at T = 0; it must exceed the share of the
    clients that do not carry the direction.
    """
    weights, missing = full_weights(setting), missing_share(setting)
    scale = 2.0 / setting.form.power
    rising = (weights > 0) & (targets > 0)
    longest = np.finfo(np.float64).max
    alone = np.full_like(weights, longest)  # the time at which a single client suffices
    needed = -np.log(np.where(rising, weights, 1.0)) / scale
    low = np.zeros(setting.r_max)
    with np.errstate(over="ignore"):
        np.divide(needed, targets, out=alone, where=rising)
        high = np.minimum(alone, longest).min(axis=0)
        for _ in range(_THRESHOLD_HALVINGS):
            middle = low + (high - low) / 2
            growth = np.expm1(scale * (targets * middle))
            below = (weights * growth).sum(axis=0) <= missing
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    pull = np.array([math.fsum(column) for column in (weights * targets).T])
    undiluted = (missing == 0) & (pull >= 0)
    never = ~rising.any(axis=0) | (high == longest)
    return np.where(undiluted & rising.any(axis=0), 0.0, np.where(never, np.inf, low))
