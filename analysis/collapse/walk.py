"""Energies of one partition as a random walk: rounds are alike, and each multiplies by a factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.cohorts.law import Array, ShareLaw
from analysis.cohorts.shares import share_laws
from analysis.collapse.gauge import EXTINCT, GONE
from fedlora_sim.federation import Federation

# Decimals to which logarithms of energies are one state of the walk.
DECIMALS = 9


@dataclass(frozen=True, eq=False)
class Walk:
    """What independent rounds make of a partition's energy.

    Args:
        typical: factor per round of a run that lives, `exp(2 E[log |A| | A != 0])`; 0 if none does.
        mean: factor per round of the mean energy, `E[A**2]`.
        extinct: probability to be extinct by each round, (T + 1,).
        median: median energy of each round over the start, (T + 1,); 0 where it is extinct.
    """

    typical: float
    mean: float
    extinct: Array
    median: Array

    @classmethod
    def of(cls, factor: Array, probability: Array, rounds: int) -> Walk:
        """The walk of rounds that multiply an amplitude by a factor (n,) with probability (n,)."""
        lives = (factor != 0) & (probability > 0)
        steps, chances = 2 * np.log(np.abs(factor[lives])), probability[lives]
        typical = float(np.exp(chances @ steps / chances.sum())) if lives.any() else 0.0
        log: Array = np.zeros(1)
        mass: Array = np.ones(1)
        extinct, median = [0.0], [1.0]
        for _ in range(rounds):
            sums = np.round(np.add.outer(log, steps).ravel(), DECIMALS)
            log, where = np.unique(sums, return_inverse=True)
            weights = np.multiply.outer(mass, chances).ravel()
            mass = np.bincount(where, weights, len(log)).astype(np.float64)
            alive = log >= np.log(EXTINCT)
            log, mass = log[alive], mass[alive]
            # what is not alive stays extinct, whatever later rounds would make of it
            gone = max(0.0, 1.0 - float(mass.sum()))
            extinct.append(0.0 if gone < GONE else gone)
            below = gone + np.cumsum(mass)
            middle = int(np.searchsorted(below, 0.5))
            median.append(0.0 if gone > 0.5 else float(np.exp(log[min(middle, len(log) - 1)])))
        mean = float(probability @ factor**2)
        return cls(typical, mean, np.array(extinct), np.array(median))

    def times(self, factor: float) -> Walk:
        """The walk whose energies all rounds multiply by a factor more; extinct is what was."""
        gains = factor ** np.arange(len(self.median))
        return Walk(self.typical * factor, self.mean * factor, self.extinct, self.median * gains)


def walks(
    federation: Federation,
    multiplier: Callable[[Array], Array],
    rounds: int,
    *,
    carries: bool = False,
) -> list[Walk]:
    """The walk of every partition, lowest rank level first.

    Args:
        federation: the clients and the law of cohorts; SVD allocation.
        multiplier: from shares W of the contributors in the cohort's weights, (n,), to factors.
        rounds: number of rounds T.
        carries: whether a partition without contributors stays as it is.

    Returns:
        One walk per rank level. Extinct is what is lost beside the shared partition, which every
        client carries, as in runs; where that one is gone by the end, what is lost at all.
    """
    shared = float(np.abs(multiplier(np.ones(1)))[0])
    unit = shared if shared > GONE ** (0.5 / rounds) else 1.0

    def of(law: ShareLaw) -> Walk:
        factor = np.asarray(multiplier(law.share), dtype=np.float64)
        if carries:
            factor = np.where(law.share == 0, 1.0, factor)
        return Walk.of(factor / unit, law.probability, rounds).times(unit**2)

    return [of(law) for law in share_laws(federation)]
