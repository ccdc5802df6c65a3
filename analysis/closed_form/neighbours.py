"""Neighbouring federations: one client more or fewer that carries a direction, or in the cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.closed_form.setting import Setting
from analysis.cohorts.law import Array
from fedlora_sim.federation import Federation

Energies = Callable[[Setting, NDArray[np.int64]], tuple[Array, Array]]
"""Rates and floors in a setting of clients who are what they are in the directions given."""

Differences = tuple[Array, Array, Array]
"""Differences of `ln q`, `ln rate` and `ln floor` between the two neighbours, each (r_max,)."""


def cohort_sizes(setting: Setting, energies: Energies) -> Differences:
    """From one client fewer in the cohort to one more, as far as there are."""
    federation = setting.federation
    m, K = federation.cohort_size or 0, federation.num_clients
    sampling = "without_replacement" if federation.sampling == "full" else federation.sampling
    low, high = (
        _logs(energies, _with(setting, federation.ranks, size, sampling), float(size))
        for size in (max(m - 1, 1), min(m + 1, K))
    )
    return _difference(low, high)


def coverages(setting: Setting, energies: Energies) -> Differences:
    """From one carrier fewer of every direction to one more, as far as there are."""
    if setting.allocation == "random":
        return _difference(*(_other_rank(setting, energies, step) for step in (-1, 1)))
    columns = [
        _difference(*(_other_carriers(setting, energies, i, more) for more in (False, True)))
        for i in range(setting.r_max)
    ]
    span, rate, floor = np.array(columns).T
    return span, rate, floor


def _other_carriers(setting: Setting, energies: Energies, i: int, more: bool) -> Differences:
    """Logarithms where one client more, or one fewer, carries direction i; each a scalar."""
    carries = setting.federation.members[:, i].copy()
    free = ~carries if more else carries.copy()
    if free.any() and (more or free.sum() > 1):
        carries[_typical_client(setting.federation, free)] = more
    # a federation of two directions, the second of which is the one in question
    other = _with(setting, tuple((1 + carries).tolist()))
    coverage = other.federation.coverage()[1]
    values = _logs(energies, other, float(coverage), np.array([i, i]))
    return values[0][1], values[1][1], values[2][1]


def _other_rank(setting: Setting, energies: Energies, step: int) -> Differences:
    """Logarithms where one client has one rank more, or one fewer: all directions move."""
    ranks = np.asarray(setting.federation.ranks)
    top = setting.r_max
    free = ranks < top if step > 0 else ranks > 1
    if step < 0 and (ranks == top).sum() == 1:
        free &= ranks < top  # the federation's rank must stay
    moved = ranks.copy()
    if free.any():
        moved[_typical_client(setting.federation, free)] += step
    other = _with(setting, tuple(moved.tolist()))
    return _logs(energies, other, float(other.federation.coverage("random")[0]))


def _typical_client(federation: Federation, free: NDArray[np.bool_]) -> int:
    """Of some clients the one whose sample count is closest to the mean of all."""
    samples = np.asarray(federation.num_samples)
    return int(np.where(free, np.abs(samples - samples.mean()), np.inf).argmin())


def _with(
    setting: Setting,
    ranks: tuple[int, ...],
    cohort_size: int | None = None,
    sampling: str | None = None,
) -> Setting:
    """The setting with other ranks, or another cohort."""
    old = setting.federation
    size, law = cohort_size or old.cohort_size, sampling or old.sampling
    return replace(setting, federation=Federation(ranks, old.num_samples, size, law))


def _logs(
    energies: Energies, setting: Setting, value: float, index: NDArray[np.int64] | None = None
) -> Differences:
    """Logarithms of the parameter, the rates and the floors; of no drift or rate: -inf."""
    chosen = np.arange(setting.r_max) if index is None else index
    with np.errstate(divide="ignore"):
        rate, floor = (np.log(values) for values in energies(setting, chosen))
    return np.full_like(rate, np.log(value)), rate, floor


def _difference(low: Differences, high: Differences) -> Differences:
    with np.errstate(invalid="ignore"):  # both infinite: the caller knows of no floor there
        span, rate, floor = (b - a for a, b in zip(low, high, strict=True))
    return span, rate, floor
