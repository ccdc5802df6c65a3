"""The two normalisations of client weights that the rules are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.aggregation.rule import AggregationRule


def data_shares(weights: Tensor, members: Tensor) -> Tensor:
    """Share of the whole cohort, wherever the client carries the direction: `w_k / sum_S w`.

    Args:
        weights: unnormalised client weights, (..., K).
        members: boolean, broadcastable to (..., K, q).

    Returns:
        (..., K, q); sums to the coverage of each direction.
    """
    return (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1) * members


def contributor_shares(weights: Tensor, members: Tensor) -> Tensor:
    """Share among the contributors to the direction: `w_k / sum_{S & C_h} w`.

    Args and returns as for `data_shares`; sums to 1 where there is a contributor, else to 0.
    """
    contributing = weights.unsqueeze(-1) * members
    total = contributing.sum(-2, keepdim=True)
    return contributing / torch.where(total > 0, total, 1.0)


class DataWeightedRule(AggregationRule):
    """A rule that weighs every client by its samples, whatever the others carry."""

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """`p_k` of the cohort wherever the client carries the direction."""
        return data_shares(weights, members)
