"""The law of the contributors' weight share in one random cohort, as a finite list of outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import ALLOCATIONS, Federation
from fedlora_sim.shares import share

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


# What a law of weights depends on: who is drawn how, weighs what, and carries the direction.
#
# Under SVD allocation a client carries a direction surely or never; under random allocation with
# probability `r_k / r_max`, anew every round. Both are one number per client, so every route to a
# law serves both. The weights are written down from their definition (Wu et al., arXiv
# 2602.13486, Sec. 3 and Eq. 8); nothing here depends on the simulator's aggregation.

NORMALISERS = ("cohort", "contributors", "federation")


def allocation_of(allocation: str) -> str:
    """`svd` or `random`: what clients carry must not depend on the state.

    Raises:
        InputError: on anything else.
    """
    choice = check_choice("allocation", allocation, ALLOCATIONS)
    if choice == "importance":
        reason = "what importance chooses depends on the state: no closed form"
        raise expected("allocation", allocation, f"'svd' or 'random' ({reason})")
    return choice


@dataclass(frozen=True, eq=False)
class Clients:
    """The clients as one direction sees them.

    Args:
        sampling: `full`, `without_replacement`, `with_replacement` or `bernoulli`.
        size: (expected) number of draws m.
        law: probability that one draw with replacement picks each client, shape (K,).
        weight: unnormalised weight of one draw of each client, shape (K,).
        carry: probability that each client carries the direction, shape (K,).
        normaliser: over whom weights are normalised.
    """

    sampling: str
    size: int
    law: Array
    weight: Array
    carry: Array
    normaliser: str

    @property
    def number(self) -> int:
        """Number of clients K."""
        return int(self.weight.size)

    @property
    def sure(self) -> bool:
        """Whether every client carries the direction surely or never."""
        return bool(np.all((self.carry == 0) | (self.carry == 1)))

    @property
    def redrawn(self) -> bool:
        """Whether an empty Bernoulli cohort is drawn again."""
        return self.normaliser != "federation"

    @property
    def relevant_weight(self) -> Array:
        """Weights, 0 for clients whose weight the normaliser never asks for."""
        if self.normaliser == "cohort":
            return self.weight
        return np.where(self.carry > 0, self.weight, 0.0)

    def norm(self, contributing: Array, other: Array) -> Array:
        """What weights are divided by: draws of contributors and others, as sums of weights."""
        if self.normaliser == "cohort":
            return contributing + other
        if self.normaliser == "contributors":
            return contributing
        # w_k = p_k c_k / E[c_k]: n_k c_k K / (m sum n), and c_k / m where p_k decides the draw
        return np.full_like(contributing, self.weight.sum() * self.size / self.number)


def views(federation: Federation, normaliser: str, allocation: str) -> list[Clients]:
    """The clients as each rank level sees them; random allocation makes all directions alike.

    Args:
        federation: the clients and the cohort law.
        normaliser: `cohort`, `contributors` or `federation`.
        allocation: `svd` or `random`.

    Returns:
        One view per rank level (`svd`), or a single one (`random`).

    Raises:
        InputError: on an unknown normaliser or allocation; on `importance`, which depends on the
            state and has no closed form.
    """
    normaliser = check_choice("normaliser", normaliser, NORMALISERS)
    allocation = allocation_of(allocation)
    K, size, sampling = federation.num_clients, federation.cohort_size, federation.sampling
    assert size is not None  # both resolved by Federation
    assert sampling is not None
    law, weight = np.full(K, 1.0 / K), np.asarray(federation.num_samples, dtype=np.float64)
    if sampling == "size_weighted":
        sampling, law, weight = "with_replacement", federation.weights, np.ones(K)
    if size == K and sampling in ("without_replacement", "bernoulli"):
        sampling = "full"
    ranks = np.asarray(federation.ranks)
    carries = [(ranks >= level).astype(np.float64) for level in federation.levels]
    if allocation == "random":
        carries = [ranks / federation.r_max]
    return [Clients(sampling, size, law, weight, carry, normaliser) for carry in carries]


# Binomial and Poisson probabilities, from a library that is imported when it is first needed.
#
# `scipy.stats` takes longer to import than most closed forms to compute, and uniform cohorts of
# clients that weigh alike need no more than whole numbers.

Numbers = float | NDArray[np.floating] | NDArray[np.int64]


def binomial_pmf(count: Numbers, size: Numbers, chance: Numbers) -> Array:
    """Probability of `count` successes in `size` trials; arguments broadcast."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(count, size, chance), dtype=np.float64)


def poisson_pmf(count: Numbers, mean: Numbers) -> Array:
    """Probability of `count` events where `mean` are expected; arguments broadcast."""
    from scipy.stats import poisson

    return np.asarray(poisson.pmf(count, mean), dtype=np.float64)


# Probability that a cohort holds nobody who carries a direction. Our derivation


def empty_cohort(clients: Clients) -> float:
    """Probability that no drawn client carries the direction.

    Without replacement `C(K-n, m) / C(K, m)` with n carriers; with replacement
    `(1 - P[one draw picks a carrier])^m`; Bernoulli `(s^n - s^K) / (1 - s^K)` with `s = 1 - m/K`,
    or `s^n` where the cohort without anybody counts. Where carriers are random, the mean of the
    product of `1 - c_k` over the drawn clients.

    Args:
        clients: the clients as one direction sees them.

    Returns:
        The probability; exactly 0 where every client carries the direction.
    """
    missing = 1.0 - clients.carry
    if clients.sampling == "full":
        return float(np.prod(missing))
    if clients.sampling == "bernoulli":
        return _bernoulli(clients)
    if clients.sampling == "without_replacement":
        if clients.sure:
            others = int(missing.sum())
            return math.comb(others, clients.size) / math.comb(clients.number, clients.size)
        return _mean_product(missing, clients.size)
    if clients.sure:
        return share(clients.law, missing == 1) ** clients.size
    return _repeated(clients)


def _bernoulli(clients: Clients) -> float:
    p = clients.size / clients.number
    none = float(np.log1p(-p * clients.carry).sum())
    if not clients.redrawn:
        return math.exp(none)
    nobody = float(np.log1p(np.full(clients.number, -p)).sum())
    # (e^none - e^nobody) / (1 - e^nobody) without the difference of two close numbers
    return max(0.0, -math.exp(none) * math.expm1(nobody - none) / -math.expm1(nobody))


def _mean_product(factors: np.ndarray, size: int) -> float:
    """Mean over all subsets of `size` clients of the product of their factors."""
    means, steps = np.zeros(size + 1), np.arange(1, size + 1)
    means[0] = 1.0
    for k, factor in enumerate(factors, start=1):
        # a subset of j of the first k clients holds the k-th one with probability j / k
        stays, takes = np.maximum(k - steps, 0) / k, np.minimum(steps, k) / k
        means[1:] = stays * means[1:] + takes * factor * means[:-1]
    return float(means[size])


def _repeated(clients: Clients) -> float:
    """Draws with replacement are independent Poisson counts, given their sum m."""
    size, counts = clients.size, np.arange(clients.size + 1)
    chance = np.zeros(size + 1)
    chance[0] = 1.0
    for law, carry in zip(clients.law, clients.carry, strict=True):
        factor = poisson_pmf(counts, size * law)
        factor[1:] *= 1.0 - carry
        chance = np.convolve(chance, factor)[: size + 1]
    return float(chance[size] / poisson_pmf(size, size))


# What every exact route hands on: the joint law of two sums of weights over one cohort


@dataclass(frozen=True, eq=False)
class Sums:
    """Outcomes of one cohort; weights not normalised; every array has shape (n,).

    Args:
        probability: of each outcome, up to a common factor.
        contributing: sum of the weights of drawn clients that carry the direction.
        other: the same of those that do not; anything where the normaliser does not ask for it.
        squares: expected sum of squared weights of the former, given the outcome.
    """

    probability: Array
    contributing: Array
    other: Array
    squares: Array

    def law(self, clients: Clients) -> ShareLaw:
        """Normalise the weights."""
        keep = (self.contributing > 0) & (self.probability > 0)
        contributing = self.contributing[keep]
        norm = clients.norm(contributing, self.other[keep])
        return share_law(
            self.probability[keep],
            contributing / norm,
            self.squares[keep] / norm**2,
            empty_cohort(clients),
        )
