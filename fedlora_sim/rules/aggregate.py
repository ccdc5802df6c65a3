"""`aggregate`: check one round of LoRA updates and apply an aggregation rule to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora_sim.errors import check_finite, check_positive_int, expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules.base import NO_STATE, AggregationRule, Aggregator, State
from fedlora_sim.rules.cohort import Aggregated, check_result, check_round
from fedlora_sim.rules.registry import get_rule
from fedlora_sim.runtime import full_precision


@torch.no_grad()
@full_precision()
def aggregate(
    updates: Sequence[LoRAFactors],
    num_samples: Sequence[float] | None,
    rule: str | AggregationRule | Aggregator = "raflora",
    *,
    rank_levels: Sequence[int] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    previous: LoRAFactors | None = None,
    empty_partition: str = "carry",
    rank: int | None = None,
    scaling: float | None = None,
    state: State = NO_STATE,
) -> Aggregated:
    """Aggregate the LoRA updates of one round's cohort.

    Args:
        updates: one update per client: `lora_A` (..., r_k, d_in), `lora_B` (..., d_out, r_k), each
            with its own scaling. All share the leading dimensions (layers of one shape), the dtype
            and the device. Any sequence works, including one that loads a client when it is
            indexed: if the ranks sum to more than min(d_in, d_out), only one client is in memory
            at a time.
        num_samples: sample count `n_k` of every client of the cohort; None gives equal weights.
        rule: name of a rule (see `rule_names`), with options as in `raflora:canonicalize=true`, or
            a rule object: an `AggregationRule` or any `Aggregator`.
        rank_levels: distinct ranks of the *federation*. None assumes that the updates are the
            whole federation; a server that samples clients must pass its levels.
        positions: rank index of each column of each client, for clients that received directions
            other than the first r_k.
        previous: the last global adapter, of rank `max(rank_levels)`. `carry` takes the empty
            partitions from it.
        empty_partition: what to do with a partition that has no contributor: set it to zero
            (`zero`), keep it from `previous` (`carry`) or raise an error (`error`). Applies to
            `raflora` and `rbla` only.
        rank: truncate the adapter to its first `rank` components.
        scaling: LoRA scaling of the returned adapter.
        state: `Aggregated.state` of the last round, for rules that keep state.

    Returns:
        The global adapter, of rank `max(rank_levels)`, and the correction that `flora` and `fedex`
        merge into the base. Product-space rules return the balanced split `B = U sqrt(S)`,
        `A = sqrt(S) V^T` with scaling 1; factor-space rules return their averaged factors.
        Half-precision inputs are aggregated in float32; the adapter is returned in their dtype.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 5, Algorithm 1, for `raflora`; see the other rules'
        classes for their sources.
    """
    chosen = get_rule(rule)
    checked = check_round(
        updates,
        num_samples,
        rank_levels=rank_levels,
        positions=positions,
        previous=previous,
        empty_partition=empty_partition,
        svd_only=chosen.label if chosen.needs_svd_allocation else None,
    )
    cut = _check_rank(rank, checked.cohort.r_max)
    _check_scaling(scaling)

    def finish(adapter: LoRAFactors) -> LoRAFactors:
        adapter = adapter.truncate(cut)
        adapter = adapter if scaling is None else chosen.rescale(adapter, scaling)
        return adapter.to(checked.dtype)

    found = chosen.aggregate(checked.cohort, previous, checked.empty_partition, finish, state)
    return check_result(found)


def _check_rank(rank: int | None, r_max: int) -> int:
    cut = r_max if rank is None else check_positive_int("rank", rank)
    if cut > r_max:
        raise expected("rank", rank, f"at most the highest rank level, {r_max}")
    return cut


def _check_scaling(scaling: float | None) -> None:
    if scaling is not None and check_finite("scaling", scaling) <= 0:
        raise expected("scaling", scaling, "a positive number")
