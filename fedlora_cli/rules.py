"""`fedlora-sim rules`: the aggregation rules by name."""

from __future__ import annotations

import inspect

from rich.console import Console
from rich.table import Table

from fedlora_sim.aggregation import get_rule, rule_names


def rules() -> None:
    """List the aggregation rules."""
    table = Table("rule", "averages", "what it does", "source")
    for name in rule_names():
        rule = get_rule(name)
        summary = (inspect.getdoc(type(rule)) or "").split("\n")[0]
        table.add_row(name, f"{rule.space}s", summary, rule.source)
    Console().print(table)
