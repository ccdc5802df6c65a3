"""The base class of aggregation rules: protocol, weights, averages and options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors, best_factors
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.rules.cohort import Aggregated, Cohort, check_result, check_round
from fedlora_sim.rules.properties import Coverage, Properties

# The protocol that every aggregation rule meets, this package's and yours.
#
# A rule is a pure function of a round: updates, weights, what else the server knows, and the
# rule's own state go in, the global update and the new state come out.

State = Mapping[str, Tensor]
"""What a rule keeps from round to round, by name; a name has no `/`."""

NO_STATE: State = MappingProxyType({})
"""The state before the first round."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a server knows of a round besides the updates.

    Args:
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry | error`: what becomes of a partition that nobody carries.
        positions: rank index of every column of every client; None: its first r_k.
    """

    rank_levels: tuple[int, ...]
    previous: LoRAFactors | None = None
    empty_partition: str = "carry"
    positions: Sequence[Sequence[int]] | None = None

    @property
    def r_max(self) -> int:
        """The highest rank level."""
        return self.rank_levels[-1]


class Aggregator(Protocol):
    """An aggregation rule; `name`, `source` and `properties` may be plain class attributes.

    A class of rules may be a dataclass whose fields are its options, each with a default. Two more
    attributes are read where a rule has them: `space`, where `factor` says that columns of the
    adapter keep their place, and `none` that clients start every round with a fresh adapter because
    all of the update goes into the base; and `frozen_a`, that clients train B alone, which a rule
    whose properties say `common_a` need not repeat.
    """

    @property
    def name(self) -> str:
        """What the rule is called, without `:` and `,`."""
        ...

    @property
    def source(self) -> str:
        """Paper and place that define it."""
        ...

    @property
    def properties(self) -> Properties:
        """The laws that it keeps, and those that it does not."""
        ...

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Aggregate one round of one layer, changing nothing that is handed in.

        Args:
            updates: of the cohort's clients, `lora_A` (r_k, d_in), `lora_B` (d_out, r_k), each with
                its scaling, of one dtype on one device.
            weights: of the clients: their sample counts up to a common positive factor. None is
                negative, and one at least is positive.
            context: what else the server knows.
            state: what the rule returned last round; empty in the first.

        Returns:
            The global update, its adapter of rank r_max, in dtype and on the device of the updates;
            and the state to hand in next round.
        """
        ...


# The two ways to average adapters: as products, or factor by factor


def with_columns(product: LowRankProduct, factors: LoRAFactors, mask: Tensor) -> LowRankProduct:
    """A product plus chosen columns of a global adapter.

    Args:
        product: the cohort's weighted sum.
        factors: factors of rank r_max.
        mask: weight of every rank index, (..., r_max).
    """
    dtype = product.dtype
    scaling = mask * factors.scaling
    return product.plus(factors.lora_B.to(dtype), factors.lora_A.to(dtype), scaling)


def split(product: LowRankProduct, r: int) -> LoRAFactors:
    """Best rank-r approximation of a product, `B = U sqrt(S)`, `A = sqrt(S) V^T`."""
    return best_factors(product, r)


def average_factors(
    cohort: Cohort,
    shares_b: Tensor,
    shares_a: Tensor,
    *,
    scaling_on_b: bool = False,
    kept: LoRAFactors | None = None,
    mask: Tensor | None = None,
) -> LoRAFactors:
    """Average A and B apart, position by position.

    Factors can only be averaged when they are written with one scaling. Equal scalings are kept,
    and the factors averaged as they are; otherwise each client's is split evenly, sqrt(s_k) on A
    and on B, and the result has scaling 1.

    Args:
        cohort: the updates.
        shares_b: weight of every (client, direction) on B, (..., K, r_max).
        shares_a: the same on A.
        scaling_on_b: put scalings that differ on B alone, for rules that leave A as it is.
        kept: the last global adapter, where columns of it stay; None keeps nothing.
        mask: 1 for every rank index that is kept, (..., r_max).

    Returns:
        Factors of rank r_max.

    Raises:
        InputError: if scalings differ and one of them is not positive.
    """
    scaling, on_b, on_a = _common_scaling(cohort, scaling_on_b)
    batch, d_out, d_in = _dims(cohort.updates[0])
    batch = torch.broadcast_shapes(batch, shares_b.shape[:-2])
    lora_b = shares_b.new_zeros(*batch, d_out, cohort.r_max)
    lora_a = shares_a.new_zeros(*batch, cohort.r_max, d_in)
    weights_b, weights_a = on_b * shares_b, on_a * shares_a

    def add(k: int, update: LoRAFactors) -> None:
        held = cohort.positions[k]
        w_b, w_a = weights_b[..., k, held], weights_a[..., k, held]
        lora_b.index_add_(-1, held, update.lora_B.to(cohort.dtype) * w_b.unsqueeze(-2))
        lora_a.index_add_(-2, held, update.lora_A.to(cohort.dtype) * w_a.unsqueeze(-1))

    for k in range(cohort.num_clients):
        add(k, cohort.updates[k])
    if kept is not None and mask is not None:
        last = kept.rescale(scaling)
        lora_b += last.lora_B.to(cohort.dtype) * mask.unsqueeze(-2)
        lora_a += last.lora_A.to(cohort.dtype) * mask.unsqueeze(-1)
    return LoRAFactors(lora_a, lora_b, scaling)


def _dims(update: LoRAFactors) -> tuple[torch.Size, int, int]:
    return update.lora_A.shape[:-2], update.d_out, update.d_in


def _common_scaling(cohort: Cohort, scaling_on_b: bool) -> tuple[float, Tensor, Tensor]:
    """The scaling of the average, and what of each client's goes to B and to A, (K, 1)."""
    scalings = cohort.scaling
    one = torch.ones_like(scalings).unsqueeze(-1)
    if bool((scalings == scalings[0]).all()):
        return cohort.updates[0].scaling, one, one
    if scaling_on_b:
        return 1.0, scalings.unsqueeze(-1), one
    if bool((scalings <= 0).any()):
        raise expected("scaling", scalings.tolist(), "positive scalings where they differ")
    root = scalings.sqrt().unsqueeze(-1)
    return 1.0, root, root


# Options of a rule: the fields of its class, written behind its name


def option_text(value: object) -> str:
    """An option's value as it is written behind a rule's name."""
    return str(value) if isinstance(value, str) else str(value).lower()


def option_defaults(cls: type) -> dict[str, object]:
    """Options of a class of rules, with their defaults.

    Raises:
        InputError: if one has no default: then no name stands for the rule.
    """
    known: tuple[Field[Any], ...] = fields(cls) if is_dataclass(cls) else ()
    return {field.name: _default(cls, field) for field in known if field.init}


def _default(cls: type, field: Field[Any]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    if field.default is MISSING:
        raise expected(f"{cls.__name__}.{field.name}", "no default", "options with a default")
    return field.default


def rule_label(rule: Any) -> str:
    """A rule's name with the options that are not at their default, as `get_rule` reads it."""
    usual = option_defaults(type(rule))
    changed = [(name, getattr(rule, name)) for name in usual if getattr(rule, name) != usual[name]]
    return ":".join([rule.name, *(f"{name}={option_text(value)}" for name, value in changed)])


# What an aggregation rule is: weights for every (client, direction), and where the average goes.
#
# A rule sees the cohort's factors as rank-one columns, `(b_j, a_j)`, each owned by a client and
# standing at a rank position. Every rule of this family gives each column a weight and sums,
# either the products (product space) or the factors position by position (factor space); some
# merge what the adapter misses of the exact sum into the frozen base.

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
            InputError: naming the argument, its value and what was expected.
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
            InputError: if a partition is empty under `error`, or under `carry` without `previous`.
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


# The two normalisations of client weights that the rules are made of


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
