"""What an aggregation rule is: weights for every (client, direction), and a space to average in.

A rule sees the cohort's factors as one stack of rank-one columns, `(b_j, a_j)`, each owned by a
client and standing at a rank position. Every rule of this family gives each column a weight and
sums, either the products (product space) or the factors position by position (factor space).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.factors import LoRAFactors, from_svd
from fedlora_sim.lowrank import compute_dtype, low_rank_svd

Space = Literal["product", "factor"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """A round's updates as one stack of columns, with what the server knows about their owners.

    Args:
        lora_A: all clients' rows one under the other, (..., R, d_in), R the sum of their ranks.
        lora_B: all clients' columns side by side, (..., d_out, R).
        owner: client slot of each column, (R,).
        position: rank index of each column within its client, (R,).
        scaling: LoRA scaling of each client, (K,).
        weights: unnormalised aggregation weight of each client (its sample count), (..., K).
        members: which rank indices each client carries, boolean (..., K, r_max).
    """

    lora_A: Tensor
    lora_B: Tensor
    owner: Tensor
    position: Tensor
    scaling: Tensor
    weights: Tensor
    members: Tensor

    @property
    def r_max(self) -> int:
        """Highest rank level of the federation."""
        return self.members.shape[-1]

    @classmethod
    def from_updates(
        cls, updates: Sequence[LoRAFactors], weights: Tensor, levels: Sequence[int]
    ) -> Cohort:
        """Stack the updates of a cohort whose ranks are among the federation's `levels`."""
        device, ranks = updates[0].device, [u.rank for u in updates]
        dtype = compute_dtype(updates[0].dtype)
        ranks_t = torch.tensor(ranks, device=device)
        return cls(
            lora_A=torch.cat([u.lora_A for u in updates], dim=-2).to(dtype),
            lora_B=torch.cat([u.lora_B for u in updates], dim=-1).to(dtype),
            owner=torch.arange(len(ranks), device=device).repeat_interleave(ranks_t),
            position=torch.cat([torch.arange(r, device=device) for r in ranks]),
            scaling=torch.tensor([u.scaling for u in updates], dtype=dtype, device=device),
            weights=weights.to(dtype).to(device),
            members=ranks_t[:, None] > torch.arange(max(levels), device=device),
        )


class AggregationRule(ABC):
    """A server rule: pure, stateless, and the same on every device.

    Laws, for every rule of the family:
        the order of the clients does not matter; multiplying all weights by a positive number
        changes nothing; a client of weight 0 changes nothing; one client alone is returned as it
        is (as a product), padded to rank r_max; alpha/r is part of every update.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    space: ClassVar[Space]

    @abstractmethod
    def direction_weights(self, weights: Tensor, members: Tensor) -> Tensor:
        """Normalised weight of every client in every direction.

        Args:
            weights: unnormalised client weights, (..., K), with a positive sum.
            members: which directions each client carries, boolean, broadcastable to (..., K, q).

        Returns:
            Shape (..., K, q), zero where the client does not carry the direction.
        """

    @abstractmethod
    def multiplier(self, coverage: Tensor) -> Tensor:
        """Declared factor on the amplitude of a direction that every contributor returns alike.

        Args:
            coverage: weight share of the cohort's contributors to the direction, `W_h` in [0, 1].

        Returns:
            Same shape; tests measure it on real factors.
        """

    @property
    def has_empty_partition_policy(self) -> bool:
        """Whether a direction without contributors can be carried over from the last round."""
        return False

    def aggregate(
        self,
        cohort: Cohort,
        previous: LoRAFactors | None = None,
        empty_partition: str = "carry",
    ) -> LoRAFactors:
        """Aggregate one round.

        Args:
            cohort: the stacked updates.
            previous: the last global update, of rank r_max.
            empty_partition: `zero | carry | error`, for rules with such a policy.

        Returns:
            The global update, rank r_max.

        Raises:
            ValueError: if a partition is empty under `error`, or under `carry` without `previous`.
        """
        shares = self.direction_weights(cohort.weights, cohort.members)
        if self.space == "factor":
            return _average_factors(cohort, shares)
        kept = self._kept_columns(cohort, previous, empty_partition)
        return _average_products(cohort, shares, kept)

    def _kept_columns(
        self, cohort: Cohort, previous: LoRAFactors | None, empty_partition: str
    ) -> LoRAFactors | None:
        """Columns of the last global update that stay because nobody contributed to them."""
        if not self.has_empty_partition_policy:
            return None
        taking_part = cohort.members & (cohort.weights > 0).unsqueeze(-1)
        empty = ~taking_part.any(dim=-2)
        if empty_partition == "zero" or not bool(empty.any()):
            return None
        if empty_partition == "error":
            first = int(empty.reshape(-1, cohort.r_max).any(0).nonzero()[0])
            raise expected(
                "empty_partition",
                "error",
                f"a contributor to every partition; rank index {first} has none in this cohort",
            )
        if previous is None:
            raise expected(
                "previous",
                None,
                "the last global update, since empty_partition='carry' and a partition of this "
                "cohort has no contributor (or choose empty_partition='zero')",
            )
        mask = empty.to(cohort.lora_B.dtype)
        lora_b = previous.lora_B.to(mask.dtype) * mask.unsqueeze(-2)
        return LoRAFactors(previous.lora_A.to(mask.dtype), lora_b, previous.scaling)


def _column_weights(cohort: Cohort, shares: Tensor) -> Tensor:
    """Weight of every stacked column, (..., R), from those of every (client, direction)."""
    return shares[..., cohort.owner, cohort.position]


def _average_products(cohort: Cohort, shares: Tensor, kept: LoRAFactors | None) -> LoRAFactors:
    """`sum_j w_j s_j b_j a_j` over all columns, as the balanced split of its SVD at rank r_max."""
    weights = _column_weights(cohort, shares) * cohort.scaling[cohort.owner]
    lora_b, lora_a = cohort.lora_B * weights.unsqueeze(-2), cohort.lora_A
    if kept is not None:
        lora_b = torch.cat([lora_b, kept.scaling * kept.lora_B], dim=-1)
        lora_a = torch.cat([lora_a, kept.lora_A], dim=-2)
    return from_svd(*low_rank_svd(lora_b, lora_a, cohort.r_max), r=cohort.r_max)


def _average_factors(cohort: Cohort, shares: Tensor) -> LoRAFactors:
    """Average A and B apart, position by position; scalings that differ are shared by A and B.

    Factors can only be averaged when they are written with one scaling. Equal scalings are kept,
    and the factors averaged as they are; otherwise each client's is split evenly, sqrt(s_k) on A
    and on B, and the result has scaling 1.
    """
    common = bool((cohort.scaling == cohort.scaling[0]).all())
    scaling = float(cohort.scaling[0]) if common else 1.0
    if not common and bool((cohort.scaling <= 0).any()):
        raise expected("scaling", cohort.scaling.tolist(), "positive scalings where they differ")
    weights = _column_weights(cohort, shares)
    if not common:
        weights = weights * cohort.scaling[cohort.owner].sqrt()
    lora_b = cohort.lora_B.new_zeros(*cohort.lora_B.shape[:-1], cohort.r_max)
    lora_a = cohort.lora_A.new_zeros(
        *cohort.lora_A.shape[:-2], cohort.r_max, cohort.lora_A.shape[-1]
    )
    lora_b.index_add_(-1, cohort.position, cohort.lora_B * weights.unsqueeze(-2))
    lora_a.index_add_(-2, cohort.position, cohort.lora_A * weights.unsqueeze(-1))
    return LoRAFactors(lora_a, lora_b, scaling)
