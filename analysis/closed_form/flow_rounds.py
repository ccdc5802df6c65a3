"""One round of the flow, in the coordinates in which it is simple, and its fixed points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.closed_form.hetlora import norm_weights
from analysis.closed_form.setting import Setting
from analysis.closed_form.targets import (
    full_weights,
    local_map,
    missing_share,
    reciprocal_map,
)
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected
from fedlora_sim.tolerances import relative

_HALVINGS = 200
_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class Step:
    """An affine recursion `y' = slope y + shift` per direction; arrays of shape (r_max,).

    Args:
        slope: factor per round.
        shift: what is added.
        margin: `1 - slope`, from terms that do not cancel.
        limit: fixed point where slope and shift say nothing (1 and 0).
    """

    slope: Array
    shift: Array
    margin: Array
    limit: Array | None = None

    def path(self, start: Array, rounds: int) -> Array:
        """Values for t = 0..rounds, (rounds + 1, r_max); what overflows is `inf`."""
        values = np.empty((rounds + 1, start.size))
        values[0] = start
        with np.errstate(over="ignore"):
            for t in range(rounds):
                values[t + 1] = self.slope * values[t] + self.shift
        return values

    def floor(self) -> Array:
        """The fixed point of a contraction."""
        rest = np.zeros_like(self.shift) if self.limit is None else self.limit.copy()
        return np.divide(self.shift, self.margin, out=rest, where=self.margin > 0)


def reciprocal_step(setting: Setting, target: Array, time: float) -> Step:
    """The affine recursion of `E[1/x]` given a contributor, for equal targets (r_max,)."""
    decay, pull = reciprocal_map(target, time)
    if setting.form.normaliser == "contributors":
        trained = 1 - setting.empty if setting.carries else np.ones_like(target)
        with np.errstate(over="ignore"):
            margin = trained * -np.expm1(-2 * target * time)
        return Step(1 - trained + trained * decay, trained * pull, margin)
    inverse = _mean_inverse(setting)
    with np.errstate(over="ignore"):
        margin = -np.expm1(np.log(inverse) - 2 * target * time)
        return Step(inverse * decay, inverse * pull, margin)


def _mean_inverse(setting: Setting) -> Array:
    """`E[1/omega | omega > 0]`, (r_max,)."""
    if setting.form.power == 1:
        return setting.moments.inverse

    def inverse_square(share: Array) -> Array:
        some = share > 0
        return np.where(some, 1 / np.where(some, share, 1.0) ** 2, 0.0)

    return setting.expect(inverse_square) / (1 - setting.empty)


def ratio(setting: Setting, targets: Array, time: float, amplitude: Array) -> Array:
    """`x'/x` under full participation with targets (K, r_max); falls as x grows."""
    decay, pull = reciprocal_map(targets, time)
    weights, power = full_weights(setting), setting.form.power
    # both coefficients may be infinite, and what nobody carries counts for nothing
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        growth = 1 / (decay + np.where(amplitude > 0, pull * amplitude, 0.0))
        mean = np.where(weights > 0, weights * growth ** (1 / power), 0.0).sum(axis=0)
        return np.asarray(mean**power, dtype=np.float64)


def path(setting: Setting, targets: Array, time: float, start: Array, rounds: int) -> Array:
    """Amplitudes for t = 0..rounds under full participation with targets (K, r_max)."""
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
        # a client whose target is far below 0 returns nothing
        gain = np.where(np.isfinite(decay), gain, -1.0)
        if setting.form.power == 2:
            gain = np.where(np.isinf(gain), gain, gain / (np.sqrt(1 + gain) + 1))
        return np.where(weights > 0, weights * gain, 0.0).sum(axis=0) - missing_share(setting)


def rest(setting: Setting, targets: Array, time: float) -> Array:
    """Return the positive fixed point of `path`, 0 where there is none; at time 0 its limit."""
    if time == 0:
        mean = (full_weights(setting) * targets).sum(axis=0)
        return np.where(missing_share(setting) == 0, np.maximum(mean, 0.0), 0.0)
    grows = excess(setting, targets, time, np.zeros(setting.r_max)) > 0
    # nobody moves beyond the largest target
    low = np.zeros(setting.r_max)
    high = np.where(full_weights(setting) > 0, targets, -np.inf).max(axis=0)
    high = np.where(grows, high, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = excess(setting, targets, time, middle) >= 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(grows, (low + high) / 2, 0.0)


def slope(setting: Setting, targets: Array, time: float, amplitude: Array) -> Array:
    """Derivative of a round under full participation at amplitudes (r_max,)."""
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
    """HetLoRA under full participation: weights are the norms of what the clients return."""
    values = np.empty((rounds + 1, start.size))
    values[0] = start
    for t in range(rounds):
        values[t + 1] = _hetlora_round(setting, targets, time, values[t])[0]
    return values


def hetlora_rest(setting: Setting, targets: Array, time: float) -> Array:
    """Where `hetlora_path` settles from the targets; 0 where its last weights let x fall."""
    members = setting.federation.members
    x = np.where(members, np.maximum(targets, 0.0), 0.0).max(axis=0)
    enough = 8 * np.finfo(np.float64).eps * x.max()  # a round's own roundings
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
    """The next amplitudes (r_max,) and the clients' weights (K,)."""
    trained = local_map(x, targets, time) * setting.federation.members
    shares = norm_weights(trained)
    return (shares[:, None] * np.sqrt(trained)).sum(axis=0) ** 2, shares
