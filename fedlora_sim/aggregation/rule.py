"""What an aggregation rule is: weights for every (client, direction), and where the average goes.

A rule sees the cohort's factors as rank-one columns, `(b_j, a_j)`, each owned by a client and
standing at a rank position. Every rule of this family gives each column a weight and sums, either
the products (product space) or the factors position by position (factor space); some merge what
the adapter misses of the exact sum into the frozen base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlora_sim.aggregation.averages import average_factors, split, with_columns
from fedlora_sim.aggregation.cohort import Cohort
from fedlora_sim.aggregation.options import option_defaults, rule_label
from fedlora_sim.aggregation.properties import Coverage, Properties
from fedlora_sim.aggregation.protocol import NO_STATE, Context, State
from fedlora_sim.aggregation.result import Aggregated
from fedlora_sim.aggregation.round import check_result, check_round
from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct

Space = Literal["product", "factor", "none"]
Finish = Callable[[LoRAFactors], LoRAFactors]


@dataclass(frozen=True)
class AggregationRule(ABC):
    """A server rule: pure, and the same on every device. Its options are its fields.

    It meets the protocol `Aggregator`, and says in `properties` which laws it keeps.

    Class attributes:
        name: what the rule is called in `get_rule` and on the command line.
        source: paper and place that define it.
        space: the adapter is averaged as products, factor by factor, or (`none`) not at all:
            clients start every round with a fresh one.
        residual_in_base: what the adapter misses of the exact weighted sum of products is merged
            into the frozen base.
        frozen_a: clients train B alone; A is theirs in common.
        weights_from_norms: the weights depend on the norms of the updates.
        has_empty_partition_policy: a direction without contributors can be carried over from the
            last round.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    space: ClassVar[Space] = "product"
    residual_in_base: ClassVar[bool] = False
    frozen_a: ClassVar[bool] = False
    weights_from_norms: ClassVar[bool] = False
    has_empty_partition_policy: ClassVar[bool] = False

    @abstractmethod
    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Normalised weight of every client in every direction.

        Args:
            weights: unnormalised client weights, (..., K), with a positive sum.
            members: which directions each client carries, boolean, broadcastable to (..., K, q).
            norms: `||dW_k||_F`, (..., K), for rules with `weights_from_norms`.

        Returns:
            Shape (..., K, q), zero where the client does not carry the direction.
        """

    @abstractmethod
    def multiplier(self, coverage: Tensor) -> Tensor:
        """Declared factor on the amplitude of a direction that every contributor returns alike.

        Args:
            coverage: weight share of the cohort's contributors to the direction, `W_h` in [0, 1];
                with `weights_from_norms` the share of those weights.

        Returns:
            Same shape, of the whole update in one round; tests measure it on real factors.
        """

    @property
    def label(self) -> str:
        """The name with the options that are not at their default, as `get_rule` reads it."""
        return rule_label(self)

    @property
    def options(self) -> dict[str, object]:
        """Options of the rule, with their defaults."""
        return option_defaults(type(self))

    @property
    def properties(self) -> Properties:
        """Laws that the rule keeps: those that are usual, unless it says more."""
        coverage: Coverage = "norms" if self.weights_from_norms else "weights"
        return Properties(
            batched=True,
            unknown_level=True,
            empty_partitions=True if self.has_empty_partition_policy else None,
            positions=None if self.needs_svd_allocation else True,
            gap_needed=self.needs_svd_allocation,
            common_a=self.frozen_a,
            multiplier=self.multiplier,
            coverage=coverage,
        )

    @property
    def is_linear(self) -> bool:
        """Whether the adapter is a linear function of the updates, given the weights."""
        return (self.space != "factor" or self.frozen_a) and not self.weights_from_norms

    @property
    def has_spectral_form(self) -> bool:
        """Whether the rule does to amplitudes in a fixed basis what its declarations say.

        True unless it overrides how updates are prepared or averaged; a rule that does and still
        keeps to its declarations says so by overriding this.
        """
        own, usual = type(self), AggregationRule
        steps = ("prepare", "adapter", "aggregate")
        return all(getattr(own, step) is getattr(usual, step) for step in steps)

    @property
    def needs_svd_allocation(self) -> bool:
        """Whether rank index i must mean the i-th strongest direction."""
        return False

    def prepare(self, cohort: Cohort) -> Cohort:
        """The cohort as the rule wants it; most take it as it is."""
        return cohort

    def rescale(self, adapter: LoRAFactors, scaling: float) -> LoRAFactors:
        """The adapter written with another scaling; a frozen A stays as it is."""
        if not self.frozen_a:
            return adapter.rescale(scaling)
        share = adapter.scaling / scaling
        return LoRAFactors(adapter.lora_A, adapter.lora_B * share, scaling)

    def compress(self, base: LowRankProduct) -> LowRankProduct:
        """The base correction as the rule keeps it; most keep it exact."""
        return base

    @torch.no_grad()
    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Aggregate one round, checked; see `Aggregator.step`.

        Raises:
            ValueError: naming the argument, its value and what was expected.
        """
        checked = check_round(
            updates,
            weights,
            rank_levels=context.rank_levels,
            positions=context.positions,
            previous=context.previous,
            empty_partition=context.empty_partition,
            svd_only=self.label if self.needs_svd_allocation else None,
        )
        result = self.aggregate(
            checked.cohort,
            context.previous,
            checked.empty_partition,
            lambda adapter: adapter.to(checked.dtype),
            state,
        )
        return check_result(result), result.state

    def aggregate(
        self,
        cohort: Cohort,
        previous: LoRAFactors | None = None,
        empty_partition: str = "carry",
        finish: Finish = lambda adapter: adapter,
        state: State = NO_STATE,
    ) -> Aggregated:
        """Aggregate one round; rules of this family keep no state.

        Args:
            cohort: the updates.
            previous: the last global adapter, of rank r_max.
            empty_partition: `zero | carry | error`, for rules with such a policy.
            finish: cuts, rescales or rounds the adapter before it is handed out; what that takes
                away is part of what a base correction makes up for.
            state: what the rule left in its last result.

        Returns:
            The global adapter, rank r_max, and the base correction if the rule has one.

        Raises:
            ValueError: if a partition is empty under `error`, or under `carry` without `previous`.
        """
        cohort = self.prepare(cohort)
        norms = cohort.norms() if self.weights_from_norms else None
        shares = self.direction_weights(cohort.weights, cohort.members, norms)
        empty = self._empty(cohort)
        kept = self._kept(cohort, empty, previous, empty_partition)
        mask = empty.to(cohort.dtype)
        exact = cohort.product(shares)
        if kept is not None:
            exact = with_columns(exact, kept, mask)
        adapter = finish(self.adapter(cohort, shares, exact, kept, mask))
        if not self.residual_in_base:
            return Aggregated(adapter)
        base = exact
        if self.space != "none":
            base = with_columns(exact, adapter, -mask.new_ones(adapter.rank))
        kept_base = self.compress(base)
        return Aggregated(adapter, kept_base, exact if kept_base is base else None)

    def adapter(
        self,
        cohort: Cohort,
        shares: Tensor,
        exact: LowRankProduct,
        kept: LoRAFactors | None,
        mask: Tensor,
    ) -> LoRAFactors:
        """The global adapter of a round.

        Args:
            cohort: the updates.
            shares: normalised weights, (..., K, r_max).
            exact: the weighted sum of products, kept columns included.
            kept: the last global adapter, where a policy keeps columns of it.
            mask: 1 for the rank indices without contributors, (..., r_max).

        Returns:
            Factors of rank r_max.
        """
        if self.space == "product":
            return split(exact, cohort.r_max)
        if self.space == "factor":
            return average_factors(cohort, shares, shares, kept=kept, mask=mask)
        first = cohort.updates[0]
        batch = torch.broadcast_shapes(first.lora_A.shape[:-2], shares.shape[:-2])
        zeros = first.lora_A.new_zeros
        r, dtype = cohort.r_max, cohort.dtype
        return LoRAFactors(
            zeros(*batch, r, first.d_in, dtype=dtype), zeros(*batch, first.d_out, r, dtype=dtype)
        )

    def _empty(self, cohort: Cohort) -> Tensor:
        """Rank indices that nobody in the cohort contributes to, boolean (..., r_max)."""
        taking_part = cohort.members & (cohort.weights > 0).unsqueeze(-1)
        return ~taking_part.any(dim=-2)

    def _kept(
        self, cohort: Cohort, empty: Tensor, previous: LoRAFactors | None, empty_partition: str
    ) -> LoRAFactors | None:
        """The last global adapter, if columns of it stay because nobody contributed to them."""
        if not self.has_empty_partition_policy:
            return None
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
        return previous
