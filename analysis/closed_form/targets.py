"""Targets of the flow: the amplitude that each client would learn alone, and its local map."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.setting import Setting
from analysis.cohorts.law import Array
from fedlora_sim.errors import check_numbers, expected


def flow_map(amplitude: ArrayLike, target: ArrayLike, local_time: ArrayLike) -> Array:
    """What gradient flow makes of an amplitude: `f(x) = M G x / (M + x (G - 1))`, `G = exp(2 M T)`.

    The flow of `0.5 ||B A - M||_F**2` for time T from balanced factors, M sharing their basis with
    amplitude M. `x / (1 + 2 T x)` at M = 0; 0 stays 0; all arguments broadcast.

    Args:
        amplitude: x, finite and not negative.
        target: M, finite, of any sign.
        local_time: T, finite and not negative.

    Returns:
        Amplitudes, in the unit of x.

    Raises:
        ValueError: on a negative or undefined amplitude or time.

    Reference:
        Our derivation (theory of LoRA's own training; the paper assumes a common gain).
    """
    x = _checked("amplitude", amplitude, minimum=0.0)
    M, T = _checked("target", target), _checked("local_time", local_time, minimum=0.0)
    try:
        x, M, T = np.broadcast_arrays(x, M, T)
    except ValueError:
        shapes = f"{x.shape}, {M.shape} and {T.shape}"
        raise expected("amplitude", amplitude, f"shapes that broadcast, not {shapes}") from None
    return local_map(x, M, T)


def local_map(x: Array, target: Array, local_time: Array | float) -> Array:
    """`flow_map` of checked arguments."""
    decay, pull = reciprocal_map(target, local_time)
    some = x > 0
    safe = np.where(some, x, 1.0)
    # x / (e + k x), with e = 1/G and k = (1 - 1/G) / M: neither can overflow for M >= 0
    with np.errstate(over="ignore"):
        divisor = decay + pull * safe
        grown = divisor == 0  # e and k x both below the smallest number: time enough to reach M
        mapped = np.where(grown, target, safe / np.where(grown, 1.0, divisor))
        return np.where(some, mapped, 0.0)


def reciprocal_map(target: Array, local_time: Array | float) -> tuple[Array, Array]:
    """Coefficients of `1/x -> e/x + k`: `e = exp(-2 M T)` and `k = (1 - e) / M`, 2 T at M = 0."""
    with np.errstate(over="ignore"):
        exponent = -2 * np.asarray(target, dtype=np.float64) * local_time
        decay, drop = np.exp(exponent), -np.expm1(exponent)
    flat = np.broadcast_to(np.asarray(2.0 * np.asarray(local_time)), exponent.shape).copy()
    # a subnormal exponent has lost its digits, and the limit at M = 0 has not
    curved = np.abs(exponent) >= np.finfo(np.float64).tiny
    pull = np.divide(drop, target, out=flat, where=curved)
    return decay, pull


def client_targets(setting: Setting, target: ArrayLike) -> Array:
    """Return the targets M_k of all clients, 0 where they do not carry, shape (K, r_max).

    Args:
        setting: the rule in its federation.
        target: a scalar, (r_max,) for targets per direction, or (K,), (K, 1) or (K, r_max) for
            targets per client. Where K = r_max, a plain list of unequal values is refused.

    Raises:
        ValueError: naming the argument.
    """
    K, r_max = setting.federation.num_clients, setting.r_max
    shapes = f"a scalar, ({r_max},) per direction, or ({K},) or ({K}, {r_max}) per client"
    values: Array = check_numbers("target", target, f"finite numbers: {shapes}")
    if not np.isfinite(values).all():
        raise expected("target", target, f"finite numbers: {shapes}")
    if r_max == K and values.shape == (K,) and np.ptp(values) > 0:
        raise expected("target", target, f"shape ({K}, 1) per client or (1, {K}) per direction")
    if values.shape == (K,) and r_max != K:
        values = values[:, None]
    try:
        own = np.broadcast_to(values, (K, r_max))
    except ValueError:
        raise expected("target", target, f"finite numbers: {shapes}") from None
    # exp(2 M T) of a client that does not carry the direction may overflow: its weight is 0
    return np.where(carriers(setting), own, 0.0)


def shared_targets(setting: Setting, targets: Array) -> Array | None:
    """Targets (r_max,) where all clients that carry a direction agree; None where they do not."""
    first = np.empty(setting.r_max)
    for i in range(setting.r_max):
        own = targets[carriers(setting)[:, i], i]
        if np.ptp(own) > 0:
            return None
        first[i] = own[0]
    return first


def carriers(setting: Setting) -> Array:
    """Who may carry a direction, boolean (K, r_max)."""
    members = setting.federation.members
    return np.ones_like(members) if setting.allocation == "random" else members


def full_weights(setting: Setting) -> Array:
    """The rule's weights when everybody takes part, (K, r_max), zero where not carried."""
    own = setting.federation.weights[:, None] * setting.federation.members
    if setting.form.normaliser == "contributors":
        return np.asarray(own / own.sum(axis=0), dtype=np.float64)
    return np.asarray(own, dtype=np.float64)


def missing_share(setting: Setting) -> Array:
    """Return the weight share of the clients that do not carry a direction, (r_max,).

    0 where the rule's weights are over the carriers alone.
    """
    if setting.form.normaliser == "contributors":
        return np.zeros(setting.r_max)
    return np.asarray(1 - setting.federation.coverage(setting.allocation), dtype=np.float64)


def need_full(setting: Setting, reason: str) -> None:
    """Refuse random cohorts where only rounds that are all alike have a closed form."""
    if not setting.is_full:
        raise expected(
            "cohort_size",
            setting.federation.cohort_size,
            f"full participation and allocation='svd' ({reason}: no closed form)",
        )


def need_equal(setting: Setting, target: ArrayLike) -> None:
    """Refuse unequal targets under hetlora, whose weights then have no uniform limit."""
    if setting.form.norm_weighted:
        reason = "norms that differ for good keep the weights from uniform: no closed form"
        raise expected(
            "target", target, f"targets that clients share for rule='hetlora' ({reason})"
        )


def _checked(argument: str, value: ArrayLike, minimum: float | None = None) -> Array:
    bound = "" if minimum is None else f" of at least {minimum:g}"
    array: Array = check_numbers(argument, value, f"finite numbers{bound}")
    if not np.isfinite(array).all() or (minimum is not None and (array < minimum).any()):
        raise expected(argument, value, f"finite numbers{bound}")
    return array
