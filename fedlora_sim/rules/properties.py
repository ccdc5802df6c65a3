"""What a rule says of itself, so that it can be held to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Declared = bool | None
"""True: the law holds, and no counterexample may be found. False: it does not, and one must be
found. None: nothing is said, and nothing is tested."""

Gauge = Literal["full", "partition", "none"]
Hull = Literal["whole", "partition", "none"]
LowRankClient = Literal["keeps", "dilutes"]
Coverage = Literal["weights", "norms", "weights_and_norms"]


@dataclass(frozen=True, kw_only=True)
class Properties:
    """Laws of aggregation, each declared present, absent or left open.

    `dW_k = s_k B_k A_k` is client k's update, `w_k` its weight, and the result the whole update,
    with what goes into the base. Where nothing else is said, laws speak of cohorts whose highest
    rank level is min(d_in, d_out), so that nothing is cut, and of a first round. Shapes, dtypes,
    finite results and purity are checked in later rounds too; all other laws follow there for a
    rule that is `stateless`, and those on how a cohort is written down are checked over several
    rounds for one that is not. Clients carry their first r_k directions, or any r_k of them where
    a rule takes `positions`; laws on partitions speak of the first r_k alone.

    Args:
        client_order: the order of the clients does not matter.
        weight_scale: all weights times a positive number change nothing. Engines hand in weights
            up to a common factor: a rule of which this is False is another one there.
        weight_repetition: a client of weight 2 is the client of weight 1 twice.
        zero_weight: a client of weight 0 changes nothing.
        single_client: one client alone comes back as it is.
        identical_clients: as many copies of one update come back as it is.
        homogeneous: all updates times c > 0 give c times the result.
        scaling_convention: the same updates written with other scalings give the same result.
        orthogonal: `P dW_k Q^T` with orthogonal P, Q give P times the result times Q^T.
        transpose: transposed updates, A and B exchanged, give the transposed result.
        linear: the result is a linear function of the updates, given the weights.
        exact: the result is the weighted mean of the updates.
        best_approximation: the result is the best approximation, of the highest rank level, of the
            weighted mean of the updates (Eckart and Young 1936).
        rank_bound: the whole update has no more rank than the highest level.
        energy_hull: its norm is at most the largest client's, as a `whole`, or partition by
            partition, or neither (`none`).
        gauge: `B G, G^-1 A` is the same update for any invertible G (`full`), for those that mix
            within partitions alone (`partition`), or for neither (`none`).
        partition_identity: partition h is FedAvg's, divided by its coverage `W_h`.
        equal_ranks_fedavg: with equal ranks the rule is FedAvg.
        nonfinite: NaN and infinity are refused or show in the result; False for rules that leave
            out clients who send such.
        low_rank_client: one more client of the lowest rank `keeps` the partitions above it as they
            are, or always `dilutes` them.
        empty_partitions: partitions without contributors are lost, carried or refused, as
            `empty_partition` says (True); a rule without that policy says None.
        unknown_level: a client of a rank that is no level of the federation is refused.
        continuous: a small change of the updates is a small change of the result.
        batched: layers in a batch are layers one by one.
        stateless: earlier rounds change nothing except through `previous`. False for rules that
            keep a momentum or anything else that matters.
        positions: the rank index of every column is respected: columns may be listed in any order,
            and rank indices may be numbered in another order. None for rules that refuse positions.
        gap_needed: the rule looks at singular vectors of single updates: laws are of updates whose
            singular values lie apart.
        common_a: clients share the rows of one frozen A; other cohorts are no input of the rule.
        equal_ranks_only: cohorts of unequal ranks are no input of the rule.
        multiplier: factor on a direction that every contributor returns alike, of its coverage, a
            tensor of shares in [0, 1].
        coverage: shares of what: of the clients' `weights`, of their `norms`, or of the products.
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


def of_factor_average(usual: Properties) -> Properties:
    """The laws of every average of A and of B apart, beside those that are usual.

    Cross terms of different clients' A and B make it neither linear nor exact, and its norm may be
    more than any client's; what it returns depends on how an update is written.
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
