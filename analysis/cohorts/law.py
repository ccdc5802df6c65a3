"""Outcomes of the contributors' weight share in one random cohort, with probabilities."""

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
    """Warns that a distribution of weights is estimated from random cohorts, not exact."""


@dataclass(frozen=True, eq=False)
class ShareLaw:
    """Distribution of the share `W = sum_k w_k` over the contributors of one direction; no units.

    Args:
        probability: probability of each outcome, shape (n,); sums to 1.
        share: share W of each outcome, shape (n,), non-negative.
        squares: `E[sum_k w_k^2 | outcome]`, shape (n,).
        empty: probability that a cohort has no contributor; always exact.
        draws: None if all outcomes are exact; otherwise the number of random cohorts with a
            contributor, which are the outcomes above 0, all equally probable.
    """

    probability: Array
    share: Array
    squares: Array
    empty: float
    draws: int | None = None

    def expect(self, values: ArrayLike) -> float:
        """Return the mean of a quantity.

        Args:
            values: its value at each outcome, scalar or shape (n,).

        Returns:
            The mean; for a constant the constant itself, without rounding.
        """
        array = np.broadcast_to(np.asarray(values, dtype=np.float64), self.share.shape)
        if self.draws is None or not self.empty:
            return _mean(array, self.probability)
        # the empty cohort comes first, and its probability is exact
        sampled = _mean(array[1:], np.full(array.size - 1, 1.0 / (array.size - 1)))
        return self.empty * float(array[0]) + (1.0 - self.empty) * sampled

    def standard_error(self, values: ArrayLike) -> float:
        """Return the standard error of `expect(values)`: 0 if exact, infinite for one draw."""
        if self.draws is None:
            return 0.0
        array = np.broadcast_to(np.asarray(values, dtype=np.float64), self.share.shape)
        sampled = array[self.share > 0]
        if sampled.size < 2:
            return math.inf
        # the probability of an empty cohort is exact, so only the mean of the others is uncertain
        return (1.0 - self.empty) * float(np.std(sampled, ddof=1)) / math.sqrt(sampled.size)

    def given_contributor(self) -> ShareLaw:
        """Return the distribution given that there is a contributor, W > 0."""
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
    # no BLAS product: its threads cost more than the sum if other processes run
    return float(values[0]) if constant else float((probability * values).sum())


def share_law(probability: Array, share: Array, squares: Array, empty: float) -> ShareLaw:
    """Return an exact distribution from outcomes in any order and with any total probability.

    Outcomes of equal share are merged. Those without a contributor get the probability `empty`, and
    the others are scaled to the rest, which corrects the rounding of long sums.

    Args:
        probability: probability of each outcome, up to a common factor, shape (n,).
        share: W, shape (n,).
        squares: `E[sum_k w_k^2 | outcome]`, shape (n,).
        empty: exact probability that a cohort has no contributor.

    Returns:
        The distribution, outcomes by ascending share.
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
    """Return a distribution estimated from random cohorts that have a contributor.

    Args:
        share: W of each cohort, above 0, shape (n,).
        squares: `sum_k w_k^2` of each cohort, shape (n,).
        empty: exact probability that a cohort has no contributor.

    Returns:
        The distribution; its first outcome is the empty cohort, if possible.
    """
    draws = share.size
    mass = np.full(draws, (1.0 - empty) / draws)
    if empty > 0:
        mass = np.append(empty, mass)
        share, squares = np.append(0.0, share), np.append(0.0, squares)
    return frozen(ShareLaw(mass, share, squares, empty, draws))


def frozen(law: ShareLaw) -> ShareLaw:
    """Return the same distribution with read-only arrays, since it is cached and shared."""
    for array in (law.probability, law.share, law.squares):
        array.setflags(write=False)
    return law


# The clients from the view of a direction: sampling, weights, and who carries the direction.
#
# Under SVD allocation a client either carries a direction or not; under random allocation it
# carries it with probability `r_k / r_max`, drawn every round. Both are one number per client, so
# that every route to a distribution serves both. The weights are implemented from their definition
# (Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8), independently of the simulator's aggregation.

NORMALIZERS = ("cohort", "contributors", "federation")


def allocation_of(allocation: str) -> str:
    """Return `svd` or `random`; carried directions must not depend on the state.

    Raises:
        InputError: for anything else.
    """
    choice = check_choice("allocation", allocation, ALLOCATIONS)
    if choice == "importance":
        reason = "what importance chooses depends on the state: no closed form"
        raise expected("allocation", allocation, f"'svd' or 'random' ({reason})")
    return choice


@dataclass(frozen=True, eq=False)
class DirectionClients:
    """The clients from the view of one direction.

    Args:
        sampling: `full`, `without_replacement`, `with_replacement` or `bernoulli`.
        size: (expected) number of draws m.
        law: probability that one draw with replacement selects each client, shape (K,).
        weight: unnormalized weight of one draw of each client, shape (K,).
        carry: probability that each client carries the direction, shape (K,).
        normalizer: clients over which weights are normalized.
    """

    sampling: str
    size: int
    law: Array
    weight: Array
    carry: Array
    normalizer: str

    @property
    def number(self) -> int:
        """Number of clients K."""
        return int(self.weight.size)

    @property
    def sure(self) -> bool:
        """True if every client certainly carries the direction or certainly does not."""
        return bool(np.all((self.carry == 0) | (self.carry == 1)))

    @property
    def redrawn(self) -> bool:
        """True if an empty Bernoulli cohort is drawn again."""
        return self.normalizer != "federation"

    @property
    def relevant_weight(self) -> Array:
        """Weights, 0 for clients whose weight the normalizer never uses."""
        if self.normalizer == "cohort":
            return self.weight
        return np.where(self.carry > 0, self.weight, 0.0)

    def norm(self, contributing: Array, other: Array) -> Array:
        """Return the normalizer, from the sums of weights of contributors and others."""
        if self.normalizer == "cohort":
            return contributing + other
        if self.normalizer == "contributors":
            return contributing
        # w_k = p_k c_k / E[c_k]: n_k c_k K / (m sum n), and c_k / m where p_k decides the draw
        return np.full_like(contributing, self.weight.sum() * self.size / self.number)


def views(federation: Federation, normalizer: str, allocation: str) -> list[DirectionClients]:
    """Return the clients from the view of each rank level, or one view under random allocation.

    Args:
        federation: the clients and the cohort law.
        normalizer: `cohort`, `contributors` or `federation`.
        allocation: `svd` or `random`.

    Returns:
        One view per rank level (`svd`), or a single one (`random`), which holds for all directions.

    Raises:
        InputError: for an unknown normalizer or allocation, and for `importance`, which depends on
            the state and has no closed form.
    """
    normalizer = check_choice("normalizer", normalizer, NORMALIZERS)
    allocation = allocation_of(allocation)
    K, size, sampling = federation.num_clients, federation.cohort_size, federation.sampling
    assert size is not None  # resolved by Federation
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
    return [DirectionClients(sampling, size, law, weight, carry, normalizer) for carry in carries]


# Binomial and Poisson probabilities from `scipy.stats`, imported on first use.
#
# The import takes longer than most closed forms, and uniform cohorts of clients with equal weights
# need whole numbers only.

Numbers = float | NDArray[np.floating] | NDArray[np.int64]


def binomial_pmf(count: Numbers, size: Numbers, chance: Numbers) -> Array:
    """Return the probability of `count` successes in `size` trials; arguments broadcast."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(count, size, chance), dtype=np.float64)


def poisson_pmf(count: Numbers, mean: Numbers) -> Array:
    """Return the probability of `count` events if `mean` are expected; arguments broadcast."""
    from scipy.stats import poisson

    return np.asarray(poisson.pmf(count, mean), dtype=np.float64)


# Probability of a cohort without a carrier of a direction. Our derivation


def empty_cohort(clients: DirectionClients) -> float:
    """Return the probability that no drawn client carries the direction.

    Without replacement `C(K-n, m) / C(K, m)` with n carriers; with replacement
    `(1 - P[one draw selects a carrier])^m`; Bernoulli `(s^n - s^K) / (1 - s^K)` with `s = 1 - m/K`,
    or `s^n` if the empty cohort counts. If carriers are random, the mean of the product of
    `1 - c_k` over the drawn clients.

    Args:
        clients: the clients from the view of one direction.

    Returns:
        The probability; exactly 0 if every client carries the direction.
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


def _bernoulli(clients: DirectionClients) -> float:
    p = clients.size / clients.number
    none = float(np.log1p(-p * clients.carry).sum())
    if not clients.redrawn:
        return math.exp(none)
    no_client = float(np.log1p(np.full(clients.number, -p)).sum())
    # both differences by expm1, without cancellation
    return max(0.0, -math.exp(none) * math.expm1(no_client - none) / -math.expm1(no_client))


def _mean_product(factors: np.ndarray, size: int) -> float:
    """Return the mean over all subsets of `size` clients of the product of their factors."""
    means, steps = np.zeros(size + 1), np.arange(1, size + 1)
    means[0] = 1.0
    for k, factor in enumerate(factors, start=1):
        # a subset of j of the first k clients contains the k-th one with probability j / k
        stays, takes = np.maximum(k - steps, 0) / k, np.minimum(steps, k) / k
        means[1:] = stays * means[1:] + takes * factor * means[:-1]
    return float(means[size])


def _repeated(clients: DirectionClients) -> float:
    """Return the probability with replacement: independent Poisson counts, given their sum m."""
    size, counts = clients.size, np.arange(clients.size + 1)
    chance = np.zeros(size + 1)
    chance[0] = 1.0
    for law, carry in zip(clients.law, clients.carry, strict=True):
        factor = poisson_pmf(counts, size * law)
        factor[1:] *= 1.0 - carry
        chance = np.convolve(chance, factor)[: size + 1]
    return float(chance[size] / poisson_pmf(size, size))


# The result of every exact route: the joint distribution of two sums of weights


@dataclass(frozen=True, eq=False)
class Sums:
    """Outcomes of one cohort, with weights that are not normalized; arrays have shape (n,).

    Args:
        probability: probability of each outcome, up to a common factor.
        contributing: sum of the weights of drawn clients that carry the direction.
        other: sum of the weights of the others; arbitrary if the normalizer does not need it.
        squares: expected sum of squared weights of the contributors, given the outcome.
    """

    probability: Array
    contributing: Array
    other: Array
    squares: Array

    def law(self, clients: DirectionClients) -> ShareLaw:
        """Return the distribution of the normalized weights."""
        keep = (self.contributing > 0) & (self.probability > 0)
        contributing = self.contributing[keep]
        norm = clients.norm(contributing, self.other[keep])
        return share_law(
            self.probability[keep],
            contributing / norm,
            self.squares[keep] / norm**2,
            empty_cohort(clients),
        )
