"""What a law of weights depends on: who is drawn how, weighs what, and carries the direction.

Under SVD allocation a client carries a direction surely or never; under random allocation with
probability `r_k / r_max`, anew every round. Both are one number per client, so every route to a law
serves both. The weights are written down from their definition (Wu et al., arXiv 2602.13486, Sec. 3
and Eq. 8); nothing here depends on the simulator's aggregation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.cohorts.law import Array
from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import ALLOCATIONS, Federation

NORMALISERS = ("cohort", "contributors", "federation")


def allocation_of(allocation: str) -> str:
    """`svd` or `random`: what clients carry must not depend on the state.

    Raises:
        ValueError: on anything else.
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
        ValueError: on an unknown normaliser or allocation; on `importance`, which depends on the
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
