"""What the registered rules are, in words: for listings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedlora_sim.aggregation.foreign import ForeignRule
from fedlora_sim.aggregation.options import option_text
from fedlora_sim.aggregation.registry import get_rule, rule_aliases, rule_names
from fedlora_sim.aggregation.rule import AggregationRule

ADAPTERS = {"product": "products", "factor": "factors", "none": "a stack"}


@dataclass(frozen=True)
class Description:
    """One line of a listing.

    Args:
        name: of the rule.
        also: other names that it goes by.
        options: its options with their defaults.
        averages: what it averages, and whether something goes into the base.
        multiplier: factor on a direction whose contributors weigh W.
        summary: what it does.
        source: paper and place.
    """

    name: str
    also: str
    options: str
    averages: str
    multiplier: str
    summary: str
    source: str


def describe(rule: AggregationRule) -> Description:
    """The listing's line of a rule, from its docstrings and declarations."""
    adapter = "B alone" if rule.frozen_a else ADAPTERS[rule.space]
    averages = f"{adapter}, into the base" if rule.residual_in_base else adapter
    declared = rule.properties.multiplier
    inner = rule.inner if isinstance(rule, ForeignRule) else None
    return Description(
        name=rule.name,
        also=", ".join(other for other, own in rule_aliases().items() if own == rule.name),
        options=", ".join(f"{name}={option_text(value)}" for name, value in rule.options.items()),
        averages=averages if inner is None else "in its own way",
        multiplier=_told(declared),
        summary=_first_line(type(rule if inner is None else inner)),
        source=rule.source,
    )


def describe_all() -> tuple[Description, ...]:
    """Every registered rule, by name."""
    return tuple(describe(get_rule(name)) for name in rule_names())


def _told(multiplier: Callable[[Tensor], Tensor] | None) -> str:
    if multiplier is None:
        return "not declared"
    return _first_line(multiplier).rstrip(".") or "declared, not in words"


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
