"""The rules by name: case-insensitive, each name once."""

from __future__ import annotations

from fedlora_sim.aggregation.rule import AggregationRule
from fedlora_sim.errors import check_choice, expected

_RULES: dict[str, AggregationRule] = {}


def register(rule: type[AggregationRule]) -> type[AggregationRule]:
    """Class decorator: make a rule known under its `name`.

    Raises:
        ValueError: if the name is taken.
    """
    name = rule.name.lower()
    if name in _RULES:
        raise expected(
            "name", rule.name, f"a name other than that of {type(_RULES[name]).__name__}"
        )
    _RULES[name] = rule()
    return rule


def get_rule(rule: str | AggregationRule) -> AggregationRule:
    """The rule of a name; an `AggregationRule` is returned as it is.

    Raises:
        ValueError: if the name is unknown, with the closest one.
    """
    if isinstance(rule, AggregationRule):
        return rule
    return _RULES[check_choice("rule", rule, _RULES)]


def rule_names() -> tuple[str, ...]:
    """Names of all registered rules, sorted."""
    return tuple(sorted(_RULES))
