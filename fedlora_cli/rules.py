"""`fedlora-sim rules`: the aggregation rules by name."""

from __future__ import annotations

import inspect
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from fedlora_sim.aggregation import AggregationRule, get_rule, rule_aliases, rule_names


def rules() -> None:
    """List the aggregation rules."""
    table = Table("rule", "also", "options", "averages", "what it does", "source")
    for name in rule_names():
        rule = get_rule(name)
        also = ", ".join(other for other, own in rule_aliases().items() if own == name)
        options = ", ".join(f"{f.name}={str(f.default).lower()}" for f in fields(rule))
        summary = (inspect.getdoc(type(rule)) or "").split("\n")[0]
        table.add_row(name, also, options, averages(rule), summary, rule.source)
    Console().print(table)
    print("Options are written behind the name, as in raflora:canonicalize=true.")


def averages(rule: AggregationRule) -> str:
    """What is averaged, and whether something goes into the base."""
    adapter = {"product": "products", "factor": "factors", "none": "stack"}[rule.space]
    if rule.frozen_a:
        adapter = "B alone"
    return f"{adapter}, into the base" if rule.residual_in_base else adapter
