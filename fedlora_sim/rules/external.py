"""External rules: adapt any `Aggregator` to the engines, and fingerprint its code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.rules.base import (
    NO_STATE,
    AggregationRule,
    Aggregator,
    Context,
    Finish,
    Space,
    State,
    option_defaults,
    rule_label,
)
from fedlora_sim.rules.properties import Properties
from fedlora_sim.storage import digest, file_digest, source_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora_sim.lora import LoRAFactors
    from fedlora_sim.rules.cohort import Aggregated, Cohort

Index = tuple[int, ...]

SEPARATORS = {":", ","}
"""Characters that names must not contain: options follow `:`, and commas separate rules."""


def as_rule(aggregator: AggregationRule | Aggregator) -> AggregationRule:
    """Return any rule as an `AggregationRule`, as the engines need it.

    Raises:
        InputError: if the rule does not meet the protocol; names what is missing.
    """
    if isinstance(aggregator, AggregationRule):
        return aggregator
    check_aggregator_form(aggregator)
    return ExternalRule(aggregator)


def check_aggregator_form(aggregator: Any) -> str:
    """Check that a rule or rule class meets the protocol, and return its name.

    Raises:
        InputError: names what is missing.
    """
    own = aggregator.__name__ if isinstance(aggregator, type) else type(aggregator).__name__
    if not callable(getattr(aggregator, "step", None)):
        raise expected("rule", own, "an AggregationRule, or an object with `step` (see Aggregator)")
    for attribute in ("name", "source"):
        value = getattr(aggregator, attribute, None)
        if not isinstance(value, str) or not value.strip():
            raise expected(f"{own}.{attribute}", value, "text, as a class attribute")
    if SEPARATORS & set(aggregator.name):
        raise expected(f"{own}.name", aggregator.name, "a name without ':' and ','")
    check_choice(f"{own}.space", getattr(aggregator, "space", "product"), get_args(Space))
    given = getattr(aggregator, "properties", None)
    if not isinstance(aggregator, type) and not isinstance(given, Properties):
        raise expected(f"{own}.properties", given, "Properties, what the rule declares of itself")
    return str(aggregator.name)


@dataclass(frozen=True)
class ExternalRule(AggregationRule):
    """A rule that meets the protocol, client by client and layer by layer.

    Args:
        inner: the rule.
    """

    inner: Aggregator

    def __post_init__(self) -> None:
        inner, properties = self.inner, self.inner.properties
        told = {
            "name": inner.name,
            "source": inner.source,
            "space": getattr(inner, "space", "product"),
            "frozen_a": getattr(inner, "frozen_a", properties.common_a),
            "has_empty_partition_policy": properties.empty_partitions is True,
        }
        for name, value in told.items():
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """The name with the options that are not at their default."""
        return rule_label(self.inner)

    @property
    def options(self) -> dict[str, object]:
        """Options of the rule with their defaults."""
        return option_defaults(type(self.inner))

    @property
    def properties(self) -> Properties:
        """What the rule says of itself."""
        return self.inner.properties

    @property
    def declares_multiplier(self) -> bool:
        """As the rule declares."""
        return self.properties.multiplier is not None

    @property
    def is_linear(self) -> bool:
        """As the rule declares; what it leaves open is not taken for linear."""
        return self.properties.linear is True

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """None: the rule is more than weights.

        Raises:
            InputError: always.
        """
        raise expected("rule", self.label, "a rule that is weights per client and direction")

    def multiplier(self, coverage: Tensor) -> Tensor:
        """As declared in its properties, if it is.

        Raises:
            InputError: where it is not.
        """
        if self.properties.multiplier is None:
            raise expected("rule", self.label, "a rule that declares a multiplier")
        return self.properties.multiplier(coverage)

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Return the rule's own step."""
        return self.inner.step(updates, weights, context, state)

    def aggregate(
        self,
        cohort: Cohort,
        previous: LoRAFactors | None = None,
        empty_partition: str = "carry",
        finish: Finish = lambda adapter: adapter,
        state: State = NO_STATE,
    ) -> Aggregated:
        """Aggregate a round of many layers or seeds, one after the other."""
        import torch

        from fedlora_sim.rules.averages import stacked_bases, stacked_factors, with_columns
        from fedlora_sim.rules.cohort import Aggregated

        first = cohort.updates[0].lora_A.shape[:-2]
        batch = torch.broadcast_shapes(first, cohort.weights.shape[:-1], cohort.members.shape[:-2])
        results = [
            self._one(index, batch, cohort, previous, empty_partition, state)
            for index in np.ndindex(*batch)
        ]
        whole = stacked_factors([r.adapter for r in results], batch)
        adapter = finish(whole)
        kept = self._stacked_states([r.state for r in results], batch)
        if all(r.base is None for r in results):
            return Aggregated(adapter, state=kept)
        base, ones = stacked_bases(results, batch), torch.ones_like
        if adapter is whole:
            return Aggregated(adapter, base, state=kept)
        # the base compensates for what truncation or rounding removed from the adapter
        for part, sign in ((whole, 1), (adapter, -1)):
            base = with_columns(base, part, sign * ones(part.lora_A[..., 0], dtype=base.dtype))
        return Aggregated(adapter, base, state=kept)

    def _one(
        self,
        index: Index,
        batch: Index,
        cohort: Cohort,
        previous: LoRAFactors | None,
        empty_partition: str,
        state: State,
    ) -> Aggregated:
        """Return the round of one layer of one seed."""
        weights = cohort.weights.expand(*batch, -1)[index].tolist()
        members = cohort.members.expand(*batch, -1, -1)[index]
        updates, held = [], []
        present = [k for k, weight in enumerate(weights) if weight > 0]
        for k in present:
            own = members[k, cohort.positions[k]].nonzero().squeeze(-1)
            update = _layer(cohort.updates[k], index, batch).to(cohort.dtype)
            updates.append(update if len(own) == update.rank else update.select(own))
            held.append(cohort.positions[k][own].tolist())
        leading = all(own == list(range(len(own))) for own in held)
        context = Context(
            cohort.rank_levels,
            None if previous is None else _layer(previous, index, batch).to(cohort.dtype),
            empty_partition,
            None if leading else held,
        )
        mine = {name: x[index] for name, x in state.items()}
        found = self.step(updates, [weights[k] for k in present], context, mine)
        return self._checked(found, updates[0], context.r_max)

    def _checked(self, found: Any, update: LoRAFactors, r_max: int) -> Aggregated:
        """Return what a step returned, with the state.

        Engines would stumble over other forms later.
        """
        from torch import Tensor

        from fedlora_sim.rules.cohort import Aggregated

        step = f"{self.label}.step"
        pair = isinstance(found, tuple) and len(found) == 2
        if not pair or not isinstance(found[0], Aggregated):
            raise expected(step, type(found).__name__, "a pair, of an Aggregated and the state")
        result, after = found
        shapes = tuple(result.adapter.lora_B.shape), tuple(result.adapter.lora_A.shape)
        wanted = (update.d_out, r_max), (r_max, update.d_in)
        if shapes != wanted:
            raise expected(f"{step}: shapes of the adapter's B and A", shapes, str(wanted))
        for name, x in after.items() if isinstance(after, Mapping) else [(after, None)]:
            if not isinstance(x, Tensor) or "/" in name:
                raise expected(f"{step}: state", name, "tensors by name, and no '/' in a name")
        return replace(result, state=after)

    def _stacked_states(self, states: Sequence[State], batch: Index) -> State:
        """Return the state of all layers and seeds in one form."""
        from fedlora_sim.rules.averages import stacked

        forms = [{name: tuple(x.shape) for name, x in state.items()} for state in states]
        if any(form != forms[0] for form in forms):
            other = next(form for form in forms if form != forms[0])
            raise expected(f"{self.label}.step: state", other, f"one form in a batch, {forms[0]}")
        return {name: stacked([state[name] for state in states], batch) for name in forms[0]}


def _layer(factors: LoRAFactors, index: Index, batch: Index) -> LoRAFactors:
    a, b = (x.expand(*batch, *x.shape[-2:])[index] for x in (factors.lora_A, factors.lora_B))
    return replace(factors, lora_A=a, lora_B=b)


# Fingerprint of the code of external rules, which distinguishes their versions

OWN = __name__.partition(".")[0]
UNKNOWN = "unknown"


def rule_class(rule: AggregationRule) -> type:
    """Return the original class of a rule."""
    return type(rule.inner if isinstance(rule, ExternalRule) else rule)


def rule_code(rule: AggregationRule) -> str | None:
    """Return a hash of the sources of an external rule; None for built-in rules.

    The hash covers all modules of the rule's package, or its file if it is in none, and the same
    for external base classes.

    Returns:
        The hash; `unknown` if there is no source file, as in a notebook.
    """
    kind = rule_class(rule)
    if _top(kind) == OWN:
        return None
    own = [_sources(base) for base in kind.__mro__ if _is_outside(base)]
    if UNKNOWN in own:
        return UNKNOWN
    return digest("".join(dict.fromkeys(own)).encode())


def _top(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_outside(kind: type) -> bool:
    return _top(kind) not in {OWN, "builtins"} and _top(kind) not in sys.stdlib_module_names


def _sources(kind: type) -> str:
    """Return a hash of the package or file of a class."""
    package = sys.modules.get(_top(kind))
    places = [Path(place) for place in getattr(package, "__path__", ())]
    if places:
        return digest("".join(source_fingerprint(place) for place in places).encode())
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    return UNKNOWN if path is None else file_digest(Path(path))
