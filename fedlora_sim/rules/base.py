"""The protocol of aggregation rules, their base class, weights and options.

Nothing here imports torch before a round is aggregated, so that rules can be listed in no time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fedlora_sim.errors import expected
from fedlora_sim.rules.properties import Coverage, Properties
from fedlora_sim.runtime import full_precision

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora_sim.lora import LoRAFactors
    from fedlora_sim.lowrank import LowRankProduct
    from fedlora_sim.rules.cohort import Aggregated, Cohort

# The protocol of aggregation rules, built-in and external.
#
# A rule is a pure function of one round. Its inputs are the updates, the weights, the context and
# the rule's own state; its outputs are the global update and the new state.

State = Mapping[str, "Tensor"]
"""State of a rule between rounds, by name; names contain no `/`."""

NO_STATE: State = MappingProxyType({})
"""The state before the first round."""


@dataclass(frozen=True, eq=False)
class Context:
    """The server's knowledge of a round besides the updates.

    Args:
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry | error`: what to do with a partition without contributors.
        positions: rank index of each column of each client; None means the first r_k.
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
    """Protocol of aggregation rules; `name`, `source` and `properties` may be class attributes.

    A rule class may be a dataclass whose fields are its options, each with a default. Two optional
    attributes are read: `space` (`factor`: columns of the adapter keep their position; `none`: the
    whole update goes into the base and clients start every round with a fresh adapter) and
    `frozen_a` (clients train B only; implied if the rule's properties declare `common_a`).
    """

    @property
    def name(self) -> str:
        """Name of the rule, without `:` and `,`."""
        ...

    @property
    def source(self) -> str:
        """Paper and section that define the rule."""
        ...

    @property
    def properties(self) -> Properties:
        """The laws that the rule declares to satisfy or to violate."""
        ...

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Aggregate one round of one layer without modifying the arguments.

        Args:
            updates: updates of the cohort's clients: `lora_A` (r_k, d_in), `lora_B` (d_out, r_k),
                each with its scaling, of one dtype and on one device.
            weights: client weights: the sample counts up to a common positive factor. None is
                negative and at least one is positive.
            context: the server's other knowledge of the round.
            state: the state that the rule returned in the last round; empty in the first round.

        Returns:
            The global update, whose adapter has rank r_max and the dtype and device of the updates,
            and the state for the next round.
        """
        ...


# Rule options: the fields of a rule class, appended to its name


def option_text(value: object) -> str:
    """Return the text of an option's value as it is written after a rule's name."""
    return str(value) if isinstance(value, str) else str(value).lower()


def option_defaults(cls: type) -> dict[str, object]:
    """Return the options of a rule class with their defaults.

    Raises:
        InputError: if an option has no default, so that the name alone does not define the rule.
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
    """Return the name of a rule and its non-default options, in the form that `get_rule` reads."""
    usual = option_defaults(type(rule))
    changed = [(name, getattr(rule, name)) for name in usual if getattr(rule, name) != usual[name]]
    return ":".join([rule.name, *(f"{name}={option_text(value)}" for name, value in changed)])


# The base class: weights for each (client, direction), and where the average goes.
#
# The cohort's factors are rank-one columns `(b_j, a_j)`. Each column belongs to a client and has a
# rank position. A rule of this family weighs the columns and sums them, either as products (product
# space) or position by position (factor space). Some rules also merge the difference between the
# exact weighted sum and the adapter into the frozen base.

Space = Literal["product", "factor", "none"]
Finish = Callable[["LoRAFactors"], "LoRAFactors"]


@dataclass(frozen=True)
class AggregationRule(ABC):
    """Base class of server rules: stateless, and deterministic on every device.

    The dataclass fields of a subclass are the rule's options. It implements `Aggregator` and
    declares its laws in `properties`.

    Class attributes:
        name: name of the rule for `get_rule` and the command line.
        source: paper and section that define the rule.
        title: name in texts and figures; empty: the label.
        space: the adapters are averaged as products (`product`), factor by factor (`factor`), or
            not at all (`none`: clients start every round with a fresh adapter).
        residual_in_base: the difference between the exact weighted sum of products and the adapter
            is merged into the frozen base.
        frozen_a: clients share A and train B only.
        weights_from_norms: the weights depend on the norms of the updates.
        has_empty_partition_policy: a direction without contributors can be kept from the last
            round.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    title: ClassVar[str] = ""
    space: ClassVar[Space] = "product"
    residual_in_base: ClassVar[bool] = False
    frozen_a: ClassVar[bool] = False
    weights_from_norms: ClassVar[bool] = False
    has_empty_partition_policy: ClassVar[bool] = False

    @abstractmethod
    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Return the normalized weight of each client in each direction.

        Args:
            weights: unnormalized client weights, (..., K), with a positive sum.
            members: which directions each client carries, boolean, broadcastable to (..., K, q).
            norms: `||dW_k||_F`, (..., K), for rules with `weights_from_norms`.

        Returns:
            Shape (..., K, q), zero where the client does not carry the direction.
        """

    @abstractmethod
    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return the declared factor on the amplitude of a direction in one round.

        The factor applies to the whole update if all contributors return the same direction. Tests
        compare it with real factors.

        Args:
            coverage: weight share of the direction's contributors in the cohort, `W_h` in [0, 1];
                with `weights_from_norms` the share of those weights.

        Returns:
            Same shape as `coverage`.
        """

    @property
    def label(self) -> str:
        """Name and non-default options, in the form that `get_rule` reads."""
        return rule_label(self)

    @property
    def display_name(self) -> str:
        """Name in texts and figures; the label if options are set."""
        return self.title if self.title and self.label == self.name else self.label

    @property
    def options(self) -> dict[str, object]:
        """Options of the rule with their defaults."""
        return option_defaults(type(self))

    @property
    def properties(self) -> Properties:
        """Laws that the rule satisfies; the usual ones unless a subclass declares others."""
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
    def declares_multiplier(self) -> bool:
        """True if `multiplier` can be called."""
        return True

    @property
    def is_linear(self) -> bool:
        """True if the adapter is a linear function of the updates for fixed weights."""
        return (self.space != "factor" or self.frozen_a) and not self.weights_from_norms

    @property
    def has_spectral_form(self) -> bool:
        """True if the rule acts on amplitudes in a fixed basis as it declares.

        False if the rule overrides how updates are prepared or averaged. A rule that overrides
        these and still acts as declared must override this property.
        """
        own, usual = type(self), AggregationRule
        steps = ("prepare", "adapter", "aggregate")
        return all(getattr(own, step) is getattr(usual, step) for step in steps)

    @property
    def needs_svd_allocation(self) -> bool:
        """True if rank index i must be the i-th strongest direction."""
        return False

    def prepare(self, cohort: Cohort) -> Cohort:
        """Return the cohort in the form that the rule needs; unchanged by default."""
        return cohort

    def rescale(self, adapter: LoRAFactors, scaling: float) -> LoRAFactors:
        """Return the adapter with another scaling; a frozen A is not changed."""
        if not self.frozen_a:
            return adapter.rescale(scaling)
        share = adapter.scaling / scaling
        return replace(adapter, lora_B=adapter.lora_B * share, scaling=scaling)

    def compress(self, base: LowRankProduct) -> LowRankProduct:
        """Return the base correction that the rule keeps; the exact one by default."""
        return base

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Check and aggregate one round; see `Aggregator.step`.

        Raises:
            InputError: if an argument is invalid; names the argument, its value and what was
                expected.
        """
        import torch

        from fedlora_sim.rules.cohort import check_result, check_round

        with torch.no_grad(), full_precision():
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
            finish: truncates, rescales or rounds the adapter. A base correction compensates what is
                lost in this step.
            state: the state that the rule returned in the last round.

        Returns:
            The global adapter, rank r_max, and the base correction if the rule has one.

        Raises:
            InputError: if a partition is empty under `error`, or under `carry` without `previous`.
        """
        from fedlora_sim.rules.averages import with_columns
        from fedlora_sim.rules.cohort import Aggregated

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
        """Return the global adapter of a round.

        Args:
            cohort: the updates.
            shares: normalized weights, (..., K, r_max).
            exact: the weighted sum of products, including kept columns.
            kept: the last global adapter, if a policy keeps columns of it.
            mask: 1 for the rank indices without contributors, (..., r_max).

        Returns:
            Factors of rank r_max.
        """
        from fedlora_sim.lora import best_factors
        from fedlora_sim.rules.averages import average_factors, zero_factors

        if self.space == "product":
            return best_factors(exact, cohort.r_max)
        if self.space == "factor":
            return average_factors(cohort, shares, shares, kept=kept, mask=mask)
        return zero_factors(cohort, shares)

    def _empty(self, cohort: Cohort) -> Tensor:
        """Return which rank indices have no contributor in the cohort, boolean (..., r_max)."""
        taking_part = cohort.members & (cohort.weights > 0).unsqueeze(-1)
        return ~taking_part.any(dim=-2)

    def _kept(
        self, cohort: Cohort, empty: Tensor, previous: LoRAFactors | None, empty_partition: str
    ) -> LoRAFactors | None:
        """Return the last global adapter if empty columns are kept from it, else None."""
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


# Normalizations of client weights


def data_shares(weights: Tensor, members: Tensor) -> Tensor:
    """Return the data weights `w_k / sum_S w` of the cohort, zero where not carried.

    Args:
        weights: unnormalized client weights, (..., K).
        members: which directions each client carries, boolean, broadcastable to (..., K, q).

    Returns:
        Shape (..., K, q). The sum over clients is the coverage of each direction.
    """
    return (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1) * members


def sum_over_clients(values: Tensor) -> Tensor:
    """Return the sums of (..., K, q) over the clients, (..., q), in the order of its memory.

    `Tensor.sum` writes its result row by row. Where another dimension is the last one in memory, as
    in the batches of the engines, it takes ten times as long.
    """
    import torch  # it takes seconds, and a table of the rules needs none

    if not isinstance(values, torch.Tensor):  # symbols, which have no memory
        return values.sum(-2)
    return torch.sum(values, -2, out=torch.empty_like(values.select(-2, 0)))


def contributor_shares(weights: Tensor, members: Tensor) -> Tensor:
    """Return the weights among the contributors to each direction, `w_k / sum_{S & C_h} w`.

    Arguments and shape as for `data_shares`. The sum over clients is 1 where a direction has a
    contributor, else 0.
    """
    contributing = weights.unsqueeze(-1) * members
    total = sum_over_clients(contributing).unsqueeze(-2)
    return contributing / total.where(total > 0, 1.0)


class DataWeightedRule(AggregationRule):
    """Base class of rules that weigh each client by its samples, whatever the others carry."""

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """Return `p_k` in the cohort where the client carries the direction."""
        return data_shares(weights, members)
