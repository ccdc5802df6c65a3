"""What the registered rules are, in words: for listings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields

from fedlora_sim.aggregation.registry import get_rule, rule_aliases, rule_names
from fedlora_sim.aggregation.rule import AggregationRule, option_text

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
    return Description(
        name=rule.name,
        also=", ".join(other for other, own in rule_aliases().items() if own == rule.name),
        options=", ".join(f"{f.name}={option_text(f.default)}" for f in fields(rule)),
        averages=f"{adapter}, into the base" if rule.residual_in_base else adapter,
        multiplier=_first_line(rule.multiplier).rstrip("."),
        summary=_first_line(type(rule)),
        source=rule.source,
    )


def describe_all() -> tuple[Description, ...]:
    """Every registered rule, by name."""
    return tuple(describe(get_rule(name)) for name in rule_names())


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
