"""Elasticities: relative change of rates and floors per relative change of a parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.closed_form.energy import need_fresh
from analysis.closed_form.round_map import (
    Clients,
    RoundMap,
    affine_map,
    clients_of,
    multiplier_moments,
)
from analysis.closed_form.setting import Setting, setting_of
from analysis.cohorts.law import Array
from fedlora_sim.errors import expected
from fedlora_sim.federation import Federation
from fedlora_sim.scenario import Scenario

# Adjacent federations: one client more or fewer that carries a direction, or in the cohort

Energies = Callable[[Setting, NDArray[np.int64]], tuple[Array, Array]]
"""Rates and floors in a setting with fixed clients in the given directions."""

Differences = tuple[Array, Array, Array]
"""Differences of `ln q`, `ln rate` and `ln floor` between adjacent federations, each (r_max,)."""


def cohort_sizes(setting: Setting, energies: Energies) -> Differences:
    """Return the differences from one client fewer in the cohort to one more, where possible."""
    federation = setting.federation
    m, K = federation.cohort_size or 0, federation.num_clients
    sampling = "without_replacement" if federation.sampling == "full" else federation.sampling
    low, high = (
        _logs(energies, _with(setting, federation.ranks, size, sampling), float(size))
        for size in (max(m - 1, 1), min(m + 1, K))
    )
    return _difference(low, high)


def coverages(setting: Setting, energies: Energies) -> Differences:
    """Return differences from one carrier fewer of each direction to one more, where possible."""
    if setting.scenario.allocation == "random":
        return _difference(*(_other_rank(setting, energies, step) for step in (-1, 1)))
    columns = [
        _difference(*(_other_carriers(setting, energies, i, more) for more in (False, True)))
        for i in range(setting.r_max)
    ]
    span, rate, floor = np.array(columns).T
    return span, rate, floor


def _other_carriers(setting: Setting, energies: Energies, i: int, more: bool) -> Differences:
    """Return logarithms with one carrier of direction i more or fewer; each a scalar."""
    carries = setting.federation.members[:, i].copy()
    free = ~carries if more else carries.copy()
    if free.any() and (more or free.sum() > 1):
        carries[_typical_client(setting.federation, free)] = more
    # a federation of two directions, of which the second is direction i
    other = _with(setting, tuple((1 + carries).tolist()))
    coverage = other.federation.coverage()[1]
    values = _logs(energies, other, float(coverage), np.array([i, i]))
    return values[0][1], values[1][1], values[2][1]


def _other_rank(setting: Setting, energies: Energies, step: int) -> Differences:
    """Return logarithms of all directions with one client's rank increased or decreased by one."""
    ranks = np.asarray(setting.federation.ranks)
    top = setting.r_max
    free = ranks < top if step > 0 else ranks > 1
    if step < 0 and (ranks == top).sum() == 1:
        free &= ranks < top  # the federation's rank must not change
    moved = ranks.copy()
    if free.any():
        moved[_typical_client(setting.federation, free)] += step
    other = _with(setting, tuple(moved.tolist()))
    return _logs(energies, other, float(other.federation.coverage("random")[0]))


def _typical_client(federation: Federation, free: NDArray[np.bool_]) -> int:
    """Return, of some clients, the one whose sample count is closest to the mean of all."""
    samples = np.asarray(federation.num_samples)
    return int(np.where(free, np.abs(samples - samples.mean()), np.inf).argmin())


def _with(
    setting: Setting,
    ranks: tuple[int, ...],
    cohort_size: int | None = None,
    sampling: str | None = None,
) -> Setting:
    """Return the setting with other ranks or another cohort.

    `energies` has the values per direction.
    """
    old = setting.federation
    other = setting.scenario.replace(
        ranks=ranks,
        num_samples=old.num_samples,
        cohort_size=cohort_size or old.cohort_size,
        sampling=sampling or old.sampling,
    )
    return replace(setting, scenario=other, values={})


def _logs(
    energies: Energies, setting: Setting, value: float, index: NDArray[np.int64] | None = None
) -> Differences:
    """Return logarithms of the parameter, rates and floors; -inf without drift or rate."""
    chosen = np.arange(setting.r_max) if index is None else index
    with np.errstate(divide="ignore"):
        rate, floor = (np.log(values) for values in energies(setting, chosen))
    return np.full_like(rate, np.log(value)), rate, floor


def _difference(low: Differences, high: Differences) -> Differences:
    with np.errstate(invalid="ignore"):  # both infinite: there is no floor
        span, rate, floor = (b - a for a, b in zip(low, high, strict=True))
    return span, rate, floor


# Elasticities

_STEP = 1e-30  # imaginary, so that derivatives lose no digits

Moments = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # multiplier, its square, sum of squares


@dataclass(frozen=True)
class Sensitivity:
    """Elasticities `d ln F / d ln q` in one parameter q, each (r_max,), without unit.

    Args:
        rate: of the rate q' (`energy_rate`).
        floor: of the floor (`energy_floor`); `inf` if there is none.
    """

    rate: Array
    floor: Array


def sensitivities(scenario: Scenario, rule: str, **values: ArrayLike) -> dict[str, Sensitivity]:
    """Return the elasticities of rate and floor: the data-dependent constants of the collapse.

    Keys `gain_mean` (g), `gain_std` (nu), `drift_std` (tau; `drift_mean` for zero_pad and rbla,
    whose closed forms cover common drift only), `coverage` and `cohort_size`. The floor scales with
    `1 / (1 - q')`: close to `q' = 1` it is sensitive to everything. Its elasticities are those of a
    floor that this drift alone causes; the size of the drift has no effect.

    Coverage and cohort size are whole numbers of clients. If equal clients are drawn without
    replacement (or all) and weights are over the cohort, the moments are rational functions of both
    and the elasticity is their derivative. Otherwise it is the arc elasticity, from differences of
    logarithms between adjacent federations: one client more and one fewer that carries the
    direction (of about the mean sample count; under random allocation, one of its ranks), or in the
    cohort; 0 if there are none.

    Args:
        scenario: the federation and what its clients return.
        rule: any of `RULES` except hetlora and fedex.
        **values: gains per direction, see `analysis.closed_form`.

    Returns:
        One `Sensitivity` per parameter.

    Raises:
        InputError: for a field that the form does not cover, such as persistent heterogeneity, or
            `drift_mean` where the floor is that of `drift_std`; for hetlora (no floor) and fedex
            (its rate is an eigenvalue); if gains of 0 leave no rate; for spread in factor space.

    Reference:
        Our derivation.
    """
    setting = setting_of("sensitivities", scenario, rule, values)
    if setting.form.norm_weighted or setting.form.space == "residual":
        reason = "its weights depend on the state" if setting.form.norm_weighted else "two states"
        raise expected("rule", setting.form.name, f"a rule of one affine map ({reason})")
    spread = setting.form.takes_spread
    asked = clients_of(setting)
    need_fresh(setting)
    if spread and asked.drift_mean.any():
        wanted = "0 (the floor is that of drifts without a mean)"
        raise expected("drift_mean", asked.drift_mean.tolist(), wanted)
    none, unit = np.zeros(setting.r_max), np.ones(setting.r_max)
    drift = {"drift_mean": none if spread else unit, "drift_std": unit if spread else none}
    clients = replace(asked, **drift)
    moments = _moments(setting, clients)
    base = affine_map(setting, clients, *moments)
    if (base.rate == 0).any():
        given = clients.gain_mean.tolist()
        raise expected("gain_mean", given, "gains that leave energy: the rate is 0")

    def along(name: str) -> Sensitivity:
        moved = replace(clients, **{name: getattr(clients, name) * (1 + 1j * _STEP)})
        return _derivative(base, affine_map(setting, moved, *moments))

    names = ("gain_mean", "gain_std", "drift_std" if spread else "drift_mean")
    result = {name: along(name) for name in names}
    if _is_rational(setting):
        n, m = _sizes(setting)
        up = 1 + 1j * _STEP
        for name, sizes in (("coverage", (n * up, m)), ("cohort_size", (n, m * up))):
            rational = _rational_moments(setting, *sizes)
            result[name] = _derivative(base, affine_map(setting, clients, *rational))
        return result

    def energies(other: Setting, index: NDArray[np.int64]) -> tuple[Array, Array]:
        here = Clients(*(getattr(clients, field.name)[index] for field in fields(clients)))
        step = affine_map(other, here, *_moments(other, here))
        return step.rate, step.floor()

    result["coverage"] = _arc(base, coverages(setting, energies))
    result["cohort_size"] = _arc(base, cohort_sizes(setting, energies))
    return result


def _moments(setting: Setting, clients: Clients) -> tuple[Array, Array, Array]:
    mean, second = multiplier_moments(setting)
    return mean, second, setting.moments.sum_of_squares if clients.differ else 0 * mean


def _settled(step: RoundMap) -> NDArray[Any]:
    """Return the floor as an analytic function; undefined if there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = step.shift / (1 - step.gain)
        return np.asarray((step.cross * mean + step.noise) / (1 - step.rate))


def _derivative(base: RoundMap, moved: RoundMap) -> Sensitivity:
    """Return the elasticities from a step in the imaginary direction."""
    rate = np.imag(moved.rate) / _STEP / base.rate
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = np.imag(_settled(moved)) / _STEP / _settled(base)
    return Sensitivity(rate, np.where(base.rate < 1, floor, np.inf))


def _arc(base: RoundMap, pair: tuple[Array, Array, Array]) -> Sensitivity:
    """Return the arc elasticities: differences of `ln q`, `ln rate` and `ln floor`."""
    span, rate, floor = pair
    moved = span != 0
    slope = np.divide(rate, span, out=np.zeros_like(span), where=moved)
    finite = np.divide(floor, span, out=np.zeros_like(span), where=moved)
    # an adjacent federation without a floor is infinitely far away
    return Sensitivity(slope, np.where(base.rate < 1, finite, np.inf))


def _is_rational(setting: Setting) -> bool:
    """Return True if moments are rational functions of the numbers of contributors and draws."""
    samples = setting.federation.num_samples or ()
    fixed = setting.federation.sampling in ("full", "without_replacement")
    plain = setting.form.normalizer == "cohort" and setting.scenario.allocation == "svd"
    return fixed and plain and len(set(samples)) == 1


def _sizes(setting: Setting) -> tuple[Array, Array]:
    """Return the contributors n and draws m, each (r_max,)."""
    n = setting.federation.members.sum(axis=0).astype(np.float64)
    return n, np.full_like(n, float(setting.federation.cohort_size or 0))


def _rational_moments(setting: Setting, n: NDArray[Any], m: NDArray[Any]) -> Moments:
    """Return the moments of the share D/m, D hypergeometric, from its factorial moments."""
    K = setting.federation.num_clients
    factorial, product = [], np.ones_like(n * m)
    for j in range(4):
        # beyond K both numerators vanish, and so does what they multiply
        product = product * (n - j) * (m - j) / max(K - j, 1)
        factorial.append(product)
    first, second, third, fourth = factorial
    powers = {1: first, 2: first + second, 4: first + 7 * second + 6 * third + fourth}
    order = setting.form.power
    return powers[order] / m**order, powers[2 * order] / m ** (2 * order), first / m**2
