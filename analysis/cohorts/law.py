"""The law of the contributors' weight share in one random cohort, as a finite list of outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class MonteCarloWarning(UserWarning):
    """A law of weights is out of exact reach here and was estimated from random cohorts."""


@dataclass(frozen=True, eq=False)
class ShareLaw:
    """Law of the share `W = sum_k w_k` over the contributors of one direction; no units.

    Args:
        probability: of each outcome, shape (n,); sums to 1.
        share: the outcome's share W, shape (n,), not negative.
        squares: `E[sum_k w_k^2 | outcome]`, shape (n,).
        empty: probability that a cohort holds no contributor; exact in every case.
        draws: None where all outcomes are exact; else the number of random cohorts with a
            contributor, which are the outcomes above 0, all equally probable.
    """

    probability: Array
    share: Array
    squares: Array
    empty: float
    draws: int | None = None

    def expect(self, values: ArrayLike) -> float:
        """Mean of a quantity.

        Args:
            values: its value at every outcome, scalar or shape (n,).

        Returns:
            The mean; of a constant the constant itself, without rounding.
        """
        array = np.broadcast_to(np.asarray(values, dtype=np.float64), self.share.shape)
        if self.draws is None or not self.empty:
            return _mean(array, self.probability)
        # the empty cohort comes first, and its probability is no estimate
        sampled = _mean(array[1:], np.full(array.size - 1, 1.0 / (array.size - 1)))
        return self.empty * float(array[0]) + (1.0 - self.empty) * sampled

    def standard_error(self, values: ArrayLike) -> float:
        """Standard error of `expect(values)`: 0 for an exact law, infinite with one draw."""
        if self.draws is None:
            return 0.0
        array = np.broadcast_to(np.asarray(values, dtype=np.float64), self.share.shape)
        sampled = array[self.share > 0]
        if sampled.size < 2:
            return math.inf
        # the chance of an empty cohort is exact, so only the others' mean is uncertain
        return (1.0 - self.empty) * float(np.std(sampled, ddof=1)) / math.sqrt(sampled.size)

    def given_contributor(self) -> ShareLaw:
        """The law given that somebody contributes, W > 0."""
        keep = self.share > 0
        probability = self.probability[keep]
        return replace(
            self,
            probability=probability / probability.sum(),
            share=self.share[keep],
            squares=self.squares[keep],
            empty=0.0,
        )


def _mean(values: Array, probability: Array) -> float:
    constant = bool(np.all(values == values[0]))
    # no product of BLAS: its threads cost more than the sum where other processes run
    return float(values[0]) if constant else float((probability * values).sum())


def share_law(probability: Array, share: Array, squares: Array, empty: float) -> ShareLaw:
    """An exact law from outcomes in any order and of any total probability.

    Outcomes of equal share are merged. Those without a contributor get the probability `empty`,
    the others are scaled to the rest: sums of many roundings are put right by an exact number.

    Args:
        probability: of each outcome, up to a common factor, shape (n,).
        share: W, shape (n,).
        squares: `E[sum_k w_k^2 | outcome]`, shape (n,).
        empty: exact probability that a cohort holds no contributor.

    Returns:
        The law, outcomes by ascending share.
    """
    keep = (share > 0) & (probability > 0)
    values, where = np.unique(share[keep], return_inverse=True)
    mass = np.bincount(where, weights=probability[keep], minlength=values.size).astype(np.float64)
    mean = np.bincount(where, weights=(probability * squares)[keep], minlength=values.size) / mass
    mass *= (1.0 - empty) / mass.sum()
    if values.size == 1:
        mass[0] = 1.0 - empty
    if empty > 0:
        values, mass, mean = np.append(0.0, values), np.append(empty, mass), np.append(0.0, mean)
    return frozen(ShareLaw(mass, values, mean, empty))


def sampled_law(share: Array, squares: Array, empty: float) -> ShareLaw:
    """A law estimated from random cohorts that hold a contributor.

    Args:
        share: W of each cohort, above 0, shape (n,).
        squares: `sum_k w_k^2` of each cohort, shape (n,).
        empty: exact probability that a cohort holds no contributor.

    Returns:
        The law; its first outcome is the empty cohort where there is one.
    """
    draws = share.size
    mass = np.full(draws, (1.0 - empty) / draws)
    if empty > 0:
        mass = np.append(empty, mass)
        share, squares = np.append(0.0, share), np.append(0.0, squares)
    return frozen(ShareLaw(mass, share, squares, empty, draws))


def frozen(law: ShareLaw) -> ShareLaw:
    """The same law, its arrays read-only: laws are cached and shared."""
    for array in (law.probability, law.share, law.squares):
        array.setflags(write=False)
    return law
