"""Laws that a rule declares about itself, which the conformance suite checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Declared = bool | None
"""True: the law holds, and no counterexample may be found. False: it does not hold, and one must be

found. None: the rule makes no claim, and nothing is tested.
"""

Gauge = Literal["full", "partition", "none"]
Hull = Literal["whole", "partition", "none"]
LowRankClient = Literal["keeps", "dilutes"]
Coverage = Literal["weights", "norms", "weights_and_norms"]


@dataclass(frozen=True, kw_only=True)
class Properties:
    """Laws of aggregation, each declared to hold, not to hold, or left open (None).

    `dW_k = s_k B_k A_k` is client k's update and `w_k` its weight. The result is the whole update,
    including what is merged into the base. Unless stated otherwise, a law applies to the first
    round of a cohort whose highest rank level is min(d_in, d_out), so that nothing is truncated.
    Shapes, dtypes, finite results and purity are also checked in later rounds. The other laws
    extend to later rounds for a rule that is `stateless`; for a rule that keeps state, laws about
    the representation of a cohort are checked over several rounds. Clients carry their first r_k
    directions, or any r_k of them if the rule accepts `positions`; laws about partitions assume the
    first r_k.

    Args:
        client_order: the result does not depend on the order of the clients.
        weight_scale: multiplying all weights by a positive number changes nothing. Engines pass
            weights up to a common factor, so a rule that declares False behaves differently there.
        weight_repetition: a client of weight 2 equals the same client of weight 1 listed twice.
        zero_weight: a client of weight 0 changes nothing.
        single_client: the result of a single client is its update.
        identical_clients: the result of identical updates is that update.
        homogeneous: multiplying all updates by c > 0 multiplies the result by c.
        scaling_convention: the same updates written with other scalings give the same result.
        orthogonal: `P dW_k Q^T` with orthogonal P, Q gives `P result Q^T`.
        transpose: transposed updates, A and B exchanged, give the transposed result.
        linear: the result is a linear function of the updates for fixed weights.
        exact: the result is the weighted mean of the updates.
        best_approximation: the result is the best approximation of the weighted mean of the updates
            at the highest rank level (Eckart and Young 1936).
        rank_bound: the rank of the whole update is at most the highest rank level.
        energy_hull: the norm is at most the largest client's: of the `whole` update, per
            `partition`, or not at all (`none`).
        gauge: the result is the same for `B G, G^-1 A` with any invertible G (`full`), with G that
            mixes within partitions only (`partition`), or for neither (`none`).
        partition_identity: partition h equals that of FedAvg divided by its coverage `W_h`.
        equal_ranks_fedavg: with equal ranks the rule equals FedAvg.
        nonfinite: NaN and infinity are refused or visible in the result; False for rules that leave
            out the clients that send them.
        low_rank_client: another client of the lowest rank `keeps` the partitions above that rank
            unchanged, or always `dilutes` them.
        empty_partitions: partitions without contributors follow `empty_partition` (True); None for
            rules without that policy.
        unknown_level: a client whose rank is not a level of the federation is refused.
        continuous: a small change of the updates gives a small change of the result.
        batched: aggregating a batch of layers equals aggregating them one by one.
        stateless: earlier rounds have no effect except through `previous`. False for rules that
            keep a momentum or other state.
        positions: the rank index of each column is respected: columns may be listed in any order,
            and rank indices may be permuted. None for rules that refuse positions.
        gap_needed: the rule uses singular vectors of single updates: laws assume that the singular
            values of an update are separated.
        common_a: clients share the rows of one frozen A; the rule refuses other cohorts.
        equal_ranks_only: the rule refuses cohorts of unequal ranks.
        multiplier: factor on the amplitude of a direction that all contributors return alike, as a
            function of its coverage, a tensor of shares in [0, 1].
        coverage: quantity whose shares are the coverage: `weights` of the clients, `norms` of their
            updates, or the products of both.
    """

    client_order: Declared = True
    weight_scale: Declared = True
    weight_repetition: Declared = True
    zero_weight: Declared = True
    single_client: Declared = True
    identical_clients: Declared = True
    homogeneous: Declared = True
    scaling_convention: Declared = True
    orthogonal: Declared = True
    transpose: Declared = None
    linear: Declared = None
    exact: Declared = None
    best_approximation: Declared = None
    rank_bound: Declared = None
    energy_hull: Hull | None = None
    gauge: Gauge | None = None
    partition_identity: Declared = None
    equal_ranks_fedavg: Declared = None
    nonfinite: Declared = True
    low_rank_client: LowRankClient | None = None
    empty_partitions: Literal[True] | None = None
    unknown_level: Declared = None
    continuous: Declared = None
    batched: Declared = None
    stateless: Declared = True
    positions: Declared = True
    gap_needed: bool = False
    common_a: bool = False
    equal_ranks_only: bool = False
    multiplier: Callable[[Tensor], Tensor] | None = None
    coverage: Coverage = "weights"


def counted_weights(coverage: Coverage, weights: Tensor, norms: Tensor | None) -> Tensor:
    """Return the quantity whose shares are the coverage, (..., K); zero for absent clients.

    If the norms of all present clients are zero, all of these count alike (`norms`) or by their
    weights (`weights_and_norms`).

    Args:
        coverage: the quantity, as a rule declares it.
        weights: unnormalized client weights, (..., K); zero for absent clients.
        norms: `||dW_k||_F`, (..., K); None is enough for `weights`.
    """
    if coverage == "weights":
        return weights
    assert norms is not None  # declared with the coverage
    present = weights if coverage == "weights_and_norms" else (weights > 0).to(norms.dtype)
    moved = present * norms
    return present.where(moved.sum(-1, keepdim=True) == 0, moved)


def of_product_average(usual: Properties) -> Properties:
    """Return the laws of an average of the products `B A` over the cohort, added to the usual laws.

    The average is linear and exact before truncation, depends on products alone, and is diluted by
    clients that do not carry a direction.
    """
    return replace(
        usual,
        transpose=True,
        linear=True,
        exact=True,
        best_approximation=True,
        rank_bound=True,
        energy_hull="whole",
        gauge="full",
        partition_identity=False,
        equal_ranks_fedavg=True,
        low_rank_client="dilutes",
        continuous=True,
    )


def of_factor_average(usual: Properties) -> Properties:
    """Return the laws of every separate average of A and of B, added to the usual laws.

    Cross terms of different clients' A and B make the average neither linear nor exact. Its norm
    can exceed that of every client, and it depends on the factorization of an update.
    """
    return replace(
        usual,
        transpose=True,
        linear=False,
        exact=False,
        best_approximation=False,
        rank_bound=True,
        energy_hull="none",
        gauge="none",
        partition_identity=False,
        equal_ranks_fedavg=False,
    )
