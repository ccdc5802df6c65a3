"""Measure runs and predicted trajectories: from energies to rates, floors, shares and verdicts.

Energies are sums over the directions of a partition. The rate of a run is the slope of a straight
line through the logarithm, over the rounds in which the partition is not extinct. Over runs, slopes
are weighted by their number of rounds, so that a run that ends early has less weight. That ratio of
sums is the mean logarithm of a round's factor if rounds are independent and identically
distributed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from analysis.collapse.scenarios import EXACT, Standard
from analysis.stats.intervals import (
    Array,
    Measurement,
    fieller_ratio,
    mean_interval,
    proportion_interval,
)
from analysis.stats.series import log_linear_rate

EXTINCT = 1e-8
"""A partition is extinct from the round on in which its energy is below this share."""
GONE = 1e-18
"""A smaller share of the initial energy is rounding, after a singular value decomposition."""
FALLS = 0.02
"""A typical run that loses at most this share of the energy per late round does not fall."""
KINDS = (
    *("rate", "late_rate", "floor", "extinct", "rho"),
    *("relative_rate", "relative_late", "left", "versus_fedavg", "versus_raflora"),
)
"""All numbers of a rule in a scenario; each has an equal part of the scenario's error."""

Numbers = dict[str, Measurement]


@dataclass(frozen=True, eq=False)
class Slopes:
    """Log-slopes of each run and partition.

    Args:
        slope: natural logarithm of the energy's factor per round, (S, M).
        rounds: number of rounds, (S, M); 0 if there is no slope.
        begun: whether the partition existed in the first round of the window and the next round is
            known, boolean (S, M).
    """

    slope: Array
    rounds: Array
    begun: NDArray[np.bool_]

    @classmethod
    def of(cls, series: Array, window: tuple[int, int]) -> Slopes:
        """Return the slopes of series (S, T + 1, M) over the rounds that are present and known.

        A rule with state can restore a partition that is lost in one round.
        """
        first, last = window
        part = series[:, first : last + 1].transpose(0, 2, 1)
        there = part > GONE
        alive = np.where(there, part, 0.0)
        last_there = last - first - there[..., ::-1].argmax(-1)
        rounds = np.where(there.sum(-1) > 1, last_there - there.argmax(-1), 0)
        with np.errstate(divide="ignore"):
            slope = np.log(log_linear_rate(alive, floor=0.0))
        begun = there[..., 0] & ~np.isnan(part[..., 1])
        return cls(slope, rounds.astype(np.float64), begun)


def series_of(energy: Array, *, relative: bool) -> Array:
    """Return energies (S, T + 1, M) relative to their start, and to the shared partition if asked.

    NaN where the shared partition is lost.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        own = energy / energy[:, :1]
        if not relative:
            return np.asarray(own)
        shared = own[..., :1]
        return np.where(shared > GONE, own / shared, np.nan)


def lost(energy: Array, standard: Standard) -> NDArray[np.bool_]:
    """Return whether a partition is extinct, (S, T + 1, M).

    If the shared partition is lost too, each partition is compared with its own start.
    """
    own, relative = (series_of(energy, relative=x) for x in (False, standard.relative))
    return (np.where(np.isnan(relative), own, relative) < EXTINCT).astype(np.bool_)


def measure(energy: Array, standard: Standard, error: float) -> Numbers:
    """Return all numbers of one rule's runs in one scenario.

    Args:
        energy: energies of the partitions, (S, T + 1, M); a single run counts as exact.
        standard: the scenario.
        error: probability that any interval misses; equal parts for `KINDS`, then for partitions.

    Returns:
        Measurements of M partitions each; `rho` has shape (1,). If all runs agree to rounding, both
        ends equal the value. If only one of several runs has anything left, there are no bounds,
        unless nothing is random. NaN: nothing is left to measure.
    """
    part, exact = error / len(KINDS), _is_exact(energy, standard)
    own, relative = series_of(energy, relative=False), series_of(energy, relative=standard.relative)
    late = rates(Slopes.of(own, standard.late), part, exact=exact)
    left = _late_level(own, part, exact=exact)
    settled = late.low >= 1 - FALLS
    value, low, high = (np.where(settled, x, np.nan) for x in (left.value, left.low, left.high))
    return {
        "rate": rates(Slopes.of(own, standard.window), part, exact=exact),
        "late_rate": late,
        "floor": Measurement(value, low, high, len(energy)),
        "extinct": _extinct(lost(energy, standard)[:, -1], part, exact=exact),
        "rho": _shared_ratio(energy, part),
        "relative_rate": rates(Slopes.of(relative, standard.window), part, exact=exact),
        "relative_late": rates(Slopes.of(relative, standard.late), part, exact=exact),
        "left": _late_level(relative, part, exact=exact),
    }


def versus(own: Array, other: Array, standard: Standard, error: float) -> Measurement:
    """Return a rule's factor per round relative to another's on the same seeds, (M,).

    Runs are paired.
    """
    ours, theirs = (
        Slopes.of(series_of(energy, relative=standard.relative), standard.window)
        for energy in (own, other)
    )
    both = np.minimum(ours.rounds, theirs.rounds)
    with np.errstate(invalid="ignore"):
        difference = np.where(both > 0, ours.slope - theirs.slope, np.nan)
    slopes = Slopes(difference, both, both > 0)
    return rates(slopes, error / len(KINDS), exact=_is_exact(own, standard))


def extinct_round(energy: Array, standard: Standard) -> tuple[float, ...]:
    """Return the round by which half of the runs lost each partition, (M,); infinite if never."""
    gone = lost(energy, standard)
    for_good = np.logical_and.accumulate(gone[:, ::-1], axis=1)[:, ::-1]
    first = np.where(for_good[:, -1], for_good.argmax(1), np.inf)
    return tuple(float(x) for x in np.sort(first, axis=0)[(len(first) - 1) // 2])


def rates(slopes: Slopes, error: float, *, exact: bool) -> Measurement:
    """Return the factor per round of a typical run, with simultaneous intervals over partitions.

    Args:
        slopes: slopes of the runs.
        error: probability that any interval misses.
        exact: whether a single run represents all.
    """
    columns = zip(slopes.slope.T, slopes.rounds.T, slopes.begun.T, strict=True)
    part = error / slopes.slope.shape[1]
    found = [_rate(*column, part, exact=exact) for column in columns]
    return _joined(found, len(slopes.slope))


Ends = tuple[float, float, float]
UNKNOWN: Ends = (np.nan, np.nan, np.nan)


def _is_exact(energy: Array, standard: Standard) -> bool:
    """Return True if a single run represents all: nothing is random, or it is a prediction."""
    return not standard.draws or len(energy) == 1


def _rate(
    slope: Array, rounds: Array, begun: NDArray[np.bool_], error: float, *, exact: bool
) -> Ends:
    some = rounds > 0
    if not begun.any() or np.isnan(slope[some]).any():
        return UNKNOWN
    if not some.any():  # every run loses it in the first round
        return _exactly(0.0) if exact or begun.sum() > 1 else _unbounded(0.0)
    x, n = slope[some], rounds[some]
    if len(x) < 2 and not exact:
        return _unbounded(float(np.exp(x[0])))
    if np.ptp(x) <= EXACT:
        return _exactly(float(np.exp(x.mean())))
    found = fieller_ratio(np.stack([x * n, n], -1)[:, None], error)
    return _exp(found)


def _late_level(series: Array, error: float, *, exact: bool) -> Measurement:
    """Return the typical energy in the last quarter of the rounds, over runs with energy left."""
    rounds = series.shape[1] - 1
    level = series[:, rounds - rounds // 4 :].mean(1)
    part = error / level.shape[1]
    return _joined([_level(x, part, exact=exact) for x in level.T], len(series))


def _level(level: Array, error: float, *, exact: bool) -> Ends:
    if np.isposinf(level).any():
        return UNKNOWN
    logs = np.log(level[level > GONE])  # excludes NaN
    if not len(logs):
        return UNKNOWN
    if len(logs) < 2 and not exact:
        return _unbounded(float(np.exp(logs[0])))
    if np.ptp(logs) <= EXACT:
        return _exactly(float(np.exp(logs.mean())))
    found = mean_interval(logs[:, None], error)
    return _exp(found)


def _extinct(last: NDArray[np.bool_], error: float, *, exact: bool) -> Measurement:
    """Return the share of runs in which the partition is extinct at the end, from runs (S, M)."""
    ended = last.astype(np.float64)
    found = proportion_interval(ended, error)
    if not exact or (np.ptp(ended, axis=0) > 0).any():
        return found
    return Measurement(found.value, found.value, found.value, len(last))


def _shared_ratio(energy: Array, error: float) -> Measurement:
    """Return the energy ratio at the end, of mean energies: rho at the shared rank, (1,)."""
    last = energy[:, -1]
    pair = np.stack([last[:, 0], last.sum(-1)], -1)
    if not (np.isfinite(pair).all() and (pair[:, 1] > 0).any()):
        return _joined([UNKNOWN], len(energy))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = pair[:, 0] / pair[:, 1]
    if np.ptp(ratio) <= EXACT:
        return _joined([_exactly(float(ratio.mean()))], len(energy))
    found = fieller_ratio(pair[:, None], error)
    low, high = (np.clip(x, 0, 1) for x in (found.low, found.high))
    return Measurement(found.value, low, high, len(last))


def _exactly(value: float) -> Ends:
    return value, value, value


def _unbounded(value: float) -> Ends:
    """Return one of several runs without bounds, because it does not show their spread."""
    return value, 0.0, np.inf


def _exp(found: Measurement) -> Ends:
    """Return a measured logarithm and its ends as factors."""
    with np.errstate(over="ignore"):
        value, low, high = np.exp([found.value[0], found.low[0], found.high[0]])
    return float(value), float(low), float(high)


def _joined(found: list[Ends], runs: int) -> Measurement:
    value, low, high = np.array(found).T
    return Measurement(value, low, high, runs)


# Verdict on collapse, by intervals: the typical run of each partition above the shared rank.
#
# A partition collapses if one of these is certain: most runs lose it completely; a typical run
# still loses energy in the second half of its rounds; the remaining energy is negligible. It is
# kept if all three are excluded. Growth is never a collapse.

MOST = 0.5
"""A larger share of runs that lose a partition counts as most of them."""
NOTHING = 0.01
"""A smaller share of its energy, relative to the shared partition, is negligible."""

CRITERIA = (
    f"collapses: most runs lose a partition (energy below {EXTINCT:g}), or a typical run still "
    f"loses more than {FALLS:.0%} a round in the second half of its rounds, or less than "
    f"{NOTHING:.0%} is left then"
)


class Collapse(StrEnum):
    """The effect of a rule on the partitions above the shared rank."""

    COLLAPSES = "collapses"
    KEEPS = "keeps its rank"
    UNDECIDED = "undecided"


def by_partition(numbers: Numbers) -> tuple[Collapse, ...]:
    """Return the verdict on each partition above the shared one."""
    extinct, late, left = (numbers[name] for name in ("extinct", "relative_late", "left"))
    collapses = (extinct.low > MOST) | (late.high < 1 - FALLS) | (left.high < NOTHING)
    keeps = (extinct.high < MOST) & (late.low >= 1 - FALLS) & (left.low >= NOTHING)
    found = np.where(collapses, Collapse.COLLAPSES, Collapse.UNDECIDED)
    return tuple(Collapse(x) for x in np.where(keeps & ~collapses, Collapse.KEEPS, found)[1:])


def of_partitions(numbers: Numbers) -> Collapse:
    """Return the verdict on a scenario from its partitions.

    It collapses if one partition does, and keeps its rank if all do.
    """
    return together(by_partition(numbers))


def together(verdicts: Iterable[Collapse]) -> Collapse:
    """Return the verdict on several partitions, or several scenarios."""
    found = set(verdicts)
    if Collapse.COLLAPSES in found:
        return Collapse.COLLAPSES
    return Collapse.KEEPS if found == {Collapse.KEEPS} else Collapse.UNDECIDED
